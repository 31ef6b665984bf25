"""`edge serve` as a program runs it: a process, a real model in a worker of its own, HTTP, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from bert_models import random_weights, write_bert
from gguf_files import tiny_llama
from served import events, said, streamed, until

pytest.importorskip("llama_cpp")

from edge_sdk.cli import main
from edge_sdk.config import load_settings
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.records import GenerateOptions, Message

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")
CHAT = "/chat/completions"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    tiny_llama(folder / "tiny.gguf", context=2048)
    weights = random_weights(hidden=16, heads=2, inner=32, layers=1, words=300, positions=64)
    write_bert(folder / "encoder", weights, "int8")
    return folder


def arguments(home: Path, *more: str) -> list[str]:
    return [
        *("serve", "--json", "--port", "0", "--home", str(home), "--store", str(home / "store.db")),
        *("--model", str(home / "tiny.gguf"), "--encoder", str(home / "encoder"), "--threads", "1"),
        *("--context", "512", *more),
    ]


@contextmanager
def running(home: Path, *more: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A server that listens, and what it has printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_")}
    with subprocess.Popen(
        [sys.executable, "-m", "edge_sdk.cli", *arguments(home, *more)],
        cwd=ROOT,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            yield process, json.loads(line)
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in found for child in each.read_text().split()]


def alone(home: Path, question: str, count: int) -> str:
    with GgufEngine.open(home / "tiny.gguf", context=512, threads=1) as engine:
        prompt = engine.render([Message("user", question)])
        return "".join(token.text for token in engine.generate(prompt, GenerateOptions(max_tokens=count)))


@POSIX
def test_a_served_model_says_what_it_says_alone_and_many_are_served_at_once(home: Path) -> None:
    questions = ["the cat", "the rain", "a comet", "the sea"]
    with running(home) as (process, told):
        assert told["models"] == ["edge", "tiny"]
        with (
            httpx.Client(base_url=told["url"], timeout=60, trust_env=False) as client,
            ThreadPoolExecutor(4) as pool,
        ):

            def ask(question: str) -> str:
                body = {"model": "tiny", "messages": said(question), "max_tokens": 12, "stream": True}
                return streamed(events(client.post(CHAT, json=body).text))

            found = list(pool.map(ask, questions * 2))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert found == [alone(home, question, 12) for question in questions] * 2


@POSIX
def test_an_interrupt_ends_what_runs_at_once_and_says_so(home: Path) -> None:
    with (
        running(home) as (process, told),
        httpx.Client(base_url=told["url"], timeout=60, trust_env=False) as client,
        ThreadPoolExecutor(24) as pool,
    ):
        body = {"model": "tiny", "messages": said("the cat"), "max_tokens": 400}
        asked = [pool.submit(client.post, CHAT, json={**body, "seed": number}) for number in range(24)]
        until(lambda: client.get(told["url"].replace("/v1", "/health")).json()["requests"] == 24)
        ending = time.monotonic()
        process.send_signal(signal.SIGINT)
        replies = [each.result() for each in asked]
        assert process.wait(30) == 0
        assert time.monotonic() - ending < 8
        assert process.stderr is not None
        assert process.stderr.read() == ""
    stopped = [reply for reply in replies if reply.status_code != 200]
    assert stopped
    assert {(reply.status_code, reply.json()["error"]["message"]) for reply in stopped} == {
        (503, "the server is ending; ask again in a while")
    }


@POSIX
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_worker_costs_what_runs_and_the_next_request_is_served(home: Path) -> None:
    with (
        running(home) as (process, told),
        httpx.Client(base_url=told["url"], timeout=60, trust_env=False) as client,
    ):
        body = {"model": "tiny", "messages": said("the cat"), "max_tokens": 12}
        assert client.post(CHAT, json=body).status_code == 200
        with client.stream("POST", CHAT, json={**body, "max_tokens": 400, "stream": True}) as reply:
            lines = reply.iter_lines()
            next(line for line in lines if '"content": "' in line)
            for child in children(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            last = [line for line in lines if line.startswith("data: ")][-1]
        assert last == "data: [DONE]" or "EngineCrashedError" in last, "it had ended, or says how it did"
        until(lambda: client.post(CHAT, json=body).status_code == 200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_port_that_is_taken_and_a_network_without_a_key_are_one_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*arguments(home), "--port", str(port)]) == 1
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err
    assert main([*arguments(home), "--host", "0.0.0.0"]) == 1
    assert "there is no key" in capsys.readouterr().err
    (home / "empty").write_text("\n")
    for file, said_of_it in (("empty", "is empty"), ("missing", "cannot be read")):
        assert main([*arguments(home), "--key-file", str(home / file)]) == 1
        assert said_of_it in capsys.readouterr().err
    assert main([*arguments(home), "--when-unsure", "remote"]) == 1
    assert "no remote" in capsys.readouterr().err


def test_the_model_is_apart_and_answers_several_unless_somebody_says_otherwise(home: Path) -> None:
    from edge_sdk.commands.serve import _for_serving

    flags = {"home": home, "model": str(home / "tiny.gguf")}
    found = _for_serving(load_settings(flags, {}), in_process=False)
    assert (found.parallel, found.isolated) == (4, True)
    found = _for_serving(load_settings({**flags, "parallel": 2}, {"EDGE_ISOLATED": "0"}), in_process=False)
    assert (found.parallel, found.isolated) == (2, False)
    assert not _for_serving(load_settings(flags, {}), in_process=True).isolated


@POSIX
def test_a_key_from_a_file_is_asked_for(home: Path) -> None:
    (home / "key").write_text("0123456789abcdef\n")
    with running(home, "--key-file", str(home / "key"), "--in-process", "--parallel", "1") as (_, told):
        url = told["url"]
        assert httpx.get(f"{url}/models", trust_env=False).status_code == 401
        right = {"Authorization": "Bearer 0123456789abcdef"}
        assert httpx.get(f"{url}/models", headers=right, trust_env=False).status_code == 200


def test_without_its_packages_it_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(arguments(home)) == 1
    assert "pip install 'edge-sdk[serve]'" in capsys.readouterr().err
