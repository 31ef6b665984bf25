"""`edge privacy`: the exact bytes of a request, and planted secrets that do or do not get out."""

from __future__ import annotations

import hashlib
import json

import pytest

from edge_sdk.cli import main
from edge_sdk.fallback.remote import OpenAIRemote
from edge_sdk.privacy import gate
from edge_sdk.privacy.gate import Outgoing, PrivacyPolicy, prepare

REMOTE = ("--remote", "http://127.0.0.1:9", "--remote-model", "large")
QUESTION = "Is jo@x.de known at 192.168.17.4?"


def expected() -> bytes:
    sent = prepare(PrivacyPolicy("prefer_remote"), QUESTION)
    assert isinstance(sent, Outgoing)
    return OpenAIRemote("http://127.0.0.1:9", "large").preview(sent.messages, max_tokens=1024)


def test_preview_prints_the_bytes_that_would_be_sent(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["privacy", "preview", QUESTION, *REMOTE]) == 0
    out, err = capsysbinary.readouterr()
    assert out == expected() + b"\n"
    assert b"Is EMAIL_1 known at IP_1?" in out
    assert b"1 EMAIL, 1 IP" in err
    assert b"jo@" not in out + err


def test_preview_as_json_has_the_body_its_hash_and_what_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "preview", QUESTION, *REMOTE, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["body"].encode() == expected()
    assert document["sha256"] == hashlib.sha256(expected()).hexdigest()
    assert document["entities"] == {"EMAIL": 1, "IP": 1}
    assert document["url"] == "http://127.0.0.1:9/v1/chat/completions"


def test_preview_without_a_remote_says_that_nothing_can_leave(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "preview", QUESTION]) == 1
    assert "nothing can leave" in capsys.readouterr().err


def test_preview_of_what_may_not_leave_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "preview", "  ", *REMOTE]) == 1
    assert "no question" in capsys.readouterr().err


@pytest.mark.parametrize("level", [(), ("--redact",)])
def test_no_canary_gets_out(level: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", "test", "--json", "--seed", "3", *level]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["canaries"] == 200
    assert document["leaked"] == 0
    assert [(each["mode"], each["requests"]) for each in document["rounds"]] == [
        ("local_only", 0), ("prefer_local", 200), ("prefer_local", 200), ("prefer_local", 200),
    ]  # fmt: skip


def test_a_leak_is_exit_code_one_and_names_what_leaked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "find", lambda text: ())
    assert main(["privacy", "test", "--canaries", "20"]) == 1
    out = capsys.readouterr().out
    assert "prefer_local, question: 20 requests, 20 of 20 leaked" in out
    assert "local_only, all: 0 requests, 0 of 20 leaked" in out
    assert "GitHub token, plain" in out
