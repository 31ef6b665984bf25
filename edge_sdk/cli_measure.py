"""`edge bench` and `edge eval`: measurements, each with one JSON document as its last line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .cli_options import cancel_on_interrupt, console, options, print_json, progress_bar
from .config import Settings


@click.command()
@click.option(
    "--data", required=True, envvar="EDGE_DATA", type=click.Path(path_type=Path), help="The set's folder."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first questions.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep predictions here (JSONL) and resume.")
@options("model", "encoder", "context", "threads")
def eval_answers_command(settings: Settings, data: Path, limit: int | None, out: Path | None, as_json: bool) -> int:
    """Answer a question set with retrieval over its passages; print recall, exact match, F1 and rates."""
    from importlib import import_module

    evaluate = import_module("quantize.evaluate")  # the toolchain stands above the runtime: loaded by name only
    with cancel_on_interrupt() as cancel, progress_bar("answering") as bar:
        result = evaluate.evaluate_answers(data, settings, limit=limit, out=out, progress=bar, cancel=cancel)
    if not as_json:
        for name, value in result.items():
            console().print(f"  {name:<28} {value:.3f}" if isinstance(value, float) else f"  {name:<28} {value}")
    print_json(result)
    return 130 if cancel.is_set() else 0


@click.command()
@click.argument("models", nargs=-1)
@click.option("--prompt-tokens", default=600, show_default=True, type=click.IntRange(16))
@click.option("--decode-tokens", default=128, show_default=True, type=click.IntRange(8))
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1))
@options("threads")
def bench_engine_command(
    settings: Settings, models: tuple[str, ...], prompt_tokens: int, decode_tokens: int, repeats: int, as_json: bool
) -> None:
    """Measure our engine, a bare loop over the C functions and llama_cpp.Llama in one run, taking turns.

    MODELS are catalog names or GGUF files; without any, every GGUF decoder that is present. Run it on a quiet
    machine.
    """
    from .bench import bench_engine
    from .models import list_models, resolve

    names = models or tuple(
        row.name
        for row in list_models(settings)
        if row.role == "decoder" and row.format == "gguf" and row.state == "present"
    )
    paths = {name: resolve(name, settings).path for name in names}
    with progress_bar("measuring") as bar:
        result = bench_engine(
            paths,
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            repeats=repeats,
            threads=settings.threads,
            progress=bar,
        )
    if not as_json:
        _show(result)
    print_json({"command": f"edge bench engine {' '.join(sys.argv[3:])}".strip(), **result})


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    for name, contenders in result["models"].items():
        table = Table(title=name, box=None)
        measures = ("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_ms", "peak_mb")
        for column in ("", *measures):
            table.add_column(column.replace("_", " "), justify="right" if column else "left")
        for contender, figures in contenders.items():
            table.add_row(contender, *(f"{figures[measure]:.1f}" for measure in measures))
        for contender in contenders:
            ratios = result["ratios"][name]
            quotients = (ratios.get(f"{measure}_{contender}_to_bare") for measure in measures)
            if contender != "bare":
                table.add_row(f"{contender} / bare", *(f"{value:.3f}" for value in quotients))
        console().print(table)
