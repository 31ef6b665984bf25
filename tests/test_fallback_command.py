"""`edge spend`, `edge outbox` and `edge label`, as the command line runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import loopback
import pytest
from loopback import Loopback
from made_documents import WordEncoder, put

from edge_sdk.cli import main
from edge_sdk.fallback.outbox import Outbox, Payload, policy_name
from edge_sdk.fallback.remote import OpenAIRemote
from edge_sdk.privacy.gate import PrivacyPolicy
from edge_sdk.records import Message
from edge_sdk.storage.store import Store

USAGE = {"prompt_tokens": 20, "completion_tokens": 5}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGE_STORE", str(tmp_path / "s.db"))
    return tmp_path / "s.db"


def queue(path: Path, url: str, text: str = "Who is NAME_1?", policy: PrivacyPolicy | None = None) -> str:
    with Store.open(path) as store:
        payload = Payload((Message("user", text),), 64, {"question": len(text)}, {"NAME": 1})
        name = policy_name(policy or PrivacyPolicy(), OpenAIRemote(url, "m"))
        return Outbox(store.database).put(payload, policy=name)


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def send(capsys: pytest.CaptureFixture[str], url: str, *more: str) -> tuple[int, Any]:
    return result(capsys, "outbox", "send", "--remote", url, "--remote-model", "m", *more)


def test_a_queued_question_is_sent_and_shows_in_spend(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Loopback(loopback.document("A poet.", usage=USAGE)) as server:
        id = queue(path, server.url)
        code, sent = send(
            capsys, server.url, "--privacy", "prefer_local", "--remote-prices", "1/2", "--budget", "1/day"
        )
        assert (code, sent["answered"]) == (0, 1)
        assert send(capsys, server.url, "--privacy", "prefer_local")[1]["questions"] == []
        (request,) = server.requests
    (question,) = result(capsys, "outbox", "list")[1]["questions"]
    assert (question["id"], question["state"], question["result"]) == (id, "answered", "A poet.")
    assert request.headers["idempotency-key"] == question["idempotency_key"]
    spend = result(capsys, "spend")[1]
    assert spend["day"] == spend["month"] == {"money": "0.00003", "micro": 30, "tokens": 25, "calls": 1}
    (call,) = spend["calls"]
    assert (call["state"], call["outcome"], call["characters"]) == ("settled", "stop", {"question": 14})
    for command in (["spend", "--budget", "1/day"], ["outbox", "list"]):
        assert main(command) == 0
    shown = capsys.readouterr().out
    assert "0.00003 of 1.00, 25 tokens, 1 calls" in shown
    assert "A poet." in shown


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "local_only"),
        (["--privacy", "ask"], "did not agree"),
        (["--privacy", "prefer_local", "--budget", "1tokens/request"], "budget of the request"),
        (["--privacy", "prefer_local", "--offline"], "offline"),
    ],
)
def test_what_the_settings_no_longer_allow_stays_in_the_outbox(
    path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
) -> None:
    with Loopback(loopback.document("A poet.")) as server:
        queue(path, server.url)
        code, sent = send(capsys, server.url, *flags)
        assert (code, sent["answered"]) == (1, 0)
        assert server.connections == 0
    (question,) = result(capsys, "outbox", "list")[1]["questions"]
    assert question["state"] == "queued"
    assert reason in question["result"]


def test_a_question_for_another_remote_or_with_a_secret_in_it_is_not_sent(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Loopback(loopback.document("A poet.")) as server:
        queue(path, "https://other.example")
        queue(path, server.url, policy=PrivacyPolicy(send="all"))
        queue(path, server.url, "Is ada@example.org hers?")
        _, sent = send(capsys, server.url, "--privacy", "prefer_remote")
        assert server.connections == 0
    assert [question["state"] for question in sent["questions"]] == ["queued"] * 3
    assert "may not leave (EMAIL)" in sent["questions"][2]["result"]


def test_in_mode_ask_yes_is_agreement(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Loopback(loopback.document("A poet.")) as server:
        queue(path, server.url)
        assert send(capsys, server.url, "--privacy", "ask", "--yes")[1]["answered"] == 1


def test_a_budget_in_money_without_prices_sends_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Loopback(loopback.document("A poet.")) as server:
        queue(path, server.url)
        flags = ["--remote", server.url, "--remote-model", "m", "--privacy", "prefer_local", "--budget", "1/day"]
        assert main(["outbox", "send", *flags]) == 1
        assert server.connections == 0
    assert "EDGE_REMOTE_PRICES" in capsys.readouterr().err


def test_questions_are_dropped(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = queue(path, "https://a.example"), queue(path, "https://a.example", "Another?")
    assert result(capsys, "outbox", "drop") == (0, {"dropped": 0})
    assert result(capsys, "outbox", "drop", first) == (0, {"dropped": 1})
    assert main(["outbox", "drop", first]) == 1
    assert "not in the outbox" in capsys.readouterr().err
    assert main(["outbox", "drop", second, "--all"]) == 2
    assert result(capsys, "outbox", "drop", "--all") == (0, {"dropped": 1})


def test_an_unused_store_has_spent_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.open(path).close()
    assert main(["spend"]) == 0
    assert "day    0.00, 0 tokens, 0 calls" in capsys.readouterr().out


def test_a_document_is_labelled_and_listed_with_its_label(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(path) as store:
        put(store, WordEncoder(), "a.md", "alpha")
        put(store, WordEncoder(), "b.md", "beta")
    assert result(capsys, "label", "a.md", "b.md", "private") == (
        0,
        {"labelled": 2, "label": "private", "missing": []},
    )
    assert main(["label", "b.md", "none"]) == 0
    capsys.readouterr()
    documents = result(capsys, "list")[1]["documents"]
    assert {document["name"]: document["label"] for document in documents} == {"a.md": "private", "b.md": ""}
    assert main(["label", "missing.md", "private"]) == 1
    assert "not in" in capsys.readouterr().err
    assert main(["label", "a.md", "secret"]) == 2


@pytest.mark.model
def test_documents_are_added_with_a_label_and_unchanged_ones_get_it_too(
    edge_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_HOME", str(edge_home))
    monkeypatch.setenv("EDGE_STORE", str(tmp_path / "s.db"))
    (tmp_path / "a.md").write_text("The heirloom is in the attic.")
    for flags, label in ((["--label", "private"], "private"), ([], "private"), (["--label", "public"], "public")):
        assert main(["add", str(tmp_path / "a.md"), *flags]) == 0
        capsys.readouterr()
        (document,) = result(capsys, "list")[1]["documents"]
        assert document["label"] == label
