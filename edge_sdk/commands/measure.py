"""`edge eval`: answers, retrieval and routing measured on a question set; one JSON document is the last line."""

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
@options("model", "adapter", "encoder", "reader", "context", "threads", "evidence_tokens")
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
        table(
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
    *("model", "adapter", "encoder", "reader", "bundle", "context", "threads", "evidence_tokens"),
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

    evaluate, asking = import_module("quantize.evaluate_route"), import_module("quantize.asking")
    with cancel_on_interrupt() as cancel, progress_bar("answering") as bar:
        found = evaluate.collect(data, settings, out=out, limit=limit, progress=bar, cancel=cancel)
        if cancel.is_set():
            return 130
        others = asking.read_asked(fit_on)

        def report(labeller: str) -> dict[str, Any]:
            figures: dict[str, Any] = evaluate.evaluate_route(
                found.asked,
                read=found.read,
                labeller=labeller,
                fit_on=others,
                perfect_remote=perfect_remote,
                resplits=resplits,
                progress=bar,
            )
            return figures

        result = {"model": found.model, "data": data.name, **report("contains")}
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
    if "with_reader" in result:
        for name in ("always_local", "gain_captured"):
            console().print(f"  {name + ', with reader':<20} {result['with_reader'][name]:.3f}")
    table("signal", ("AUROC",), {name: [value] for name, value in list(result["auroc"].items())[:12]}, "{:.3f}")
    columns = ("alpha", "mean_risk", "naive_mean_risk", "clear_violations", "naive_clear_violations", "local_share")
    rows = {f"{row['kind']} {row['alpha']:g}": [row[c] for c in columns] for row in result["guarantee"]}
    table("promise", columns, rows, "{:.3f}")


def stamped(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with what was asked, without the paths of this machine, where and when."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1 + len(name.split()) :]]
    stamp = {"command": f"edge {name} {' '.join(words)}".strip(), "date": time.strftime("%Y-%m-%d")}
    return {**stamp, "machine": describe(), **result}


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float | None]], form: str) -> None:
    from rich.table import Table

    rows_shown = Table(title=title, box=None)
    for column in ("", *columns):
        rows_shown.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name, values in rows.items():
        rows_shown.add_row(name, *("" if value is None else form.format(value) for value in values))
    console().print(rows_shown)
