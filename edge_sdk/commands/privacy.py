"""`edge privacy`: what would leave this device, byte for byte, and whether planted secrets get out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..config import Settings
from ..errors import ConfigError, PrivacyError
from .options import console, options, print_json

if TYPE_CHECKING:
    from ..privacy.canaries import Canary

_LEVEL = click.option(
    "--redact", is_flag=True, help="Take private values out for good instead of giving them pseudonyms."
)


@click.command()
@click.argument("question")
@click.option("--max-tokens", default=1024, show_default=True, type=click.IntRange(1, 8192))
@_LEVEL
@options("remote", "remote_model", "remote_key_file")
def privacy_preview_command(
    settings: Settings, question: str, max_tokens: int, redact: bool, as_json: bool
) -> None:
    """Print the body of the request that would carry QUESTION to the remote, and send nothing.

    It is what leaves when the privacy mode allows it and the question alone is sent, which is the default: private
    values replaced, no passage, no earlier turn.
    """
    from ..fallback.remote import remote_from_settings
    from ..privacy.gate import PrivacyPolicy, Withheld, prepare

    remote = remote_from_settings(settings)
    if remote is None:
        raise ConfigError(
            "no remote is set, so nothing can leave", hint="give --remote URL and --remote-model NAME to preview it"
        )
    outgoing = prepare(
        PrivacyPolicy(mode="prefer_remote", level="redact" if redact else "pseudonymise"),
        question,
        preview=lambda messages: remote.preview(messages, max_tokens=max_tokens),
    )
    if isinstance(outgoing, Withheld):
        raise PrivacyError(outgoing.reason)
    if as_json:
        body = outgoing.payload.decode()
        print_json({"url": remote.url, "body": body, **outgoing.describe()})
        return
    click.echo(outgoing.payload)
    replaced = ", ".join(f"{number} {kind}" for kind, number in outgoing.entities.items()) or "nothing"
    click.echo(f"{len(outgoing.payload)} bytes to {remote.url}; replaced: {replaced}", err=True)


@click.command()
@click.option("--canaries", "count", default=200, show_default=True, type=click.IntRange(1, 5000))
@click.option("--seed", default=0, show_default=True, help="Other seeds draw other secrets.")
@_LEVEL
@options()
def privacy_test_command(settings: Settings, count: int, seed: int, redact: bool, as_json: bool) -> int:
    """Plant made-up secrets in questions, passages and earlier turns, and look for them in what the gate lets out.

    Every kind (keys, passwords, cards, accounts, addresses, numbers) comes in every encoding (base64, hexadecimal,
    escapes, look-alikes). A recording remote takes the requests; no socket is opened. Exit code 1 when anything
    leaks.
    """
    from ..privacy.canaries import canaries

    planted = canaries(count, seed)
    rounds: list[dict[str, Any]] = []
    for mode, send in (
        ("local_only", "all"),
        ("prefer_local", "question"),
        ("prefer_local", "selected"),
        ("prefer_local", "all"),
    ):
        sent = _record(planted, mode, send, redact)
        rounds.append({"mode": mode, "send": send, "requests": len(sent), "bytes": sum(map(len, sent))})
        rounds[-1]["leaks"] = _leaked(sent, planted)
    leaked = sum(len(each["leaks"]) for each in rounds) + rounds[0]["requests"]
    if as_json:
        print_json({"canaries": count, "seed": seed, "leaked": leaked, "rounds": rounds})
    else:
        for each in rounds:
            head = f"{each['mode']}, {each['send']}"
            console().print(f"{head}: {each['requests']} requests, {len(each['leaks'])} of {count} leaked")
            for leak in each["leaks"]:
                console().print(f"  {leak['kind']}, {leak['encoding']}", style="red")
    return 1 if leaked else 0


def _record(planted: Sequence[Canary], mode: str, send: str, redact: bool) -> list[bytes]:
    """The bodies that a remote receives of turns with a canary in the question, a passage and the turn before."""
    from ..fallback.completions import request_body
    from ..fallback.remote import FakeRemote
    from ..privacy.gate import PastTurn, PrivacyPolicy, Withheld, prepare
    from ..records import Passage

    policy = PrivacyPolicy(mode, send, "redact" if redact else "pseudonymise")  # type: ignore[arg-type]
    remote = FakeRemote(*[["noted"]] * len(planted))
    for at, canary in enumerate(planted):
        read, asked, said = (planted[(at + step) % len(planted)].text for step in (1, 2, 3))
        outgoing = prepare(
            policy,
            canary.text,
            [Passage(at, "notes.txt", "Notes", "", read, 0, len(read))],
            [PastTurn(asked, said)],
        )
        if not isinstance(outgoing, Withheld):
            list(remote.complete(outgoing.messages, max_tokens=1))
    return [request_body("recorded", messages, max_tokens=1, temperature=0.0) for messages in remote.requests]


def _leaked(sent: Sequence[bytes], planted: Sequence[Canary]) -> list[dict[str, str]]:
    from ..privacy.canaries import leaks

    return [{"kind": each.kind, "encoding": each.encoding} for each in leaks(sent, planted)]
