"""`edge ask` and `edge chat`: answers that stream to the terminal, with their evidence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event as Flag
from typing import Any

import click

from ..config import Settings
from ..conversation import Conversation
from ..edge import Edge
from ..errors import ConfigError
from ..json_values import answer_document
from ..loading import choose_decoder, require_store
from ..privacy.gate import Outgoing
from ..records import Answer, Citation, Event
from ..route import Policy, WhenUnsure
from .options import cancel_on_interrupt, console, options, print_json

_MODELS = (
    *("store", "bundle", "require_signature", "model", "adapter", "encoder", "reader", "context", "threads"),
    *("evidence_tokens", "cache_type", "isolated"),
    *("remote", "remote_model", "remote_key_file", "remote_prices", "budget", "privacy", "privacy_send"),
)


def _answer_options(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option(
            "--when-unsure",
            type=click.Choice(["abstain", "local", "remote"]),
            help="What to do with a doubtful answer; default: ask a remote if there is one and --privacy lets it.",
        ),
        click.option("--task", default="", help="The kind of question, for a calibration that knows several."),
        click.option("--why", is_flag=True, help="Explain the decision: signals, threshold, what was sent."),
        click.option("--hold", is_flag=True, help="Show nothing before the decision on the whole answer."),
        click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1, 8192)),
        click.option("--brief", is_flag=True, help="Only the words of the answer."),
        click.option("-k", default=8, show_default=True, type=click.IntRange(1, 50), help="Passages to consider."),
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class _Manner:
    """How `ask` and `chat` answer: their common options."""

    when_unsure: WhenUnsure | None
    max_tokens: int
    brief: bool
    k: int
    task: str
    why: bool
    hold: bool

    def events(
        self, edge: Edge, question: str, cancel: Flag, conversation: Conversation | None = None
    ) -> Iterator[Event]:
        return edge.stream(
            question,
            style="brief" if self.brief else "full",
            max_tokens=self.max_tokens,
            k=self.k,
            conversation=conversation,
            cancel=cancel,
            task=self.task,
            hold=None if self.hold else 0,
        )


@click.command()
@click.argument("question")
@_answer_options
@options(*_MODELS)
def ask_command(settings: Settings, question: str, as_json: bool, **manner: Any) -> int:
    """Answer QUESTION from the documents, with citations, or say that they do not hold the answer.

    Nothing leaves the device unless a remote is given and --privacy is not `local_only`; then the question is sent,
    redacted, when the documents do not support an answer or the local one is not sure enough (`edge calibrate`).
    """
    if not question.strip():
        raise ConfigError("the question is empty", hint="give its words, in quotes")
    how = _Manner(**manner)
    with _open(settings, how, as_json) as edge, cancel_on_interrupt() as cancel:
        answer = _show(how.events(edge, question, cancel), quiet=as_json, asks=not settings.offline)
    if as_json:
        print_json(answer_document(question, answer))
    else:
        _show_evidence(answer, why=how.why)
    return 130 if cancel.is_set() else 0


@click.command()
@_answer_options
@options(*_MODELS)
def chat_command(settings: Settings, as_json: bool, **manner: Any) -> None:
    """Ask question after question; what was said before is kept. `/undo` takes a turn back, `/quit` ends.

    Questions are read from standard input, one a line. Ctrl-C stops an answer, Ctrl-D ends the chat. With
    --json each answer is one line of JSON.
    """
    conversation, how = Conversation(), _Manner(**manner)
    with _open(settings, how, as_json) as edge:
        if not as_json:
            counts = edge.store.counts()
            console().print(f"{counts.documents} documents, {edge.engine.name}; /undo, /quit", style="dim")
        for question in _questions(prompt=not as_json):
            if question == "/quit":
                break
            if question == "/undo":
                click.echo("forgotten" if conversation.undo() else "nothing to undo", err=True)
                continue
            with cancel_on_interrupt() as cancel:
                events = how.events(edge, question, cancel, conversation)
                answer = _show(events, quiet=as_json, asks=not settings.offline)
            if as_json:
                print_json(answer_document(question, answer))
            else:
                _show_evidence(answer, why=how.why)


def _open(settings: Settings, how: _Manner, as_json: bool) -> Edge:
    if how.when_unsure == "remote" and not settings.remote:
        raise ConfigError("--when-unsure remote needs a remote", hint="give --remote URL and --remote-model NAME")
    if how.when_unsure == "remote" and settings.privacy == "local_only":
        raise ConfigError(
            "--when-unsure remote, but the privacy mode is local_only: nothing may leave this device",
            hint="give --privacy ask, prefer_local or prefer_remote",
        )
    require_store(settings)
    if settings.model is not None:
        choose_decoder(settings)  # a wrong name is said at once, and not first where an answer needs the model
    policy = Policy(how.when_unsure) if how.when_unsure else None
    asks = sys.stdin.isatty() and not as_json
    return Edge.open(settings=settings, policy=policy, consent=_consent if asks else None)


def _consent(outgoing: Outgoing) -> bool:
    """Show exactly what would be sent, and ask."""
    click.echo("\nThis would be sent:\n" + outgoing.payload.decode("utf-8", "replace"), err=True)
    return click.confirm("Send it?", err=True)


def _questions(*, prompt: bool) -> Iterator[str]:
    terminal = prompt and sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  # line editing and history come with the import
    while True:
        try:
            line = input("\n> " if terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            click.echo("", err=True)
            return
        if line.strip():
            yield line.strip()


def _show(events: Iterator[Event], *, quiet: bool, asks: bool) -> Answer:
    """Write provisional text as it comes, on a terminal; elsewhere the answer alone. Return the final answer.

    `asks` is whether a hand-off opens a connection; offline it ends with a reason at once.
    """
    live, shown = sys.stdout.isatty() and not quiet, ""
    for event in events:
        if event.kind == "notice":
            click.echo(f"edge: {event.text}", err=True)
        elif event.kind == "provisional" and live:
            shown += event.text
            sys.stdout.write(event.text)
            sys.stdout.flush()
        elif event.kind == "handoff" and live:
            note = f"[asking the remote: {event.text}]\n" if asks else ""
            sys.stdout.write(("\n" if shown else "") + note)
            shown = ""
        elif event.answer is not None:
            if not quiet:
                # The stream showed what the model wrote; the answer may differ (invented citations dropped, or
                # an abstention), and the last thing on the screen must be the answer.
                differs = shown.strip() != event.answer.text
                sys.stdout.write(("\n" if shown else "") + (event.answer.text + "\n" if differs else ""))
            return event.answer
    raise AssertionError("a stream ends with a final event")


def _show_evidence(answer: Answer, *, why: bool = False) -> None:
    from rich.text import Text

    out = console()
    for citation in answer.citations:
        mark = f"[{citation.number}]" if citation.by == "model" else "found in"
        out.print(Text.assemble("  ", (mark, "cyan"), f" {_place(citation)}"))
        out.print(f'      "{" ".join(citation.quote.split())[:200]}"', style="dim")
    times = answer.timings
    decode_rate = (
        f", {answer.tokens.completion / times.decode_ms * 1000:.0f} tokens/s"
        if times.decode_ms and answer.tokens.completion > 1
        else ""
    )
    parts = [
        f"{name} {value:.0f} ms"
        for name, value in (
            ("retrieve", times.retrieve_ms),
            ("read", times.read_ms),
            ("prefill", times.prefill_ms),
            ("decode", times.decode_ms),
            ("remote", times.remote_ms),
        )
        if value is not None
    ]
    probability = ""
    if answer.route == "local":
        probability = ", probability " + ("unknown" if answer.probability is None else f"{answer.probability:.2f}")
    model = f" ({answer.model})" if answer.model else ""
    out.print(f"  {answer.route}{model}{probability}; {', '.join(parts)}{decode_rate}", style="dim")
    if why:
        out.print("\n".join(f"  {line}" for line in answer.explain().splitlines()), style="dim")
    else:
        for reason in answer.reasons:
            out.print(f"  - {reason}", style="dim")


def _place(citation: Citation) -> str:
    name = citation.document
    if os.sep in name:
        near = os.path.relpath(name)
        name = near if len(near) < len(name) else name
    heading = f" › {citation.heading}" if citation.heading else ""
    return f"{name}{heading} ({citation.start}-{citation.end})"
