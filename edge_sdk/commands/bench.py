"""`edge bench`: what this device reaches, beside its peers; one JSON document is the last line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import Settings
from ..errors import ConfigError
from .measure import stamped, table
from .options import console, options, print_json, progress_bar

if TYPE_CHECKING:
    from ..bench.compare import Comparison

_PLOT = click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw the figures into this file (.png, .svg)."
)
_ASKING = (
    *("store", "bundle", "model", "adapter", "encoder", "reader", "context", "threads"),
    *("evidence_tokens", "cache_type"),
)


@click.command()
@click.argument("models", nargs=-1)
@click.option("--prompt-tokens", default=600, show_default=True, type=click.IntRange(16))
@click.option("--decode-tokens", default=128, show_default=True, type=click.IntRange(8))
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1))
@_PLOT
@options("threads")
def bench_engine_command(
    settings: Settings,
    models: tuple[str, ...],
    prompt_tokens: int,
    decode_tokens: int,
    repeats: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure our engine, a bare loop over the C functions and llama_cpp.Llama in one run, taking turns.

    MODELS are catalog names or GGUF files; without any, every GGUF decoder that is present. Run it on a quiet
    machine.
    """
    from ..bench.engine import bench_engine
    from ..hub.models import list_models, resolve

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
        _show_engines(result)
    _finish("bench engine", result, plot, as_json)


@click.command()
@click.option("--rows", multiple=True, type=click.IntRange(100), help="Vectors; several times for a growth curve.")
@click.option("--dim", default=384, show_default=True, type=click.IntRange(8, 4096))
@click.option("--queries", default=30, show_default=True, type=click.IntRange(1))
@click.option(
    "--vectors", type=click.Path(path_type=Path), help="A .npy file of float32 rows instead of made-up ones."
)
@options()
def bench_search_command(
    settings: Settings, rows: tuple[int, ...], dim: int, queries: int, vectors: Path | None, as_json: bool
) -> None:
    """Measure vector search beside numpy, faiss, usearch and sqlite-vec: one thread each, taking turns."""
    from ..bench.search import bench_search

    with progress_bar("measuring") as bar:
        result = bench_search(rows or (10_000, 100_000), dim, queries=queries, vectors=vectors, progress=bar)
    if not as_json:
        for figures in (*result["growth"], result):
            names, columns = figures["milliseconds"], ("milliseconds", "recall_at_10", "resident_mb")
            read = figures["read_limit_ms"]
            title = (
                f"{figures['rows']:,} rows of {figures['dim']}; reading the int8 codes alone takes {read:.2f} ms"
            )
            table(title, columns, {name: [figures[c][name] for c in columns] for name in names}, "{:.2f}")
    print_json(stamped("bench search", result))


@click.command()
@click.option(
    "--data",
    required=True,
    envvar="EDGE_DATA",
    type=click.Path(path_type=Path),
    help="A folder with passages.jsonl.",
)
@click.option("--reference", help="The same encoder in float32: a catalog name or a folder.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@options("encoder", "threads")
def bench_ingest_command(
    settings: Settings, data: Path, reference: str | None, repeats: int, as_json: bool
) -> None:
    """Measure how fast passages become vectors and files become searchable, beside plain onnxruntime loops."""
    from importlib import import_module

    from ..bench.ingest import bench_ingest
    from ..hub.models import resolve

    collection = import_module("quantize.collection")
    passages = [document.text for document in collection.read_documents(collection.documents_file(data))]
    with progress_bar("measuring") as bar:
        result = bench_ingest(
            resolve(settings.encoder, settings).directory,
            passages,
            reference=resolve(reference, settings).directory if reference else None,
            repeats=repeats,
            threads=settings.threads,
            progress=bar,
        )
    if not as_json:
        columns = ("passages_per_second", "peak_mb")
        rows = {**result["encoders"], **result["end_to_end"]}
        table(result["backend"], columns, {name: [row[c] for c in columns] for name, row in rows.items()}, "{:.1f}")
    print_json(stamped("bench ingest", result))


@click.command()
@click.option("--passages", default=100_000, show_default=True, type=click.IntRange(100), help="Size of the store.")
@click.option("--questions", default=200, show_default=True, type=click.IntRange(3))
@options("encoder")
def bench_retrieve_command(settings: Settings, passages: int, questions: int, as_json: bool) -> None:
    """Measure `Edge.search` in a large store of made-up text: first and warm, with its parts."""
    from ..bench.retrieve import bench_retrieve

    with progress_bar("measuring") as bar:
        result = bench_retrieve(settings, passages=passages, questions=questions, progress=bar)
    if not as_json:
        title = f"{passages:,} passages; first search {result['first_ms']['total']:.0f} ms; milliseconds when warm"
        rows = {
            name: [figures["median"], figures["p99"], *figures["parts"].values()]
            for name, figures in (("6 to 14 words", result["warm_ms"]), ("60 words", result["long_ms"]))
        }
        table(title, ("median", "p99", *result["warm_ms"]["parts"]), rows, "{:.1f}")
    print_json(stamped("bench retrieve", result))


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what is asked, and how."""
    for option in (
        click.option(
            "--peers/--no-peers", "with_peers", default=True, help="Measure those that are installed, too."
        ),
        click.option(
            "--peer-tokens", default=600, show_default=True, type=click.IntRange(64), help="Of their prompts."
        ),
        click.option("--max-tokens", default=48, show_default=True, type=click.IntRange(1, 4096)),
        click.option("--brief", is_flag=True, help="Only the words of the answer."),
        click.option("-k", default=8, show_default=True, type=click.IntRange(1, 50), help="Passages to consider."),
        click.option("--data", type=click.Path(path_type=Path), help="A folder with passages and questions."),
        _PLOT,
    ):
        function = option(function)
    return function


@click.command()
@click.argument("questions", nargs=-1)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Only the first questions.")
@_asking
@options(*_ASKING)
def bench_ask_command(
    settings: Settings,
    questions: tuple[str, ...],
    limit: int,
    data: Path | None,
    brief: bool,
    plot: Path | None,
    as_json: bool,
    **manner: Any,
) -> None:
    """Measure QUESTIONS end to end, to the first word and to the last, beside peers on the same passages.

    They are asked of your store, or those of --data (passages.jsonl, questions.jsonl) of a store made of its
    passages. A peer gets a prompt of whole passages and searches nothing.
    """
    from ..bench.ask import bench_ask

    with progress_bar("asking") as bar:
        own, asked = _asked(settings, questions, data, limit, bar)
        result = bench_ask(own, asked, style="brief" if brief else "full", progress=bar, **manner)
    if data is not None:
        result["settings"]["data"] = data.name
    if not as_json:
        columns = (
            "first_token_ms",
            "whole_ms",
            "prompt_tokens",
            "decode_tokens_per_second",
            "peak_mb",
        )
        _show_contenders(f"medians of {len(asked)} questions", columns, result)
    _finish("bench ask", result, plot, as_json)


@click.command()
@click.argument("questions", metavar="[QUESTION]", nargs=-1)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@_asking
@options(*_ASKING)
def bench_start_command(
    settings: Settings,
    questions: tuple[str, ...],
    data: Path | None,
    brief: bool,
    plot: Path | None,
    as_json: bool,
    **manner: Any,
) -> None:
    """Measure a cold start: from a new process to the first word of the answer to QUESTION, in its parts."""
    from ..bench.start import bench_start

    if len(questions) > 1:
        raise click.UsageError("one QUESTION is asked; put it in quotes")
    with progress_bar("starting") as bar:
        own, asked = _asked(settings, questions, data, 1, bar)
        if not asked:
            raise ConfigError("there is no question to ask", hint="give one, or a folder with --data")
        result = bench_start(own, asked[0], style="brief" if brief else "full", progress=bar, **manner)
    if not as_json:
        rows = {name: row["parts_ms"] for name, row in result["contenders"].items()}
        parts = [name for name in rows["edge"] if name not in ("p95", "spread")]
        table(
            "milliseconds", parts, {name: [row.get(part) for part in parts] for name, row in rows.items()}, "{:.0f}"
        )
        _show_contenders(f"medians of {manner['rounds']} starts", ("first_token_ms", "whole_ms", "peak_mb"), result)
    _finish("bench start", result, plot, as_json)


def _asked(
    settings: Settings, questions: tuple[str, ...], data: Path | None, limit: int, progress: Any
) -> tuple[Settings, list[str]]:
    """The settings with the store to ask, and the questions."""
    from dataclasses import replace
    from importlib import import_module

    if data is None:
        return settings, list(questions)
    from ..loading import load_encoder, open_store

    collection, evaluate = import_module("quantize.collection"), import_module("quantize.evaluate")
    passages = data / "passages.jsonl"
    own = replace(settings, store=collection.store_path(settings, passages, Path(settings.encoder).name))
    with open_store(own) as store:
        collection.fill_store(store, load_encoder(settings), collection.read_documents(passages), progress)
    return own, list(questions) or [each.question for each in evaluate.read_questions(data)[:limit]]


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@options()
def bench_compare_command(settings: Settings, a: Path, b: Path, as_json: bool) -> None:
    """Compare two results of one benchmark: every figure of B beside that of A, and whether their spreads overlap.

    A and B are files with the JSON line that a benchmark printed. Says where machine or settings differ.
    """
    from ..bench.compare import compare, read_result

    found = compare(read_result(a), read_result(b))
    if not as_json:
        _show_comparison(found)
    print_json(found)


def _show_comparison(found: Comparison) -> None:
    out = console()
    for what, differing in (("machine", found.machine), ("settings", found.settings)):
        for name, (left, right) in differing.items():
            out.print(f"  other {what}: {name} is {left!r} in A, {right!r} in B")
    rows = {name: [ratio.a, ratio.b, ratio.ratio, ratio.least, ratio.most] for name, ratio in found.ratios.items()}
    marked = {f"{name} {'*' if found.ratios[name].clear else ''}".strip(): row for name, row in rows.items()}
    table(f"{found.kind}; * the spreads do not overlap", ("A", "B", "B / A", "least", "most"), marked, "{:.4g}")
    for which, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            out.print(f"  only in {which}: {', '.join(names)}")


def _show_contenders(title: str, columns: tuple[str, ...], result: Mapping[str, Any]) -> None:
    from ..bench.plot import bars, charts

    rows = {name: [row.get(column) for column in columns] for name, row in result["contenders"].items()}
    table(title, columns, rows, "{:.1f}")
    for chart in charts(result):
        if chart.title == "first token ms":
            console().print("\n".join((chart.title, *bars(chart))))
    for name, ratios in result["ratios"].items():
        told = ", ".join(f"{each.replace('_', ' ')} {ratios[each]:.2f}" for each in ratios["spread"])
        console().print(f"  {name.replace('_to_', ' / ')}: {told}")
    for name, reason in result.get("left_out", {}).items():
        console().print(f"  without {name}: {reason}")


def _finish(name: str, result: Mapping[str, Any], plot: Path | None, as_json: bool) -> None:
    """The picture, if one is wished, and the JSON line."""
    if plot is not None:
        from ..bench.plot import write_plot

        write_plot(result, plot)
        if not as_json:
            console().print(f"  drawn in {plot}")
    print_json(stamped(name, result))


def _show_engines(result: dict[str, Any]) -> None:
    from rich.table import Table

    for name, contenders in result["models"].items():
        shown = Table(title=name, box=None)
        measures = ("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_ms", "peak_mb")
        for column in ("", *measures):
            shown.add_column(column.replace("_", " "), justify="right" if column else "left")
        for contender, figures in contenders.items():
            shown.add_row(contender, *(f"{figures[measure]:.1f}" for measure in measures))
        for contender in contenders:
            ratios = result["ratios"][name]
            quotients = (ratios.get(f"{measure}_{contender}_to_bare") for measure in measures)
            if contender != "bare":
                shown.add_row(f"{contender} / bare", *(f"{value:.3f}" for value in quotients))
        console().print(shown)
