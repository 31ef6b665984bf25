"""`edge add`, `list`, `label`, `remove`, `search` and `reindex`: the commands about documents."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Settings
from ..edge import Edge
from ..errors import DocumentError
from ..loading import existing_store, load_encoder, require_store
from ..records import AddReport, DocumentInfo, Hit
from .options import cancel_on_interrupt, console, options, print_json, progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from ..storage.store import Store

_LABELS = click.Choice(["private", "public", "none"])


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--label", type=_LABELS, help="May the text leave the device? `private`: never, in no mode.")
@options("store", "bundle", "require_signature", "encoder")
def add_command(settings: Settings, sources: tuple[str, ...], label: str | None, as_json: bool) -> int:
    """Add documents: files, folders (with what is in them) or py:MODULE.

    Text, Markdown, HTML, PDF, DOCX; `py:json` takes the documentation of an installed Python module from its
    docstrings, without running it. Adding again only does what has changed, so an interrupted run is resumed
    by the same command. Each document is safe on disk as soon as it is counted.
    """
    from ..ingest import add

    started = time.perf_counter()
    reports: list[AddReport] = []
    left_out: list[str] = []
    out = console()
    with Edge.open(settings=settings) as edge, cancel_on_interrupt() as cancel:
        edge.store.use_label(
            _stored(label)
        )  # in one transaction with the text: it is never there without its label
        with progress_bar("adding") as bar:
            add_all = partial(
                add, edge.store, edge.encoder, background=settings.background, left_out=left_out.append
            )
            for report in add_all(sources, progress=bar, cancel=cancel):
                reports.append(report)
                if report.status == "unchanged" and label is not None:
                    edge.store.set_label(report.name, _stored(label) or "")
                if report.status == "failed" and not as_json:
                    click.echo(f"edge: {report.error}", err=True)
        counts = edge.store.counts()
    seconds = time.perf_counter() - started
    tally = {
        status: sum(report.status == status for report in reports)
        for status in ("added", "updated", "unchanged", "failed")
    }
    if tally["updated"]:
        _forget_prompts(settings)
    if as_json:
        total = {"passages": counts.passages, "seconds": seconds, "left_out": left_out}
        print_json({**tally, **total, "documents": reports})
    else:
        done = ", ".join(f"{number} {status}" for status, number in tally.items() if number)
        out.print(
            f"{done or 'nothing to add'} in {seconds:.1f} s; "
            f"{settings.store} holds {counts.documents} documents, {counts.passages} passages"
        )
        if left_out:
            suffixes = sorted({Path(name).suffix.lower() or "no suffix" for name in left_out})
            out.print(f"{len(left_out)} left out ({', '.join(suffixes)}): a file that you name yourself is added")
    if cancel.is_set():
        click.echo("edge: interrupted; what is counted above is safe, run the same command to go on", err=True)
        return 130
    return 1 if tally["failed"] else 0


@click.command()
@options("store")
def list_command(settings: Settings, as_json: bool) -> None:
    """List the documents in the store."""
    with existing_store(settings) as store:
        documents = store.documents()
    if as_json:
        print_json({"store": settings.store, "documents": documents})
        return
    out = console()
    if documents:
        _show(documents, out)
    out.print(f"{len(documents)} documents in {settings.store}")


def _show(documents: Sequence[DocumentInfo], out: Console) -> None:
    """A table on a terminal; elsewhere, for other programs, a line each with tabs between."""
    from rich.table import Table

    columns = ("document", "title", "passages", "characters", "label", "added")
    table = Table(box=None)
    for column in columns:
        right, long = column in ("passages", "characters"), column in ("document", "title")
        # A name is folded and never cut: `edge remove` and `edge label` want the whole.
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=not long)
    for each in documents:
        row = (each.name, each.title, str(each.passages), str(each.characters), each.label, each.added_at[:16])
        if out.is_terminal:
            table.add_row(*row)
        else:
            print("\t".join(row))
    if out.is_terminal:
        out.print(table)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.argument("label", type=_LABELS)
@options("store")
def label_command(settings: Settings, names: tuple[str, ...], label: str, as_json: bool) -> None:
    """Label documents, by the names that `edge list` shows or by their paths: private, public or none.

    A folder stands for all documents below it. A private document keeps every turn that has read it on the device,
    in any privacy mode; a public one may leave where passages are sent; one without a label leaves no oftener than
    the settings say.
    """
    with existing_store(settings) as store:
        found, missing = _meant(store, names)
        for name in found:
            store.set_label(name, _stored(label) or "")
    if as_json:
        print_json({"labelled": len(found), "label": _stored(label), "missing": missing})
    else:
        console().print(f"{len(found)} labelled {label}")
    if missing:
        raise DocumentError(f"not in {settings.store}: {', '.join(missing)}", hint="see `edge list`")


@click.command()
@click.argument("names", nargs=-1, required=True)
@options("store")
def remove_command(settings: Settings, names: tuple[str, ...], as_json: bool) -> int:
    """Remove documents by the names that `edge list` shows, or by their paths; a folder stands for all below it."""
    with existing_store(settings) as store:
        found, missing = _meant(store, names)
        removed = [name for name in found if store.delete(name)]
    if removed:
        _forget_prompts(settings)
    if as_json:
        print_json({"removed": removed, "missing": missing})
    else:
        console().print(f"{len(removed)} removed")
    if missing:
        raise DocumentError(f"not in {settings.store}: {', '.join(missing)}", hint="see `edge list`")
    return 0


def _meant(store: Store, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The documents in the store that are meant by these names, paths and folders, and the names that mean none."""
    from ..ingest import document_name
    from ..storage.schema import storable_name

    present = {document.name for document in store.documents()}
    found: dict[str, None] = {}
    missing = []
    for name in names:
        path = name if name in present else storable_name(document_name(name))
        below = path.rstrip(os.sep) + os.sep
        meant = [path] if path in present else sorted(each for each in present if each.startswith(below))
        if meant:
            found.update(dict.fromkeys(meant))
        else:
            missing.append(name)
    return list(found), missing


def _forget_prompts(settings: Settings) -> None:
    """What was evaluated may hold text that is in no document any more."""
    from ..engines.prefix_folder import FOLDER, PrefixFolder

    PrefixFolder(settings.home / FOLDER, 0).clear()


@click.command()
@click.argument("query")
@click.option("-k", default=5, show_default=True, type=click.IntRange(1, 100), help="How many passages.")
@options("store", "bundle", "require_signature", "encoder")
def search_command(settings: Settings, query: str, k: int, as_json: bool) -> None:
    """Find the passages that fit QUERY best: by words (BM25) and by meaning (vectors), scores fused."""
    require_store(settings)
    with Edge.open(settings=settings) as edge:
        edge.search(query, 1)  # loads the encoder and the index, so that what is shown is the search itself
        started = time.perf_counter()
        hits = edge.search(query, k)
        milliseconds = (time.perf_counter() - started) * 1000
    if as_json:
        print_json({"query": query, "milliseconds": milliseconds, "hits": hits})
        return
    from rich.text import Text

    out = console()
    if not hits:
        out.print(f"nothing found in {settings.store}")
    for number, hit in enumerate(hits, 1):
        out.print(Text.assemble((f"[{number}]", "bold"), f" {_where(hit)}  ", (_scores(hit), "dim")))
        out.print("    " + " ".join(hit.passage.text.split())[:300])
    out.print(f"{milliseconds:.0f} ms", style="dim")


@click.command()
@options("store", "bundle", "require_signature", "encoder")
def reindex_command(settings: Settings, as_json: bool) -> None:
    """Embed every passage again, after a change of encoder. The old vectors stay valid until the end."""
    with existing_store(settings) as store:
        encoder = load_encoder(settings)
        with progress_bar("embedding") as bar:
            store.reindex(encoder, progress=lambda done, total: bar(done, total, ""))
        counts = store.counts()
    if as_json:
        print_json({"passages": counts.passages, "encoder": settings.encoder})
    else:
        console().print(f"{counts.passages} passages embedded with {settings.encoder}")


def _stored(label: str | None) -> str | None:
    """The word for no label is none."""
    return "" if label == "none" else label


def _where(hit: Hit) -> str:
    passage = hit.passage
    heading = f" › {passage.heading}" if passage.heading else ""
    return f"{passage.document}{heading} ({passage.start}-{passage.end})"


def _scores(hit: Hit) -> str:
    words = f"words #{hit.bm25_rank}" if hit.bm25_rank else "words -"
    meaning = f"meaning #{hit.vector_rank}" if hit.vector_rank else "meaning -"
    cosine = f" ({hit.similarity:.2f})" if hit.similarity is not None else ""
    return f"{words}, {meaning}{cosine}"
