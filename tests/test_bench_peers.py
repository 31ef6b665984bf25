"""Peers: which there are, and a server over loopback that answers, is late, lies or dies."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from edge_sdk.bench import peers
from edge_sdk.bench.peers import LoopbackServer, find_peers
from edge_sdk.errors import EngineError

SERVER = str(Path(__file__).with_name("sse_server.py"))


def started(mode: str, patience: float = 30.0) -> LoopbackServer:
    return LoopbackServer("fake server", [sys.executable, SERVER, mode], patience=patience)


@pytest.mark.parametrize("mode", ["words", "late"])
def test_a_server_is_asked_once_it_answers(mode: str) -> None:
    server = started(mode)
    try:
        reply = server.run("Which button?", 3)
        assert reply["produced"] == 3
        assert reply["first_ms"] > 0
        assert reply["rest_ms"] >= 0
        assert reply["peak_mb"] is None or reply["peak_mb"] > 1
    finally:
        server.stop()
    with pytest.raises(OSError):
        server.run("Which button?", 3)


@pytest.mark.parametrize(
    ("mode", "patience", "message"),
    [
        ("dies", 30.0, "fake server did not start: the model cannot be loaded"),
        ("refuses", 30.0, "fake server replied 404"),
        ("loads", 0.1, "gave no answer in 0 seconds"),
        ("broken", 30.0, "out of memory"),
    ],
)
def test_a_server_that_does_not_work_is_one_line(mode: str, patience: float, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        started(mode, patience)


def test_what_is_not_installed_is_left_out_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found, missing = find_peers(model, 512)
    assert found == {}
    assert missing.keys() == {"llama_class", "llama_cpp_server", "llama_server"}
    assert "fastapi" in missing["llama_cpp_server"]
    monkeypatch.setattr(peers, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found, missing = find_peers(model, 512)
    assert (list(found), missing) == (["llama_class", "llama_cpp_server", "llama_server"], {})
    assert find_peers(tmp_path / "model.onnx", 512)[0] == {}
