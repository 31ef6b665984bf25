"""What the command modules share: option sets, the way to settings, progress bars and JSON output."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from signal import SIGINT, getsignal, signal
from threading import Event as Flag
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from ..config import Settings, load_settings
from ..json_values import to_json

if TYPE_CHECKING:
    from rich.console import Console

Command = Callable[..., Any]

_OPTIONS: dict[str, Callable[[Command], Command]] = {
    "json": click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line."),
    "verbose": click.option("-v", "--verbose", is_flag=True, help="Show more, and full tracebacks."),
    "home": click.option("--home", type=click.Path(path_type=Path), help="Models and settings (EDGE_HOME)."),
    "store": click.option("--store", type=click.Path(path_type=Path), help="The SQLite file (EDGE_STORE)."),
    "model": click.option("--model", help="Decoder: a catalog name or a .gguf file (EDGE_MODEL)."),
    "adapter": click.option(
        "--adapter", help="LoRA adapter of the decoder: a .gguf file, a name in the bundle, or none."
    ),
    "encoder": click.option("--encoder", help="Encoder: a catalog name or a folder (EDGE_ENCODER)."),
    "reader": click.option("--reader", help="Reader of passages: a folder, or none."),
    "bundle": click.option(
        "--bundle", type=click.Path(path_type=Path), help="Models and calibrations: a .edge file or its folder."
    ),
    "require_signature": click.option(
        "--require-signature", is_flag=True, default=None, help="Take no bundle without a trusted signature."
    ),
    "context": click.option("--context", type=int, help="Tokens that prompt and answer may take together."),
    "cache_type": click.option(
        "--cache-type",
        type=click.Choice(["f16", "q8_0"], case_sensitive=False),
        help="Of the KV cache; q8_0 takes half the memory.",
    ),
    "threads": click.option("--threads", type=int, help="Threads of the engine; default: the usable cores."),
    "isolated": click.option(
        "--isolated", is_flag=True, default=None, help="Run the model in a process without keys and network."
    ),
    "parallel": click.option("--parallel", type=int, help="Answers that the model generates at once."),
    "evidence_tokens": click.option(
        "--evidence-tokens", type=int, help="Tokens of sentences chosen from the passages; 0: whole passages."
    ),
    "offline": click.option("--offline", is_flag=True, default=None, help="Open no socket (EDGE_OFFLINE=1)."),
    "remote": click.option("--remote", help="URL of an OpenAI-compatible server; off unless given."),
    "remote_model": click.option("--remote-model", help="Model name to ask the remote for."),
    "remote_key_file": click.option(
        "--remote-key-file", type=click.Path(path_type=Path), help="File with the key; or EDGE_REMOTE_KEY."
    ),
    "remote_prices": click.option("--remote-prices", help='Money for a million tokens, as "IN/OUT".'),
    "budget": click.option("--budget", help='The most to spend, as "0.50/day 9000tokens/day 20calls/month".'),
    "privacy_send": click.option(
        "--send",
        "privacy_send",
        type=click.Choice(["question", "selected", "all"]),
        help="Of what may leave, how much.",
    ),
    "privacy": click.option(
        "--privacy",
        type=click.Choice(["local_only", "prefer_local", "ask", "prefer_remote"]),
        help="What may leave.",
    ),
}
_SETTINGS = {field.name for field in fields(Settings)} - {"sources"}


def options(*names: str) -> Callable[[Command], Command]:
    """Add the named options; those that are settings arrive together as one `settings` argument.

    `json`, `verbose`, `home` and `offline` come with every command.
    """
    wanted = [*names, "home", "offline", "json", "verbose"]
    settings = _SETTINGS.intersection(wanted)  # a command may have an option of its own that is called like another

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def with_settings(**values: Any) -> Any:
            flags = {name: values.pop(name) for name in list(values) if name in settings}
            values.pop("verbose")
            return function(settings=load_settings(flags), **values)

        command: Command = with_settings
        for name in reversed(wanted):
            command = _OPTIONS[name](command)
        return command

    return decorate


def print_json(value: object) -> None:
    """One line of JSON on standard output; control characters and lone surrogates are escaped."""
    print(json.dumps(to_json(value), ensure_ascii=True))


def console() -> Console:
    """Where people read: standard output, coloured on a terminal only.

    Text is shown as it stands, brackets and colons too, for most of it comes from documents, names and models.
    """
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # no end of the process with 1: `cli` knows what it means

    return PipedConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)


def png_path(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """The callback of a `--plot` that draws a PNG: under another name it would be taken for something else."""
    if path is not None and path.suffix.lower() != ".png":
        raise click.BadParameter(f"{path.name!r} does not end in .png")
    return path


@contextmanager
def progress_bar(description: str, *, unit: str = "") -> Iterator[Callable[[float, float | None, str], None]]:
    """A function `update(done, total, detail)` that draws on standard error if that is a terminal, else nothing.

    `unit="bytes"` shows sizes and speed.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, detail: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(description, total=None, detail="")

        def update(done: float, total: float | None, detail: str) -> None:
            progress.update(task, completed=done, total=total, detail=detail[-60:])

        yield update


@contextmanager
def cancel_on_interrupt() -> Iterator[Flag]:
    """Ctrl-C sets the flag, so that work stops at a clean point; a second Ctrl-C interrupts at once."""
    flag = Flag()
    before = getsignal(SIGINT)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    signal(SIGINT, on_interrupt)
    try:
        yield flag
    finally:
        signal(SIGINT, before)
