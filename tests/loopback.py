"""A real HTTP server on 127.0.0.1 that behaves as told, for tests of network code.

A behaviour is a function of one `Exchange`; the n-th request gets the n-th behaviour and the last one
repeats. Everything that was received is kept byte for byte. Waiting ends when the server is closed, so a
test never sits out a long drip.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request as received; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One connection after its request has been read. `hung_up` is set when the client is seen to be gone."""

    def __init__(self, connection: socket.socket, request: Request, closing: Event) -> None:
        self.connection, self.request, self._closing, self.hung_up = connection, request, closing, False

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait; raises ConnectionError when the client hangs up or the server is closed meanwhile."""
        waited = 0.0
        while waited < seconds:
            step = min(0.02, seconds - waited)
            self.connection.settimeout(step)
            with suppress(TimeoutError):
                if self.connection.recv(1) == b"":
                    self.hung_up = True
                    raise ConnectionError
            if self._closing.is_set():
                raise ConnectionError
            waited += step
        self.connection.settimeout(10)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.connection.close()


Behaviour = Callable[[Exchange], None]


class Loopback:
    """The server; a context manager. `url` is its root, `requests` and `received` what came in.

    `hang_ups` counts requests whose client went away before the behaviour had ended.
    """

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = behaviours
        self._closing, self._lock = Event(), Lock()
        self._threads: list[Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[Request] = []
        self.received = bytearray()
        self.connections = 0
        self.hang_ups = 0

    def __enter__(self) -> Loopback:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()

    def join(self) -> None:
        """Wait until every connection has been dealt with (the listener too, once the server is closed)."""
        with self._lock:
            threads = self._threads[0 if self._closing.is_set() else 1 :]
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), "a connection of the loopback server did not end"

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            exchange = None
            try:
                request = self._read(connection)
                if request is None:
                    return
                with self._lock:
                    self.requests.append(request)
                    behaviour = self._behaviours[min(len(self.requests), len(self._behaviours)) - 1]
                exchange = Exchange(connection, request, self._closing)
                behaviour(exchange)
            except (ConnectionError, TimeoutError):
                with self._lock:
                    self.hang_ups += not self._closing.is_set()
            except OSError:
                pass  # the behaviour has closed the connection itself

    def _read(self, connection: socket.socket) -> Request | None:
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if not self._more(connection, data) or data[0] == 0x16:  # a TLS greeting: this is a plain server
                return None
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = end + 4 + int(headers.get("content-length", "0"))
        while len(data) < size:
            if not self._more(connection, data):
                return None
        method, path, _ = first.split(" ", 2)
        return Request(method, path, headers, bytes(data[end + 4 : size]))

    def _more(self, connection: socket.socket, data: bytearray) -> bool:
        piece = connection.recv(65536)
        self.received += piece
        data += piece
        return bool(piece)


# --- what to send -----------------------------------------------------------------------------------


def head(status: int = 200, content_type: str = "text/event-stream", **headers: str) -> bytes:
    """Status line and headers; `Retry_After="3"` becomes `Retry-After: 3`. The body ends with the connection."""
    lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def event(data: object) -> bytes:
    """One event of the stream; anything but text is written as JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def delta(text: str | None = None, finish: str | None = None) -> bytes:
    """One chunk of a streamed chat completion."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "model": "served-model", "choices": [choice]})


DONE = event("[DONE]")


# --- behaviours -------------------------------------------------------------------------------------


def completion(*pieces: str, finish: str | None = "stop", done: bool = True) -> Behaviour:
    """A well-behaved streamed reply."""
    body = b"".join(map(delta, pieces)) + (delta(finish=finish) if finish else b"") + (DONE if done else b"")
    return raw(head() + body)


def document(text: str, **extra: object) -> Behaviour:
    """A reply in one JSON document, as from a server that does not stream."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return answer(200, json.dumps({"model": "served-model", "choices": [choice], **extra}))


def answer(status: int, body: str = "", content_type: str = "application/json", **headers: str) -> Behaviour:
    """Any status with any body."""
    return raw(head(status, content_type, **headers) + body.encode())


def raw(*parts: bytes) -> Behaviour:
    """Exactly these bytes, then the connection is closed."""

    def behave(exchange: Exchange) -> None:
        for part in parts:
            exchange.send(part)

    return behave


def drip(parts: Iterable[bytes], every: float) -> Behaviour:
    """The parts with a pause before each."""
    script = tuple(parts)

    def behave(exchange: Exchange) -> None:
        for part in script:
            exchange.pause(every)
            exchange.send(part)

    return behave


def hang(*parts: bytes, seconds: float = 30) -> Behaviour:
    """These bytes, then silence with the connection open."""

    def behave(exchange: Exchange) -> None:
        for part in parts:
            exchange.send(part)
        exchange.pause(seconds)

    return behave


def reset(*parts: bytes) -> Behaviour:
    """These bytes, then the connection is torn down (RST)."""

    def behave(exchange: Exchange) -> None:
        for part in parts:
            exchange.send(part)
        exchange.reset()

    return behave
