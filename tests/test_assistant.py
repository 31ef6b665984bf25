"""The main job through the command line, on real models: add, search, ask, chat, a remote on loopback, offline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import Loopback, answer, completion

pytestmark = pytest.mark.model

MANUAL = """# Coffee machine

The tank holds 1.8 litres of water. Descale the machine every three months with citric acid.

To reset the machine, hold the steam button for five seconds until the red lamp blinks.
"""
QUESTION = "How do I reset the machine?"
ELSEWHERE = "Who won the chess olympiad in 1970?"
# Sockets are refused and name look-ups too, then the command runs as usual.
BLOCKED = """
import socket, sys
def refuse(*arguments, **options): sys.exit("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from edge_sdk.cli import main
sys.exit(main(sys.argv[1:]))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def edge(edge_home: Path, smollm2_path: Path, minilm_dir: Path, tmp_path: Path) -> Run:
    (tmp_path / "manual.md").write_text(MANUAL, encoding="utf-8")
    environment = {
        **os.environ,
        "EDGE_HOME": str(edge_home),
        "EDGE_STORE": str(tmp_path / "store.db"),
        "EDGE_MODEL": "smollm2",
        "EDGE_PREFIX_CACHE": "0",  # else what an earlier test has asked is not evaluated again
    }

    def run(
        *arguments: str, blocked: bool = False, text: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        start = ["-c", BLOCKED] if blocked else ["-m", "edge_sdk.cli"]
        return subprocess.run(
            [sys.executable, *start, *arguments],
            capture_output=True,
            text=True,
            input=text,
            env={**environment, **more},
            timeout=120,
        )

    return run


def last(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return document


def test_offline_under_a_socket_block_it_adds_searches_and_answers_with_evidence(edge: Run, tmp_path: Path) -> None:
    offline = {"blocked": True, "EDGE_OFFLINE": "1"}
    added = last(edge("add", str(tmp_path / "manual.md"), "--json", **offline))
    assert (added["added"], added["failed"]) == (1, 0)
    assert last(edge("add", str(tmp_path / "manual.md"), "--json", **offline))["unchanged"] == 1

    (first, *_) = last(edge("search", QUESTION, "--json", **offline))["hits"]  # type: ignore[misc]
    assert "steam button" in first["passage"]["text"]

    document = last(edge("ask", QUESTION, "--json", **offline))
    assert "steam button" in str(document["text"])
    assert document["probability"] is None
    assert document["route"] == "local"
    (citation, *_) = document["citations"]  # type: ignore[misc]
    assert citation["document"] == str(tmp_path / "manual.md")
    assert "steam button" in citation["quote"]
    timings, tokens = document["timings"], document["tokens"]
    assert all(timings[name] > 0 for name in ("retrieve_ms", "prefill_ms", "decode_ms"))  # type: ignore[index]
    assert tokens["prompt"] > tokens["cached"] >= 0  # type: ignore[index]
    assert last(edge("add", "py:heapq", "--json", **offline))["added"] == 1


def test_it_says_when_the_documents_do_not_hold_the_answer(edge: Run, tmp_path: Path) -> None:
    edge("add", str(tmp_path / "manual.md"))
    done = edge("ask", ELSEWHERE)
    assert done.returncode == 0
    assert done.stdout.startswith("The documents do not say.")
    assert "floor" in done.stdout


def test_the_answer_streams_and_ends_with_its_evidence(edge: Run, tmp_path: Path) -> None:
    edge("add", str(tmp_path / "manual.md"))
    done = edge("ask", QUESTION)
    assert "steam button" in done.stdout.splitlines()[0]
    assert "manual.md" in done.stdout
    assert "probability unknown" in done.stdout


def test_a_chat_keeps_what_was_said_and_can_undo(edge: Run, tmp_path: Path) -> None:
    edge("add", str(tmp_path / "manual.md"))
    done = edge(
        "chat", "--json", text=f"{QUESTION}\nHow much water does the tank of the machine hold?\n/undo\n/quit\n"
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["tokens"]["cached"] == 0
    assert second["tokens"]["cached"] > first["tokens"]["prompt"] // 2
    assert "forgotten" in done.stderr


def test_only_an_unsupported_question_leaves_the_device_and_nothing_else(edge: Run, tmp_path: Path) -> None:
    edge("add", str(tmp_path / "manual.md"))
    with Loopback(completion("The Soviet ", "Union.")) as server:
        remote = ("--remote", server.url, "--remote-model", "big", "--privacy", "prefer_local", "--json")
        assert last(edge("ask", QUESTION, *remote))["route"] == "local"
        assert server.requests == []
        document = last(edge("ask", ELSEWHERE, *remote, EDGE_REMOTE_KEY="sk-canary"))
    assert (document["route"], document["text"]) == ("remote", "The Soviet Union.")
    assert document["left_device"] == {"question": len(ELSEWHERE)}
    assert len(server.requests) == 1
    assert ELSEWHERE.encode() in server.received
    assert b"steam" not in server.received


@pytest.mark.parametrize("status", [429, 500])
def test_a_failing_remote_is_a_reason_and_not_an_error(edge: Run, tmp_path: Path, status: int) -> None:
    edge("add", str(tmp_path / "manual.md"))
    with Loopback(answer(status, "busy")) as server:
        remote = ("--remote", server.url, "--remote-model", "big", "--privacy", "prefer_local", "--json")
        document = last(edge("ask", ELSEWHERE, *remote))
    assert document["route"] == "abstain"
    assert str(status) in document["reasons"][-1]  # type: ignore[index]
    assert len(server.requests) == 1


def test_a_store_of_another_encoder_is_a_clear_error_that_reindex_mends(
    edge: Run, tmp_path: Path, minilm_dir: Path
) -> None:
    edge("add", str(tmp_path / "manual.md"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (other / name).write_bytes((minilm_dir / name).read_bytes())
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    done = edge("search", QUESTION, "--encoder", str(other))
    assert done.returncode == 1
    assert "edge reindex" in done.stderr
    assert done.stderr.count("\n") == 1
    assert edge("reindex", "--encoder", str(other)).returncode == 0
    assert "steam button" in edge("search", QUESTION, "--encoder", str(other)).stdout


def test_control_c_stops_an_answer_cleanly(edge: Run, tmp_path: Path, edge_home: Path) -> None:
    edge("add", str(tmp_path / "manual.md"))
    environment = {**os.environ, "EDGE_HOME": str(edge_home), "EDGE_STORE": str(tmp_path / "store.db")}
    command = [
        sys.executable,
        "-m",
        "edge_sdk.cli",
        "ask",
        QUESTION,
        "--model",
        "smollm2",
        "--when-unsure",
        "local",
    ]
    for delay in (0.1, 0.6, 1.2):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode in (0, 130, -signal.SIGINT)  # done before, stopped, or before Python was up
        assert process.returncode == -signal.SIGINT or "Traceback" not in error
