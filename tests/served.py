"""A server as programs meet it: the application on a real port of this machine, in a thread of this process."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import httpx
import uvicorn

from edge_sdk.edge import Edge
from edge_sdk.serving.answering import Answering
from edge_sdk.serving.app import make_app
from edge_sdk.serving.guard import Guard


@contextmanager
def served(
    edge: Edge, *, parallel: int = 2, waiting: int = 8, key: str | None = None, **headers: str
) -> Iterator[httpx.Client]:
    """A client of a server on `edge`, which has ended afterwards."""
    app = make_app(Answering(edge), Guard.of("127.0.0.1", key=key), parallel=parallel, waiting=waiting)
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            until(lambda: server.started)
            yield client
        server.should_exit = True
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
