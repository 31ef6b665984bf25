"""One HTTP POST within hard limits of time and size, which the caller can abandon at any moment.

The request runs in a thread of its own, because httpx's timeouts are for one read: a name server that hangs,
headers or a body that drip, would hold the caller for ever. It knows nothing of what is sent or received.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING, Any

from ..errors import EdgeError, RemoteProtocolError, RemoteTimeoutError, RemoteUnreachableError

if TYPE_CHECKING:
    import httpx

_POLL = 0.05  # seconds within which a cancel is noticed
_STEP = 64 * 1024  # bytes handed on between two looks at the clock


class Cancelled(Exception):
    """The caller's event was set. Not an `EdgeError`: it is what was asked for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds on the monotonic clock, and bytes of the response's body.

    `connect` is for name look-up, TCP and TLS together; `first_byte` from the sent request to the first byte
    of the reply; `silence` between bytes after that; `total` for everything, however the bytes drip.
    """

    connect: float
    first_byte: float
    silence: float
    total: float
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers (names in lower case) of the response."""

    status: int
    headers: Mapping[str, str]

    @property
    def media_type(self) -> str:
        """The content type without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Exchange:
    """A running POST: `head()`, then `chunks()`, and `close()` in any case.

    Raises `RemoteUnreachableError` where no byte of the request was sent (that is certain, not likely),
    `RemoteTimeoutError`, `RemoteProtocolError`, and `Cancelled` once `cancel` is set. Every exchange has a
    connection of its own: a reused one may be closed by the server just as the request goes out, and then
    nobody knows whether it was billed. Nothing is retried and no redirect is followed.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        limits: Limits,
        *,
        transport: httpx.BaseTransport | None = None,
        trust_env: bool = False,
        cancel: Event | None = None,
    ) -> None:
        self._url, self._headers, self._body, self._limits = url, headers, body, limits
        self._transport, self._trust_env, self._cancel = transport, trust_env, cancel
        import httpx  # noqa: F401  before the clock starts: on a small device this takes a second

        self._began = time.monotonic()
        self._changed = Condition()
        # What follows is shared with the thread.
        self._sent_at = None if transport is None else self._began  # a given transport need not tell
        self._head: Head | None = None
        self._received = bytearray()
        self._ended = False
        self._failure: EdgeError | None = None
        self._abandoned = False
        self._socket: Any = None
        Thread(target=self._work, name="edge-remote", daemon=True).start()

    def head(self) -> Head:
        """Wait for the response's headers."""
        self._wait(lambda: self._sent_at is not None or self._ended, self._began + self._limits.connect, "")
        self._wait(lambda: self._head is not None or self._ended, *self._first_byte())
        if self._head is None:
            raise self._failure or RemoteProtocolError("the remote sent no reply")
        return self._head

    def chunks(self, within: float = math.inf) -> Iterator[bytes]:
        """Yield the body's bytes as they come; those that came before a failure come before its error.

        `within` seconds from now the body must be complete.
        """
        by, silence = time.monotonic() + within, self._limits.silence
        until, late = self._first_byte()
        while True:
            self._wait(lambda: bool(self._received) or self._ended, min(until, by), late)
            with self._changed:
                chunk, ended = bytes(self._received[:_STEP]), self._ended
                del self._received[:_STEP]
            if chunk:
                yield chunk
            elif ended:
                if self._failure is not None:
                    raise self._failure
                return
            until = time.monotonic() + silence
            late = f"the remote fell silent for {silence:g} s in the middle of its reply"

    def close(self) -> None:
        """Give up: the connection is shut down, so that the server can stop working (and billing)."""
        with self._changed:
            self._abandoned, sock = True, self._socket
        if isinstance(sock, socket.socket):
            with suppress(OSError):  # it may be closed already
                # Not SSLSocket.shutdown: that would let the thread read on without TLS.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _first_byte(self) -> tuple[float, str]:
        """Until when the first byte of the body must be there, and what to say if it is not."""
        limit = self._limits.first_byte
        return (self._sent_at or self._began) + limit, f"the remote did not begin to answer within {limit:g} s"

    def _wait(self, ready: Callable[[], bool], until: float, late: str) -> None:
        """Return once `ready()`, else raise what has run out.

        A reply that came whole within the deadline may be read after it; of any other, nothing may.
        """
        limits, end = self._limits, self._began + self._limits.total
        with self._changed:
            while True:
                if self._cancel is not None and self._cancel.is_set():
                    raise Cancelled
                now = time.monotonic()
                whole = self._ended and self._failure is None
                if ready() and (now < end or whole or not self._received):
                    return
                left = min(until, end) - now
                if left <= 0:
                    break
                self._changed.wait(left if self._cancel is None else min(left, _POLL))
            self._abandoned = True
            if self._sent_at is None:  # and nothing will be sent: the thread looks at _abandoned before it does
                seconds = min(limits.connect, limits.total)
                raise RemoteUnreachableError(f"no connection to the remote within {seconds:g} s, nothing was sent")
        if end <= until:
            late = f"the remote did not finish within the deadline of {limits.total:g} s"
        raise RemoteTimeoutError(late)

    # --- the thread ---------------------------------------------------------------------------------

    def _work(self) -> None:
        failure: EdgeError | None
        try:
            failure = self._post()
        except Exception as error:
            failure = self._explain(error)
        with self._changed:
            self._ended, self._failure, self._socket = True, failure, None
            self._changed.notify_all()

    def _post(self) -> EdgeError | None:
        import httpx

        limits, taken = self._limits, 0
        timeout = httpx.Timeout(limits.total, connect=limits.connect)
        client = httpx.Client(
            transport=self._transport, trust_env=self._trust_env, timeout=timeout, follow_redirects=False
        )
        try:
            request = client.build_request(
                "POST", self._url, content=self._body, headers=self._headers, extensions={"trace": self._trace}
            )
            response = client.send(request, stream=True)
            try:
                with self._changed:
                    self._head = Head(response.status_code, dict(response.headers))
                    self._changed.notify_all()
                for chunk in response.iter_raw():
                    taken += len(chunk)
                    if taken > limits.body_bytes:
                        return RemoteProtocolError(f"the remote's reply is larger than {limits.body_bytes} bytes")
                    with self._changed:
                        self._received += chunk
                        self._changed.notify_all()
                        if self._abandoned or time.monotonic() > self._began + limits.total:
                            return RemoteTimeoutError(
                                f"the remote's reply passed the deadline of {limits.total:g} s"
                            )
            finally:
                response.close()
        finally:
            if self._transport is None:
                client.close()
        return None

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """httpcore's report of where the request is: the socket to shut down, and the moment of sending."""
        with self._changed:
            if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
                self._socket = info["return_value"].get_extra_info("socket")
            elif event.endswith(".send_request_headers.started"):
                if self._abandoned or (self._cancel is not None and self._cancel.is_set()):
                    raise Cancelled
                self._sent_at = time.monotonic()
                self._changed.notify_all()

    def _explain(self, error: Exception) -> EdgeError:
        """A new error without a chain: an httpx error holds the request, and so the key."""
        import httpx

        reason = str(error) or type(error).__name__
        if (
            isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol)
            or self._sent_at is None
        ):
            return RemoteUnreachableError(
                f"no connection to the remote, nothing was sent: {reason}", hint="check the URL and the network"
            )
        if isinstance(error, httpx.TimeoutException):
            return RemoteTimeoutError(f"the remote stopped answering: {reason}")
        if isinstance(error, httpx.TransportError | httpx.StreamError):
            return RemoteProtocolError(f"the connection to the remote broke: {reason}")
        return RemoteProtocolError(f"the request to the remote failed: {type(error).__name__}: {reason}")
