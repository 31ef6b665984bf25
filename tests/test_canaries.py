"""200 planted secrets over a real loopback connection: none gets out, and without redaction they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from loopback import Loopback, completion

from edge_sdk.conversation import Conversation
from edge_sdk.edge import Edge
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.fallback.remote import OpenAIRemote
from edge_sdk.privacy import gate
from edge_sdk.privacy.canaries import Canary, canaries, leaks
from edge_sdk.privacy.gate import Outgoing, PastTurn, PrivacyPolicy, prepare
from edge_sdk.privacy.pseudonyms import Vault
from edge_sdk.prompt import Reading
from edge_sdk.records import Message, Passage
from edge_sdk.route import Policy
from edge_sdk.storage.store import Store

PLANTED = canaries(200)
Rounds = Callable[[tuple[Canary, ...]], list[tuple[str, list[str], list[str]]]]
Ask = Callable[[str, list[str], list[str]], str | None]
"""A question, texts that are retrieved, texts that were said before, to the reply; None where nothing was sent.

Whatever asks a remote can be put to the test through this: here it is the gate and `OpenAIRemote`.
"""


def through_the_gate(remote: OpenAIRemote, policy: PrivacyPolicy) -> Ask:
    vault = Vault()

    def ask(question: str, documents: list[str], said: list[str]) -> str | None:
        outgoing = prepare(
            policy,
            question,
            [Passage(at, "notes.md", "Notes", "", text, 0, len(text)) for at, text in enumerate(documents)],
            [PastTurn(text, text) for text in said],
            vault=vault,
            preview=lambda messages: remote.preview(messages, max_tokens=50),
        )
        if not isinstance(outgoing, Outgoing):
            return None
        stream, restorer = remote.complete(outgoing.messages, max_tokens=50), outgoing.vault.restorer()
        return "".join([*map(restorer.push, stream), restorer.finish()])

    return ask


def through_edge(remote: OpenAIRemote, policy: PrivacyPolicy, folder: Path) -> Ask:
    """The whole walk: documents in a store, a local model that never finds the answer, earlier turns."""
    edge = Edge(
        Store.open(folder / "store.db"),
        lambda: FakeEncoder(),
        lambda: (FakeEngine("The documents do not say.", context=100_000), Reading(50_000, True)),
        remote=remote,
        privacy=policy,
        policy=Policy("remote"),
    )

    def ask(question: str, documents: list[str], said: list[str]) -> str | None:
        for at, text in enumerate(documents):
            (folder / f"{at}.txt").write_text(f"{question}\n\n{text}", encoding="utf-8")
        edge.add([folder / f"{at}.txt" for at in range(len(documents))])
        conversation = Conversation()
        for text in said:
            conversation.append(text, Message("user", text), text)
        answer = edge.ask(question, conversation=conversation, k=50)
        assert not documents or answer.hits  # there was something to be leaked
        return answer.text if answer.route == "remote" else None

    return ask


def bodies(
    policy: PrivacyPolicy, rounds: Iterable[tuple[str, list[str], list[str]]], folder: Path | None = None
) -> list[bytes]:
    """Ask every question; what the server received, byte for byte (headers are without a secret).

    Of the gate, or with a `folder` to work in of `Edge`.
    """
    with Loopback(completion("no", "ted")) as server:
        remote = OpenAIRemote(server.url, "large")
        ask = through_edge(remote, policy, folder) if folder else through_the_gate(remote, policy)
        replies = [ask(*each) for each in rounds]
        server.join()
    assert all(reply == "noted" for reply in replies if reply is not None)
    assert len(server.requests) == sum(reply is not None for reply in replies)
    return [request.body for request in server.requests]


def in_questions(planted: tuple[Canary, ...]) -> list[tuple[str, list[str], list[str]]]:
    """Each secret in a question, and beside each ten others in documents and ten in what was said."""
    rounds = in_documents(planted)
    return [(canary.text, *rounds[at % len(rounds)][1:]) for at, canary in enumerate(planted)]


def in_documents(planted: tuple[Canary, ...]) -> list[tuple[str, list[str], list[str]]]:
    """Every second secret in documents, the others in earlier turns, ten at a time."""
    texts = [canary.text for canary in planted]
    parts = [texts[at : at + 20] for at in range(0, len(texts), 20)]
    return [(f"What is in part {at}?", part[::2], part[1::2]) for at, part in enumerate(parts)]


def test_in_local_only_mode_not_a_byte_leaves() -> None:
    assert bodies(PrivacyPolicy(), in_questions(PLANTED)) == []


def test_in_question_mode_no_planted_secret_leaves() -> None:
    sent = bodies(PrivacyPolicy("prefer_remote"), in_questions(PLANTED))
    assert len(sent) == 200
    assert leaks(sent, PLANTED) == []


@pytest.mark.parametrize("send", ["selected", "all"])
@pytest.mark.parametrize("level", ["pseudonymise", "redact"])
def test_where_passages_and_history_are_sent_no_planted_secret_leaves(send: str, level: str) -> None:
    policy = PrivacyPolicy("prefer_remote", send, level)  # type: ignore[arg-type]
    sent = bodies(policy, in_documents(PLANTED))
    assert len(sent) == 10
    assert leaks(sent, PLANTED) == []


@pytest.mark.parametrize("policy", [None, PrivacyPolicy("local_only", "all")], ids=["default", "local_only"])
def test_edge_sends_not_a_byte_unless_it_may(policy: PrivacyPolicy | None, tmp_path: Path) -> None:
    assert bodies(policy or PrivacyPolicy(), in_questions(PLANTED[:40]), tmp_path) == []


@pytest.mark.parametrize(("send", "rounds"), [("question", in_questions), ("all", in_documents)])
def test_edge_sends_no_planted_secret(send: str, rounds: Rounds, tmp_path: Path) -> None:
    sent = bodies(PrivacyPolicy("prefer_local", send), rounds(PLANTED), tmp_path)  # type: ignore[arg-type]
    assert len(sent) == len(rounds(PLANTED))
    assert leaks(sent, PLANTED) == []


def test_edge_without_redaction_leaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sabotage twin of the tests above."""
    monkeypatch.setattr(gate, "find", lambda text: ())
    leaked = leaks(bodies(PrivacyPolicy("prefer_local", "all"), in_documents(PLANTED), tmp_path), PLANTED)
    assert len(leaked) > 150


def test_a_gate_without_redaction_leaks_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sabotage twin: if this passed as clean, the tests above would prove nothing."""
    monkeypatch.setattr(gate, "find", lambda text: ())
    questions = in_questions(PLANTED[:20])
    assert leaks(bodies(PrivacyPolicy("prefer_remote"), questions), PLANTED[:20]) == list(PLANTED[:20])
    everything = PrivacyPolicy("prefer_remote", "all")
    assert len(leaks(bodies(everything, in_documents(PLANTED)), PLANTED)) == 200


def test_a_gate_that_reads_only_plain_text_leaks_the_encoded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_sdk.privacy import detectors

    monkeypatch.setattr(detectors, "readings", lambda text: ())
    monkeypatch.setattr(detectors, "decoded_runs", lambda text: ())
    leaked = leaks(bodies(PrivacyPolicy("prefer_remote", "all"), in_documents(PLANTED)), PLANTED)
    encodings = {canary.encoding for canary in leaked}
    assert "plain" not in encodings
    assert {"percent", "HTML entities", "full width", "zero width"} <= encodings


def test_a_private_document_keeps_every_byte_here() -> None:
    with Loopback(completion("noted")) as server:
        remote = OpenAIRemote(server.url, "large")
        for canary in PLANTED[:20]:
            private = Passage(1, "notes.md", "Notes", "", canary.text, 0, len(canary.text), "private")
            outgoing = prepare(PrivacyPolicy("prefer_remote", "all"), "What is in it?", [private])
            assert not isinstance(outgoing, Outgoing)
        assert remote.model == "large"
    assert server.connections == 0


def test_half_a_secret_counts_as_a_leak() -> None:
    canary = next(each for each in PLANTED if each.kind == "GitHub token")
    half = canary.secret[10:20]
    assert leaks([b'{"content":"' + half.encode() + b'"}'], PLANTED) == [canary]
    assert leaks([b'{"content":"\\u' + f"{ord(half[0]):04x}".encode() + half[1:].encode() + b'"}'], PLANTED) == [
        canary
    ]
    assert leaks([b"not JSON " + half.encode()], PLANTED) == [canary]
    assert leaks([b'{"content":"nothing of it"}'], PLANTED) == []
