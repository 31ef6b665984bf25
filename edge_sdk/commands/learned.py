"""`edge learned`: what was learned from remote answers, and the user's word on it. See `fallback/learned.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..config import Settings
from ..errors import ConfigError
from ..fallback.learned import LearnedAnswers
from ..fallback.learned_table import STATES, LearnedAnswer, State
from ..loading import existing_store
from .options import console, options, print_json

_IDS = click.argument("ids", nargs=-1, required=True, type=int)


@click.command()
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@options("store")
def learned_list_command(settings: Settings, state: State | None, as_json: bool) -> None:
    """List what was learned from remote answers, the newest first.

    An answer is served once it is accepted: by you, or because another call or a passage agreed with it.
    """
    with _learned(settings) as learned:
        answers = learned.answers(*([state] if state else []))
    if as_json:
        print_json({"store": settings.store, "answers": answers})
        return
    out = console()
    for each in answers:
        source = f"{each.provenance.model}, {each.provenance.date[:10]}, expires {each.expires[:10]}"
        out.print(f"{each.id}  {each.state}  {each.question}")
        out.print(f"    {' '.join(each.answer.split())[:300]}")
        out.print("; ".join((f"    {source}", f"served {each.uses} times", *each.provenance.agreement)))
    out.print(f"{len(answers)} answers in {settings.store}")


@click.command()
@_IDS
@options("store")
def learned_accept_command(settings: Settings, ids: tuple[int, ...], as_json: bool) -> None:
    """Serve these answers from now on, whatever they were; each stands for 90 days."""
    with _learned(settings) as learned:
        _report("accepted", [learned.accept(id) for id in ids], as_json)


@click.command()
@_IDS
@options("store")
def learned_reject_command(settings: Settings, ids: tuple[int, ...], as_json: bool) -> None:
    """Never serve these answers, and never learn the same text for their questions again."""
    with _learned(settings) as learned:
        _report("rejected", [learned.reject(id) for id in ids], as_json)


@click.command()
@_IDS
@options("store")
def learned_drop_command(settings: Settings, ids: tuple[int, ...], as_json: bool) -> None:
    """Forget these answers as if they had never been."""
    with _learned(settings) as learned:
        for id in ids:
            learned.drop(id)
    if as_json:
        print_json({"dropped": ids})
    else:
        console().print(f"{len(ids)} dropped")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@options("store")
def learned_export_command(settings: Settings, file: Path, as_json: bool) -> None:
    """Write the accepted answers to FILE as a distillation set: one JSON object a line.

    Questions of which something was redacted before they were sent are left out.
    """
    with _learned(settings) as learned:
        rows = learned.distillation_set()
        left_out = len(learned.answers("accepted")) - len(rows)
    partial = file.with_name(f"{file.name}.part")
    try:
        # Only for this user, as the store is; the name appears when all is there.
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:  # noqa: PTH123
            out.writelines(json.dumps(row) + "\n" for row in rows)
        partial.replace(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    if as_json:
        print_json({"file": file, "answers": len(rows), "left_out_as_redacted": left_out})
    else:
        console().print(f"{len(rows)} answers written to {file}, {left_out} left out as redacted")


@contextmanager
def _learned(settings: Settings) -> Iterator[LearnedAnswers]:
    with existing_store(settings) as store:
        yield LearnedAnswers(store.database)


def _report(word: str, answers: list[LearnedAnswer], as_json: bool) -> None:
    if as_json:
        print_json({word: answers})
        return
    for each in answers:
        console().print(f"{word} {each.id}: {each.question}")
