"""Other ways to run the same model file on the same prompt: llama-cpp-python's class, and servers over loopback.

A server is started for the run, on a free port of this machine, with the file that it is handed. Ollama is not
among them: it runs only models that were first copied to a store of its own. Knows nothing of questions.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import EngineError
from ..fallback.sse import EventParser
from .apart import environment, last_words
from .engine import Clock, Worker

_SERVER_PACKAGES = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
_PATIENCE = 120.0  # seconds in which a server must have loaded its model, and for an answer
_LOOPBACK = "127.0.0.1"


class Peer(Protocol):
    """A running contender that takes prompts."""

    def run(self, prompt: str, tokens: int) -> dict[str, Any]:
        """`first_ms`, `rest_ms`, `produced` tokens (as pieces of text), and `peak_mb`, None where unknown."""

    def stop(self) -> None:
        """End it."""


def find_peers(path: Path, context: int) -> tuple[dict[str, Callable[[], Peer]], dict[str, str]]:
    """What this machine has, by name, each with a way to start it; and why the others are left out."""
    if path.suffix != ".gguf":
        return {}, {"llama_class": f"{path.name} is no GGUF file"}
    found: dict[str, Callable[[], Peer]] = {}
    missing: dict[str, str] = {}
    if find_spec("llama_cpp") is None:
        missing["llama_class"] = "llama_cpp is not installed"
    else:
        found["llama_class"] = lambda: Worker("llama_class", path, 0, context)
    absent = [name for name in _SERVER_PACKAGES if find_spec(name) is None]
    if absent:
        missing["llama_cpp_server"] = f"{', '.join(absent)} not installed"
    else:
        command = [sys.executable, "-m", "llama_cpp.server", "--model", str(path), "--n_ctx", str(context)]
        found["llama_cpp_server"] = lambda: LoopbackServer("llama_cpp_server", command)
    program = shutil.which("llama-server")
    if program is None:
        missing["llama_server"] = "there is no llama-server on the PATH"
    else:
        native = [program, "-m", str(path), "-c", str(context)]
        found["llama_server"] = lambda: LoopbackServer("llama_server", native)
    return found, missing


class LoopbackServer:
    """A program with an OpenAI-compatible interface, started with `--host` and `--port` behind its command."""

    def __init__(self, name: str, command: Sequence[str], *, patience: float = _PATIENCE) -> None:
        """Returns once it answers. Raises `EngineError` with its last words when it ends or takes too long."""
        self._name, self._patience, self._port = name, patience, _free_port()
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        self._process = subprocess.Popen(
            [*command, "--host", _LOOPBACK, "--port", str(self._port)],
            stdin=subprocess.DEVNULL,
            stdout=self._complaints,
            stderr=self._complaints,
            env={name: value for name, value in environment().items() if not name.startswith("EDGE_")},
        )
        try:
            self._await()
        except BaseException:
            self.stop()
            raise

    def run(self, prompt: str, tokens: int) -> dict[str, Any]:
        """See `Peer.run`. Raises `EngineError` for a reply that is not what the interface promises."""
        clock = Clock()
        for text in self._stream(prompt, tokens):
            if text:
                clock.token()
        first, rest, produced = clock.result()
        return {"first_ms": first, "rest_ms": rest, "produced": produced, "peak_mb": _peak_mb(self._process.pid)}

    def stop(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()
        self._complaints.close()

    def _await(self) -> None:
        """Ask for a token until one comes: a server accepts connections before its model is loaded."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self.run("Hello", 1)
                return
            except (OSError, http.client.HTTPException, _NotYetError) as error:
                if self._process.poll() is not None:
                    raise EngineError(f"{self._name} did not start: {last_words(self._complaints)}") from error
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{self._name} gave no answer in {self._patience:.0f} seconds: {error}"
                    ) from error
            time.sleep(0.05)

    def _stream(self, prompt: str, tokens: int) -> Any:
        connection = http.client.HTTPConnection(_LOOPBACK, self._port, timeout=self._patience)
        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        try:
            connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                failure = _NotYetError if reply.status == 503 else EngineError
                raise failure(f"{self._name} replied {reply.status} {reply.reason}")
            parser = EventParser()
            while data := reply.read1(65_536):
                for event in parser.push(data):
                    if event.data != "[DONE]":
                        yield _text(self._name, event.data)
        finally:
            connection.close()


class _NotYetError(EngineError):
    """A server is loading its model."""


def _text(name: str, data: str) -> str:
    try:
        choices = json.loads(data)["choices"]
        return str(choices[0].get("text") or "") if choices else ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{name} sent {data[:80]!r}, which is no part of a completion") from error


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_LOOPBACK, 0))
        return int(found.getsockname()[1])


def _peak_mb(process: int) -> float | None:
    """The most memory that a process has had resident, in MiB; None where the system does not say."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return None
