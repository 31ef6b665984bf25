"""The report's pictures as SVG text: quality beside size, probabilities beside what happened, the cascade's curve.

Equal figures give equal bytes. The only module of recipes that uses matplotlib, from the `bench` extra.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import MissingExtraError

from .cascade import ENOUGH, LEAVING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"student": "tab:green", "baseline": "tab:grey", "teacher": "tab:blue"}
_BINS = 10


def quality_plot(systems: Mapping[str, Mapping[str, Any]], floor: float | None = None) -> str:
    """Token F1 of each system with its interval, over megabytes; one that is elsewhere is at the right edge."""

    def paint(axes: Axes) -> None:
        sizes = {name: system["megabytes"] for name, system in systems.items()}
        elsewhere = 3 * max((size for size in sizes.values() if size is not None), default=1.0)
        axes.set_xscale("symlog", linthresh=1.0)
        for name, system in systems.items():
            value = system["figures"].get("token_f1")
            if value is None:
                continue
            x = elsewhere if sizes[name] is None else sizes[name]
            colour = _COLOURS[system["role"]]
            axes.errorbar(
                x,
                value["mean"],
                [[value["mean"] - value["low"]], [value["high"] - value["mean"]]],
                fmt="o",
                color=colour,
                capsize=3,
            )
            axes.annotate(name, (x, value["mean"]), xytext=(6, 5), textcoords="offset points", fontsize=8)
        if floor is not None:
            axes.axhline(floor, color="tab:red", linestyle="--", linewidth=1)
        axes.set(xlabel="megabytes on the device", ylabel="token F1", ylim=(0, 1.02), xlim=(-0.1, 6 * elsewhere))

    return _draw("quality", paint)


def reliability_plot(columns: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """For each system its probabilities and whether it was right, in bins of equal numbers of tasks."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
        for name, (probabilities, right) in columns.items():
            rows = sorted(zip(probabilities, right, strict=True))
            size = max(1, -(-len(rows) // _BINS))
            bins = [rows[start : start + size] for start in range(0, len(rows), size)]
            axes.plot(
                [sum(each for each, _ in part) / len(part) for part in bins],
                [sum(good for _, good in part) / len(part) for part in bins],
                marker="o",
                label=name,
            )
        axes.set(xlabel="probability given", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
        axes.legend(fontsize=8)

    return _draw("reliability", paint)


def cascade_plot(report: Mapping[str, Any]) -> str:
    """Quality over the share of questions that leave the device; see `cascade.evaluate_cascade`."""

    def paint(axes: Axes) -> None:
        curve = report["curve"]
        axes.plot([point["remote_share"] for point in curve], [point["quality"] for point in curve], marker=".")
        axes.axhline(report["always_remote"], color="tab:blue", linewidth=1, label="always remote")
        axes.axhline(
            ENOUGH * report["always_remote"],
            color="tab:blue",
            linestyle="--",
            linewidth=1,
            label=f"{ENOUGH:.0%} of it",
        )
        axes.axvline(LEAVING, color="grey", linestyle="--", linewidth=1)
        for tier in report["tiers"]:
            axes.plot(0, tier["quality"], "s", label=f"{tier['name']} alone")
        axes.set(xlabel="share of questions that leave the device", ylabel="quality", xlim=(-0.02, 1))
        axes.legend(fontsize=8, loc="lower right")

    return _draw("cascade", paint)


def _draw(name: str, paint: Callable[[Axes], None]) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing", "bench") from None
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        paint(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    # Several pictures stand in one page: names within them must differ, and declarations have no place there.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
