"""The load probe: a model file is tried once, in another process, before native code of this one sees it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from gguf_files import tiny_llama
from lora_files import tiny_adapter

pytest.importorskip("llama_cpp")

from edge_sdk.engines import load_probe, worker_process
from edge_sdk.engines.load_probe import probe
from edge_sdk.engines.opening import Opening
from edge_sdk.errors import EdgeError, EngineCrashedError, EngineError, ModelDamagedError
from edge_sdk.model_files.gguf_header import read_header

SEGFAULT = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
HANGS = "import sys; sys.stdin.read()"
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture
def opening(tmp_path: Path) -> Opening:
    return Opening(tiny_llama(tmp_path / "tiny.gguf"), context=64, threads=1)


class Worker:
    """Counts the workers that are started; with a script, that is run in their place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: str = "") -> None:
        self.started = 0
        start = worker_process._start

        def counted() -> subprocess.Popen[bytes]:
            self.started += 1
            if not script:
                return start()
            pipe = subprocess.PIPE
            return subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe)

        monkeypatch.setattr(worker_process, "_start", counted)


def test_a_model_that_runs_is_tried_once(opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch)
    assert probe(opening, tmp_path)
    assert probe(opening, tmp_path)
    assert worker.started == 1
    content = json.loads((tmp_path / "probes.json").read_text())
    assert list(content["verdicts"].values()) == ["fine"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_known_file_is_not_hashed_again(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe(opening, tmp_path)
    monkeypatch.setattr(load_probe, "file_fingerprint", lambda path: pytest.fail("hashed again"))
    assert probe(opening, tmp_path)


@POSIX
def test_a_crash_is_an_error_and_is_remembered(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(monkeypatch, SEGFAULT)
    for hint in ("made to do harm", "probes.json"):
        with pytest.raises(EngineCrashedError, match="SIGSEGV") as crash:
            probe(opening, tmp_path)
        assert hint in crash.value.hint
    assert worker.started == 1


@POSIX
def test_a_verdict_is_of_the_bytes_and_of_what_runs_them(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Worker(patch, SEGFAULT)
        with pytest.raises(EngineCrashedError):
            probe(opening, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(load_probe, "version", lambda package: "another")
        assert probe(opening, tmp_path)
    with pytest.raises(EngineCrashedError):
        probe(opening, tmp_path)
    tiny_llama(opening.path, seed=2)
    assert probe(opening, tmp_path)


@POSIX
def test_an_end_that_says_nothing_of_the_file_is_not_remembered(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Worker(patch, KILLED)
        with pytest.raises(EngineCrashedError, match="SIGKILL"):
            probe(opening, tmp_path)
    with monkeypatch.context() as patch:
        Worker(patch, HANGS)
        patch.setattr(load_probe, "_SECONDS", 0.1)
        with pytest.raises(EngineError, match="not said a word within 0 s"):
            probe(opening, tmp_path)
    assert probe(opening, tmp_path)


def test_a_damaged_file_is_the_error_that_it_is(opening: Opening, tmp_path: Path) -> None:
    opening.path.write_bytes(opening.path.read_bytes()[:-100])
    with pytest.raises(ModelDamagedError):
        probe(opening, tmp_path)


def test_what_llama_cpp_refuses_is_its_error(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "odd.gguf", drop=["llama.attention.layer_norm_rms_epsilon"])
    with pytest.raises(EngineError, match="cannot load"):
        probe(Opening(path, context=64), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "edge-probes-1", "verdicts": 3}', "[" * 100_000])
def test_a_record_that_cannot_be_read_is_written_anew(opening: Opening, tmp_path: Path, content: str) -> None:
    (tmp_path / "probes.json").write_text(content)
    assert probe(opening, tmp_path)
    assert json.loads((tmp_path / "probes.json").read_text())["verdicts"]


def test_where_nothing_can_be_written_it_is_tried_each_time(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    worker = Worker(monkeypatch)
    for _ in range(2):
        assert probe(opening, tmp_path / "file" / "home")
    assert worker.started == 2


def test_where_no_process_can_be_started_nothing_is_known(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not probe(opening, tmp_path)
    assert not (tmp_path / "probes.json").exists()


def test_an_adapter_is_tried_with_its_model(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(monkeypatch)
    adapted = Opening(opening.path, context=64, threads=1, adapter=tiny_adapter(tmp_path / "a.gguf"))
    assert probe(opening, tmp_path)
    assert probe(adapted, tmp_path)
    assert worker.started == 2


# --- mutated files ----------------------------------------------------------------------------------


def mutated(base: bytes, pick: random.Random) -> bytes:
    """A file with some bytes changed, in the header, among the weights, or in both."""
    data, end = bytearray(base), base.index(b"blk.0.ffn_down.weight") + 60  # of the header
    where = pick.choice(["header", "weights", "both"])
    for _ in range(pick.randint(1, 4) if where != "weights" else 0):
        data[pick.randrange(8, end)] = pick.choice([0, 1, 2, 0x7F, 0x80, 0xFF, pick.randrange(256)])
    for _ in range(pick.choice([1, 10, 1000]) if where != "header" else 0):
        data[pick.randrange(end, len(data))] = pick.randrange(256)
    return bytes(data)


def campaign(folder: Path, count: int) -> Counter[str]:
    """What became of `count` mutated files whose header is accepted, and of their neighbours that are not."""
    pick, ends = random.Random(7), Counter[str]()
    base = tiny_llama(folder / "base.gguf").read_bytes()
    while ends.total() - ends["ModelDamagedError"] < count:
        path = folder / "mutated.gguf"
        path.write_bytes(mutated(base, pick))
        opening = Opening(path, context=64, threads=1)
        try:
            read_header(path)
            assert probe(opening, folder)
            ends["fine"] += 1
        except EdgeError as error:
            ends[type(error).__name__] += 1
            if isinstance(error, EngineCrashedError):
                ends[error.ending] += 0
                with pytest.raises(EngineCrashedError, match="remembers"):
                    probe(opening, folder)
        if hasattr(os, "waitpid"):
            with pytest.raises(ChildProcessError):  # none is left behind
                os.waitpid(-1, os.WNOHANG)
    return ends


@POSIX
def test_mutated_files_end_with_a_verdict_or_a_typed_error(tmp_path: Path) -> None:
    assert campaign(tmp_path, 3).total() >= 3


@POSIX
@pytest.mark.campaign
def test_300_mutated_files_end_with_a_verdict_or_a_typed_error(tmp_path: Path) -> None:
    ends = campaign(tmp_path, 300)
    print(dict(ends))
    assert ends["fine"] > 30
    assert ends.total() - ends["fine"] - ends["ModelDamagedError"] > 10
