"""`edge bench` and `edge eval`: measurements, each with one JSON document as its last line."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..config import Settings
from ..device import describe
from ..errors import CalibrationError, ConfigError
from .options import cancel_on_interrupt, console, options, print_json, progress_bar


@click.command()
@click.option(
    "--data", required=True, envvar="EDGE_DATA", type=click.Path(path_type=Path), help="The set's folder."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first questions.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep predictions here (JSONL) and resume.")
@options("model", "adapter", "encoder", "reader", "context", "threads")
def eval_answers_command(settings: Settings, data: Path, limit: int | None, out: Path | None, as_json: bool) -> int:
    """Answer a question set with retrieval over its passages; print recall, exact match, F1 and rates."""
    from importlib import import_module

    evaluate = import_module("quantize.evaluate")  # the toolchain stands above the runtime: loaded by name only
    with cancel_on_interrupt() as cancel, progress_bar("answering") as bar:
        result = evaluate.evaluate_answers(data, settings, limit=limit, out=out, progress=bar, cancel=cancel)
    if not as_json:
        for name, value in result.items():
            console().print(f"  {name:<28} {value:.3f}" if isinstance(value, float) else f"  {name:<28} {value}")
    print_json(stamped("eval answers", result))
    return 130 if cancel.is_set() else 0


@click.command()
@click.option(
    "--data", required=True, envvar="EDGE_DATA", type=click.Path(path_type=Path), help="The collection's folder."
)
@options("encoder")
def eval_retrieval_command(settings: Settings, data: Path, as_json: bool) -> int:
    """Rank a collection with judgements by BM25, vectors, their plain fusions and ours.

    The folder holds docs.jsonl, queries.jsonl and qrels.jsonl, or passages.jsonl and questions.jsonl.
    """
    from importlib import import_module

    evaluate = import_module("quantize.evaluate_retrieval")
    with cancel_on_interrupt() as cancel, progress_bar("ranking") as bar:
        result = evaluate.evaluate_retrieval(data, settings, progress=bar, cancel=cancel)
    if not as_json and "systems" in result:
        columns = ("ndcg_at_10", "recall_at_10", "mrr", "ms_per_query")
        _table(
            data.name,
            columns,
            {name: [row[c] for c in columns] for name, row in result["systems"].items()},
            "{:.3f}",
        )
    print_json(stamped("eval retrieval", result))
    return 130 if cancel.is_set() else 0


@click.command()
@click.option(
    "--data", required=True, envvar="EDGE_DATA", type=click.Path(path_type=Path), help="The set's folder."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first questions.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the answers here (JSONL) and resume.")
@click.option(
    "--fit-on", type=click.Path(path_type=Path), help="Answers (--out) to another set, to fit on and judge here."
)
@click.option("--perfect-remote", is_flag=True, help="Take the accepted answers for the remote's.")
@click.option(
    "--resplits", default=200, show_default=True, type=click.IntRange(1), help="Halves to test promises on."
)
@options(
    *("model", "adapter", "encoder", "reader", "context", "threads"),
    *("remote", "remote_model", "remote_key_file", "remote_prices", "budget", "privacy", "privacy_send"),
)
def eval_route_command(
    settings: Settings,
    data: Path,
    limit: int | None,
    out: Path | None,
    fit_on: Path | None,
    perfect_remote: bool,
    resplits: int,
    as_json: bool,
) -> int:
    """Answer a question set; print what the probability is worth, which promises hold, and what routing gains.

    The folder holds passages.jsonl and questions.jsonl, or qa.jsonl. Both kinds of label are shown.
    """
    from importlib import import_module

    evaluate, calibrate = import_module("quantize.evaluate_route"), import_module("quantize.calibrate")
    with cancel_on_interrupt() as cancel, progress_bar("answering") as bar:
        model, asked = evaluate.collect(data, settings, out=out, limit=limit, progress=bar, cancel=cancel)
        if cancel.is_set():
            return 130
        others = calibrate.read_asked(fit_on)

        def report(labeller: str) -> dict[str, Any]:
            found: dict[str, Any] = evaluate.evaluate_route(
                asked,
                labeller=labeller,
                fit_on=others,
                perfect_remote=perfect_remote,
                resplits=resplits,
                progress=bar,
            )
            return found

        result = {"model": model, "data": data.name, **report("contains")}
        try:
            result["by_f1"] = report("f1")
        except (CalibrationError, ConfigError) as error:  # few answers of a talkative model are right by this label
            result["by_f1"] = {"too_few": str(error)}
    if not as_json:
        _show_route(result)
    print_json(stamped("eval route", result))
    return 0


def _show_route(result: Mapping[str, Any]) -> None:
    for name in ("auroc_gain", "ece", "ece_if_exact", "brier", "always_local", "always_remote", "gain_captured"):
        if name in result:
            console().print(f"  {name:<20} {result[name]:.3f}")
    _table("signal", ("AUROC",), {name: [value] for name, value in list(result["auroc"].items())[:12]}, "{:.3f}")
    columns = ("alpha", "mean_risk", "naive_mean_risk", "clear_violations", "naive_clear_violations", "local_share")
    rows = {f"{row['kind']} {row['alpha']:g}": [row[c] for c in columns] for row in result["guarantee"]}
    _table("promise", columns, rows, "{:.3f}")


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
        _show(result)
    print_json(stamped("bench engine", result))


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
            _table(title, columns, {name: [figures[c][name] for c in columns] for name in names}, "{:.2f}")
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
        _table(
            result["backend"], columns, {name: [row[c] for c in columns] for name, row in rows.items()}, "{:.1f}"
        )
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
        _table(title, ("median", "p99", *result["warm_ms"]["parts"]), rows, "{:.1f}")
    print_json(stamped("bench retrieve", result))


def stamped(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with what was asked, without the paths of this machine, where and when."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1 + len(name.split()) :]]
    stamp = {"command": f"edge {name} {' '.join(words)}".strip(), "date": time.strftime("%Y-%m-%d")}
    return {**stamp, "machine": describe(), **result}


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]], form: str) -> None:
    from rich.table import Table

    table = Table(title=title, box=None)
    for column in ("", *columns):
        table.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name, values in rows.items():
        table.add_row(name, *(form.format(value) for value in values))
    console().print(table)


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
