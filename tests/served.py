"""A server as programs meet it: the application on a real port of this machine, in a thread of this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

import httpx
import uvicorn

from edge_sdk.edge import Edge
from edge_sdk.engines.engine import Generation
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.prompt import Reading
from edge_sdk.records import GenerateOptions, GenerationResult, Token
from edge_sdk.serving.answering import Answering
from edge_sdk.serving.app import make_app
from edge_sdk.serving.guard import Guard
from edge_sdk.serving.server import Server
from edge_sdk.storage.store import Store

MANUAL = "# Pump\n\nPress the red button to reset the pump. The tank holds four litres of water.\n"
QUESTION = "How do I reset the pump?"
KEY = "0123456789abcdef"

Make = Callable[..., Edge]


class SlowEngine(FakeEngine):
    """One token after the other, a moment each, for as long as `many` says; counts what runs and what was ended."""

    def __init__(self, many: int = 10_000, moment: float = 0.005) -> None:
        super().__init__("x")
        self.many, self.moment, self.running, self.most, self.cancelled = many, moment, 0, 0, 0
        self._lock = threading.Lock()

    def generate(self, prompt: str, options: GenerateOptions, cancel: Flag | None = None) -> Generation:
        return Generation(self._slowly(cancel or Flag()))

    def _slowly(self, cancel: Flag) -> Generator[Token, None, GenerationResult]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        made = 0
        try:
            while made < self.many and not cancel.is_set():
                time.sleep(self.moment)
                made += 1
                yield Token(made, f"w{made} ", -0.1, 0.1, 3.0)
        finally:
            with self._lock:
                self.running -= 1
                self.cancelled += made < self.many
        return GenerationResult("cancelled" if made < self.many else "stop", 5, 0, made, 0.0, 0.0)


@contextmanager
def assistants(folder: Path) -> Iterator[Make]:
    """Build assistants over one small document; the first argument is the engine or its script."""
    made: list[Edge] = []
    file = folder / "manual.md"

    def build(script: object = "Press the red button [1].", document: str = MANUAL, **options: Any) -> Edge:
        file.write_text(document, encoding="utf-8")
        engine = script if isinstance(script, FakeEngine) else FakeEngine(script)  # type: ignore[arg-type]
        edge = Edge(Store.open(folder / "store.db"), FakeEncoder, lambda: (engine, Reading(600, True)), **options)
        edge.add([file])
        made.append(edge)
        return edge

    try:
        yield build
    finally:
        for edge in made:
            edge.close()


@contextmanager
def served(
    edge: Edge, *, parallel: int = 2, waiting: int = 8, key: str | None = None, **headers: str
) -> Iterator[httpx.Client]:
    """A client of a server on `edge`, which has ended afterwards."""
    app = make_app(Answering(edge), Guard.of("127.0.0.1", key=key), parallel=parallel, waiting=waiting)
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=5)
    server = Server(config, app.end)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            until(lambda: server.started)
            yield client
            server.should_exit = True  # what still runs gets its reply
            thread.join(20)
        assert not thread.is_alive(), "the server ends"


def until(what: Any, seconds: float = 20.0) -> None:
    """Wait for it to become true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def events(body: str) -> list[Any]:
    """The values of server-sent events; the last is the text `[DONE]`, where it ended well."""
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def streamed(values: list[Any]) -> str:
    """The text of the pieces."""
    return "".join(
        choice["delta"].get("content", "") for value in values if value != "[DONE]" for choice in value["choices"]
    )
