"""The front of divergence and speed as a picture: one point a file, its area the bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from edge_sdk.errors import MissingExtraError

from .gguf_models.tune import Candidate


def draw(candidates: Sequence[Candidate], front: Collection[str], chosen: str, out: Path) -> None:
    """Write a PNG of prefill and decode over KL divergence. Raises `MissingExtraError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing", "bench") from error
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    most = max(each.bytes for each in candidates)
    for place, (name, ratios) in enumerate(
        (
            ("prefill", [each.prefill_ratio for each in candidates]),
            ("decode", [each.decode_ratio for each in candidates]),
        )
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        for each, ratio in zip(candidates, ratios, strict=True):
            colour = "tab:green" if each.name == chosen else "tab:blue" if each.name in front else "tab:grey"
            axes.scatter(each.divergence, ratio, s=160 * each.bytes / most, color=colour)
            axes.annotate(
                each.name, (each.divergence, ratio), xytext=(5, 4), textcoords="offset points", fontsize=7
            )
        axes.set_xlabel("mean KL divergence")
        axes.set_ylabel(f"{name} of the model's own file")
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)
