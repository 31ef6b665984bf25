"""`edge eval divergence`: two language models compared. The work is done in `quantize`, the toolchain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..config import Settings
from ..errors import ConfigError
from .measure import stamped
from .options import cancel_on_interrupt, console, options, print_json, progress_bar

if TYPE_CHECKING:
    from ..hub.models import InstalledModel


@click.command()
@click.argument("reference", metavar="A")
@click.argument("candidate", metavar="B")
@click.option("--text", required=True, type=click.Path(path_type=Path), help="A text file that both models read.")
@click.option(
    "--window", "length", default=512, show_default=True, type=click.IntRange(8), help="Tokens read together."
)
@click.option("--warmup", type=click.IntRange(0), help="Tokens of each that are not scored.  [default: half]")
@click.option("--windows", type=click.IntRange(1), help="Only the first windows of the text.")
@click.option("--questions", type=click.Path(path_type=Path), help="A question set, to count answers that flip.")
@click.option("--limit", type=click.IntRange(1), help="Only the first questions.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep what is measured here (JSONL) and resume.")
@options("encoder", "context", "threads")
def eval_divergence_command(
    settings: Settings,
    reference: str,
    candidate: str,
    text: Path,
    length: int,
    warmup: int | None,
    windows: int | None,
    questions: Path | None,
    limit: int | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Measure how far the GGUF model B is from A, with the same vocabulary: KL divergence, agreement, perplexity.

    A and B are catalog names or files. Windows and scored positions are those of llama.cpp's perplexity tool. With
    --questions, a folder with passages.jsonl and questions.jsonl, both models also answer the same prompts: which
    answers are lost and gained, and how far confidence shifts.
    """
    from importlib import import_module

    divergence = import_module("quantize.gguf_models.divergence")  # the toolchain: loaded by name only
    flips = import_module("quantize.gguf_models.flips")
    window_logits = import_module("quantize.gguf_models.window_logits")
    model_a, model_b = _decoder(reference, settings), _decoder(candidate, settings)
    started = perf_counter()
    with cancel_on_interrupt() as cancel, progress_bar("comparing") as bar:
        found = divergence.measure_divergence(
            model_a.path,
            model_b.path,
            window_logits.read_text(text),
            context=length,
            warmup=warmup,
            windows=windows,
            threads=settings.threads,
            out=out,
            progress=bar,
            cancel=cancel,
        )
        read = {"text": text.name, "context": length, "warmup": divergence.first_scored(length, warmup)}
        result = {"a": model_a.name, "b": model_b.name, **read, **asdict(found)}
        if questions is not None and not cancel.is_set():
            flipped = flips.measure_flips(
                model_a.path,
                model_b.path,
                questions,
                settings,
                reading=model_a.reading,
                limit=limit,
                out=out,
                progress=bar,
                cancel=cancel,
            )
            result["questions"] = {"data": questions.name, **asdict(flipped)}
    result["seconds"] = perf_counter() - started
    if not as_json:
        _show(result)
    print_json(stamped("eval divergence", _finite(result)))
    return 130 if cancel.is_set() else 0


def _decoder(name: str, settings: Settings) -> InstalledModel:
    from ..hub.models import resolve

    model = resolve(name, settings)
    if (model.role, model.format) != ("decoder", "gguf"):
        raise ConfigError(f"{name} is an {model.format} {model.role}", hint="give language models as GGUF")
    return model


def _show(result: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None)
    for column in ("", "A", "B"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("model", result["a"], result["b"])
    table.add_row("megabytes", *(f"{result[key] / 1e6:.1f}" for key in ("bytes_a", "bytes_b")))
    table.add_row("perplexity", *(f"{result[f'ppl_{side}']:.4f} ± {result[f'ppl_{side}_se']:.4f}" for side in "ab"))
    console().print(table)
    error = result["kld_mean_se"]
    spread = "" if error is None else f" ± {error:.6f}"
    for name, shown in {
        "KL divergence": f"{result['kld_mean']:.6f}{spread}",
        "median, 99 %, largest": " ".join(f"{result[key]:.6f}" for key in ("kld_median", "kld_p99", "kld_max")),
        "same top token": f"{result['top1_agreement']:.2%}",
        "change of probability": f"{result['probability_change_mean']:+.3%}, RMS"
        f" {result['probability_change_rms']:.3%}",
        "positions": f"{result['positions']:,} in {result['windows']:,} windows",
    }.items():
        console().print(f"  {name:<24}{shown}")
    if "questions" not in result:
        return
    flips = result["questions"]
    low, high = flips["right_change_interval"]
    for name, shown in {
        "right answers": f"A {flips['right_a']:.1%}, B {flips['right_b']:.1%} of {flips['n']}"
        f" (change {flips['right_change']:+.1%}, 95 % from {low:+.1%} to {high:+.1%})",
        "flips": f"{flips['lost']} lost, {flips['gained']} gained; {flips['identical']:.1%} identical",
        "mean log-probability": f"A {flips['mean_logprob_a']:.3f}, B {flips['mean_logprob_b']:.3f}",
    }.items():
        console().print(f"  {name:<24}{shown}")


def _finite(value: Any) -> Any:
    """Without numbers that JSON cannot write: they become null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value
