"""`edge ask` and `edge chat`: answers that stream to the terminal, with their evidence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from threading import Event as Flag

import click

from ..config import Settings
from ..conversation import Conversation
from ..edge import Edge
from ..errors import ConfigError
from ..records import Answer, Citation, Event
from ..route import Policy
from .options import cancel_on_interrupt, console, options, print_json

_MODELS = ("store", "model", "encoder", "context", "threads", "remote", "remote_model", "remote_key_file")


def _answer_options(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option(
            "--when-unsure",
            type=click.Choice(["abstain", "local", "remote"]),
            default="abstain",
            show_default=True,
            help="What to do when the documents do not support an answer.",
        ),
        click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1, 8192)),
        click.option("--brief", is_flag=True, help="Only the words of the answer."),
        click.option("-k", default=8, show_default=True, type=click.IntRange(1, 50), help="Passages to consider."),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("question")
@_answer_options
@options(*_MODELS)
def ask_command(
    settings: Settings, question: str, when_unsure: str, max_tokens: int, brief: bool, k: int, as_json: bool
) -> int:
    """Answer QUESTION from the documents, with citations, or say that they do not hold the answer.

    Nothing leaves the device unless a remote is given and --when-unsure is `remote`; then the question alone
    is sent, and only when the documents do not support an answer.
    """
    with _open(settings, when_unsure) as edge, cancel_on_interrupt() as cancel:
        events = edge.stream(
            question, style="brief" if brief else "full", max_tokens=max_tokens, k=k, cancel=cancel
        )
        answer = _show(events, quiet=as_json)
    if as_json:
        print_json(_as_document(question, answer))
    else:
        _show_evidence(answer)
    return 130 if cancel.is_set() else 0


@click.command()
@_answer_options
@options(*_MODELS)
def chat_command(settings: Settings, when_unsure: str, max_tokens: int, brief: bool, k: int, as_json: bool) -> None:
    """Ask question after question; what was said before is kept. `/undo` takes a turn back, `/quit` ends.

    Questions are read from standard input, one a line. Ctrl-C stops an answer, Ctrl-D ends the chat. With
    --json each answer is one line of JSON.
    """
    conversation = Conversation()
    with _open(settings, when_unsure) as edge:
        if not as_json:
            counts = edge.store.counts()
            console().print(f"[dim]{counts.documents} documents, {edge.engine.name}; /undo, /quit[/dim]")
        for question in _questions(prompt=not as_json):
            if question == "/quit":
                break
            if question == "/undo":
                click.echo("forgotten" if conversation.undo() else "nothing to undo", err=True)
                continue
            with cancel_on_interrupt() as cancel:
                answer = _answer(edge, conversation, question, brief, max_tokens, k, cancel, as_json)
            if as_json:
                print_json(_as_document(question, answer))
            else:
                _show_evidence(answer)


def _answer(
    edge: Edge,
    conversation: Conversation | None,
    question: str,
    brief: bool,
    max_tokens: int,
    k: int,
    cancel: Flag,
    quiet: bool,
) -> Answer:
    events = edge.stream(
        question,
        style="brief" if brief else "full",
        max_tokens=max_tokens,
        k=k,
        conversation=conversation,
        cancel=cancel,
    )
    return _show(events, quiet=quiet)


def _open(settings: Settings, when_unsure: str) -> Edge:
    if when_unsure == "remote" and not settings.remote:
        raise ConfigError("--when-unsure remote needs a remote", hint="give --remote URL and --remote-model NAME")
    if not settings.store.exists():
        raise ConfigError(f"there is no store at {settings.store}", hint="run `edge add PATH` first")
    return Edge.open(settings=settings, policy=Policy(when_unsure=when_unsure))  # type: ignore[arg-type]


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


def _show(events: Iterator[Event], *, quiet: bool) -> Answer:
    """Write provisional text as it comes; return the final answer."""
    shown = ""
    for event in events:
        if event.kind == "notice":
            click.echo(f"edge: {event.text}", err=True)
        elif event.kind == "provisional" and not quiet:
            shown += event.text
            sys.stdout.write(event.text)
            sys.stdout.flush()
        elif event.kind == "handoff" and not quiet:
            sys.stdout.write(("\n" if shown else "") + f"[asking the remote: {event.text}]\n")
            shown = ""
        elif event.answer is not None:
            if not quiet:
                # The stream showed what the model wrote; the answer may differ (invented citations dropped, or
                # an abstention), and the last thing on the screen must be the answer.
                differs = shown.strip() != event.answer.text
                sys.stdout.write(("\n" if shown else "") + (event.answer.text + "\n" if differs else ""))
            return event.answer
    raise AssertionError("a stream ends with a final event")


def _show_evidence(answer: Answer) -> None:
    from rich.markup import escape

    out = console()
    for citation in answer.citations:
        mark = f"[{citation.number}]" if citation.by == "model" else "found in"
        out.print(f"  [cyan]{escape(mark)}[/cyan] {escape(_place(citation))}", soft_wrap=True)
        out.print(f'      [dim]"{escape(" ".join(citation.quote.split())[:200])}"[/dim]')
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
            ("prefill", times.prefill_ms),
            ("decode", times.decode_ms),
            ("remote", times.remote_ms),
        )
        if value is not None
    ]
    probability = "unknown" if answer.probability is None else f"{answer.probability:.2f}"
    out.print(f"  [dim]{answer.route}{f' ({answer.model})' if answer.model else ''}, probability {probability}; "
              f"{', '.join(parts)}{decode_rate}[/dim]")  # fmt: skip
    for reason in answer.reasons:
        out.print(f"  [dim]- {escape(reason)}[/dim]")


def _place(citation: Citation) -> str:
    name = citation.document
    if os.sep in name:
        near = os.path.relpath(name)
        name = near if len(near) < len(name) else name
    heading = f" › {citation.heading}" if citation.heading else ""
    return f"{name}{heading} ({citation.start}-{citation.end})"


def _as_document(question: str, answer: Answer) -> dict[str, object]:
    """The fixed keys of `edge ask --json`, and a few more; hits without their text, which the store has."""
    times, tokens = answer.timings, answer.tokens
    rates = {
        "prefill": _rate(tokens.prompt - tokens.cached, times.prefill_ms),
        "decode": _rate(tokens.completion, times.decode_ms),
    }
    return {
        "question": question,
        "text": answer.text,
        "citations": answer.citations,
        "probability": answer.probability,
        "route": answer.route,
        "reasons": answer.reasons,
        "timings": times,
        "tokens": tokens,
        "tokens_per_second": rates,
        "model": answer.model,
        "dropped_citations": answer.dropped_citations,
        "left_device": dict(answer.left_device),
        "hits": [replace(hit, passage=replace(hit.passage, text=hit.passage.text[:80])) for hit in answer.hits],
    }


def _rate(tokens: int, milliseconds: float | None) -> float | None:
    return tokens / milliseconds * 1000 if milliseconds and tokens > 0 else None
