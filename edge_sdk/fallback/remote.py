"""The remote model: any OpenAI-compatible endpoint, asked once, streamed, within an absolute deadline.

Off by default: without a URL there is no remote. It knows nothing of when to ask or of what may be sent;
it sends exactly the messages it is given, and `preview` shows the same bytes beforehand.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from threading import Event
from typing import TYPE_CHECKING, Protocol

from ..config import Settings
from ..errors import (
    BudgetError,
    ConfigError,
    EdgeError,
    OfflineError,
    RemoteError,
    RemotePausedError,
    RemoteProtocolError,
    RemoteRejectedError,
    RemoteUnreachableError,
)
from ..records import Message, RemoteReply
from .completions import ReplyReader, one_line, request_body, server_words
from .endpoint import endpoint, read_key
from .exchange import Cancelled, Exchange, Head, Limits

if TYPE_CHECKING:
    import httpx

_MAX_REPLY, _MAX_ERROR_PAGE = 8 * 1024 * 1024, 64 * 1024
_ERROR_PAGE_SECONDS = 2.0  # a status is worth reporting even if its page does not come


class RemoteStream(Iterator[str]):
    """A running request: iterate for pieces of text, then read `reply`. Closing it early hangs up.

    >>> def two() -> Generator[str, None, RemoteReply]:
    ...     yield from ("Hel", "lo")
    ...     return RemoteReply("Hello", "m", "stop", None, None, 1.0)
    >>> stream = RemoteStream(two())
    >>> list(stream), stream.reply.finish_reason
    (['Hel', 'lo'], 'stop')
    """

    def __init__(self, pieces: Generator[str, None, RemoteReply]) -> None:
        self._pieces = pieces
        self._reply: RemoteReply | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as stop:
            if stop.value is not None:
                self._reply = stop.value
            raise StopIteration from None

    @property
    def reply(self) -> RemoteReply:
        """The whole text and how it ended; raises `RemoteError` before the end and after a failure."""
        if self._reply is None:
            raise RemoteError("the remote's reply has not ended", hint="iterate over it to the end first")
        return self._reply

    def close(self) -> None:
        """Hang up now; what has been generated so far may be billed."""
        self._pieces.close()


class Remote(Protocol):
    """A remote model that answers a chat."""

    @property
    def model(self) -> str:
        """The model's name as the server knows it."""

    @property
    def url(self) -> str:
        """The full address that requests go to."""

    @property
    def deadline(self) -> float:
        """Seconds after which a request has ended in any case."""

    def preview(self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0) -> bytes:
        """The body that `complete` would send for the same arguments, byte for byte; opens nothing."""

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        cancel: Event | None = None,
        idempotency_key: str | None = None,
    ) -> RemoteStream:
        """Prepare one request; it is sent when the stream is first iterated, and never a second time.

        Setting `cancel` hangs up and ends the stream with the finish reason "cancelled". Servers that know the
        header `Idempotency-Key` bill two requests with the same key once. Raises a `RemoteError` while
        iterating; text that came before it is part of an answer, not an answer.
        """


class OpenAIRemote:
    """`POST …/v1/chat/completions` with `stream: true`, as OpenAI, vLLM, llama.cpp and many vendors serve it.

    `url` is the server (`http://127.0.0.1:8080`), its API root (`https://host/api/v1`) or the full address
    (ending in `/chat/completions`, taken as it is); plain http only to this machine. `key` is called for each
    request and its result goes to that address alone: no redirect is followed, no proxy or certificate
    setting of the environment is used unless `trust_env`. Times are in seconds: `connect_timeout` for name
    look-up, TCP and TLS, `first_byte_timeout` from the sent request to the first byte of the body (a slow
    server's whole prefill), `inter_token_timeout` for silence after that (keep-alive comments count as
    life), `deadline` for all of it, however the bytes drip. A reply is at most 8 MiB. `extra` are more fields of
    every request, like `logprobs`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: Callable[[], str | None] | None = None,
        offline: bool = False,
        connect_timeout: float = 3.0,
        first_byte_timeout: float = 30.0,
        inter_token_timeout: float = 10.0,
        deadline: float = 60.0,
        include_usage: bool = False,
        extra: Mapping[str, object] | None = None,
        trust_env: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url, self._model, self._key, self._offline = endpoint(url), model, key, offline
        self._limits = Limits(connect_timeout, first_byte_timeout, inter_token_timeout, deadline, _MAX_REPLY)
        self._include_usage, self._extra, self._trust_env = include_usage, extra, trust_env
        self._transport = transport

    def __repr__(self) -> str:
        return f"OpenAIRemote({self._url!r}, {self._model!r})"

    @property
    def model(self) -> str:
        """The model's name as the server knows it."""
        return self._model

    @property
    def url(self) -> str:
        """The full address that requests go to."""
        return self._url

    @property
    def deadline(self) -> float:
        """Seconds after which a request has ended in any case."""
        return self._limits.total

    def preview(self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0) -> bytes:
        """The body that `complete` would send for the same arguments, byte for byte; opens nothing."""
        return request_body(
            self._model,
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            include_usage=self._include_usage,
            extra=self._extra,
        )

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        cancel: Event | None = None,
        idempotency_key: str | None = None,
    ) -> RemoteStream:
        """See `Remote.complete`. Raises `OfflineError` and `ConfigError` (the key) here, before any socket."""
        if self._offline:
            raise OfflineError(f"the remote {self._model!r} was not asked: offline", hint="unset EDGE_OFFLINE")
        body = self.preview(messages, max_tokens=max_tokens, temperature=temperature)
        key = self._key() if self._key else None
        return RemoteStream(self._run(body, key, _headers(key, idempotency_key), cancel))

    def _run(
        self, body: bytes, key: str | None, headers: Mapping[str, str], cancel: Event | None
    ) -> Generator[str, None, RemoteReply]:
        began, text = time.monotonic(), ""
        exchange = Exchange(
            self._url,
            headers,
            body,
            self._limits,
            transport=self._transport,
            trust_env=self._trust_env,
            cancel=cancel,
        )
        try:
            head = exchange.head()
            if head.status != 200:
                raise _rejection(head, _error_page(exchange, head, key), key)
            if head.headers.get("content-encoding", "identity").lower() != "identity":
                raise RemoteProtocolError("the remote sent a compressed reply although it was asked not to")
            reader = ReplyReader(head.media_type, conceal=key)
            for piece in reader.read(exchange.chunks()):
                if cancel is not None and cancel.is_set():
                    raise Cancelled  # one chunk may hold many pieces
                text += piece
                yield piece
        except Cancelled:
            return RemoteReply(text, self._model, "cancelled", None, None, _milliseconds(began))
        finally:
            exchange.close()
        return RemoteReply(
            text,
            reader.model or self._model,
            reader.finish_reason,
            reader.prompt_tokens,
            reader.completion_tokens,
            _milliseconds(began),
            tuple(reader.logprobs),
        )


def may_be_billed(error: BaseException) -> bool:
    """Whether the server may have worked on a request that ended so; False only where that is ruled out.

    An error status below 500, and 503, says that it refused to; any other end leaves it open.

    >>> may_be_billed(RemoteUnreachableError("no route")), may_be_billed(RemoteProtocolError("cut off"))
    (False, True)
    """
    if isinstance(error, RemoteRejectedError):
        return error.status >= 500 and error.status != 503
    unsent = RemoteUnreachableError | RemotePausedError | BudgetError | OfflineError | ConfigError
    return not isinstance(error, unsent)


def remote_from_settings(settings: Settings) -> OpenAIRemote | None:
    """The configured remote, or None when there is none. Opens nothing; the key is read at each request."""
    if not settings.remote:
        return None
    if not settings.remote_model:
        raise ConfigError("a remote is set but no model of it", hint="pass --remote-model or set EDGE_REMOTE_MODEL")
    return OpenAIRemote(
        settings.remote,
        settings.remote_model,
        key=lambda: read_key(settings),
        offline=settings.offline,
        include_usage=bool(settings.budget or settings.remote_prices),  # without it a call counts at its full price
    )


class FakeRemote:
    """A remote for tests: each call takes the next of `replies`, pieces of text or an error to raise.

    `requests` keeps the messages of every call, `keys` the idempotency keys.

    >>> remote = FakeRemote(["Par", "is"], RemoteError("no luck"))
    >>> stream = remote.complete([Message("user", "Capital of France?")], max_tokens=9)
    >>> "".join(stream), stream.reply.text, len(remote.requests)
    ('Paris', 'Paris', 1)
    """

    def __init__(self, *replies: Sequence[str] | EdgeError, model: str = "fake-remote") -> None:
        self._replies, self._model = iter(replies), model
        self.requests: list[tuple[Message, ...]] = []
        self.keys: list[str | None] = []

    @property
    def model(self) -> str:
        """The name given to it."""
        return self._model

    @property
    def url(self) -> str:
        """No address: nothing is opened."""
        return "fake:"

    @property
    def deadline(self) -> float:
        """It answers at once."""
        return 1.0

    def preview(self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0) -> bytes:
        """See `Remote.preview`."""
        return request_body(self._model, messages, max_tokens=max_tokens, temperature=temperature)

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        cancel: Event | None = None,
        idempotency_key: str | None = None,
    ) -> RemoteStream:
        """See `Remote.complete`; `max_tokens` counts pieces."""
        self.requests.append(tuple(messages))
        self.keys.append(idempotency_key)
        return RemoteStream(self._run(next(self._replies), max_tokens, cancel))

    def _run(
        self, script: Sequence[str] | EdgeError, max_tokens: int, cancel: Event | None
    ) -> Generator[str, None, RemoteReply]:
        if isinstance(script, EdgeError):
            raise script
        text, reason = "", "stop" if len(script) <= max_tokens else "length"
        for piece in script[:max_tokens]:
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            text += piece
            yield piece
        return RemoteReply(text, self._model, reason, None, None, 0.0)


def _headers(key: str | None, idempotency_key: str | None) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",  # a compressed reply could be a bomb
        "User-Agent": "edge-sdk",
        "Connection": "close",
    }
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    return headers | {"Authorization": f"Bearer {key}"} if key else headers


def _error_page(exchange: Exchange, head: Head, key: str | None) -> str:
    """What the server says beside its status; "" when it is long, slow or broken."""
    page = bytearray()
    try:
        for chunk in exchange.chunks(within=_ERROR_PAGE_SECONDS):
            page += chunk
            if len(page) > _MAX_ERROR_PAGE:
                return ""
    except RemoteError:
        return ""
    return server_words(bytes(page), head.media_type, conceal=key)


def _rejection(head: Head, words: str, key: str | None) -> RemoteError:
    """The error for a status other than 200."""
    status, hint, retry_after = head.status, "", None
    said = f": {words}" if words else ""
    if 200 <= status < 300:
        return RemoteProtocolError(f"the remote answered {_status_name(status)} without a reply{said}")
    if 300 <= status < 400:
        target = one_line(head.headers.get("location", ""), conceal=key)
        said = f", a redirect to {target or 'nowhere'}, which is not followed"
        hint = "if you trust that address, set the remote to it"
    elif status in (401, 403):
        hint = (
            "check EDGE_REMOTE_KEY or the key file" if key else "no key was sent: set EDGE_REMOTE_KEY or a key file"
        )
    elif status == 404:
        hint = "check the URL and --remote-model"
    elif status in (429, 503):
        retry_after = _retry_after(head.headers.get("retry-after", ""))
        hint = "ask again later" if retry_after is None else f"ask again in {retry_after:.0f} s"
    elif status >= 500:
        hint = "the fault is the remote's; nothing is retried by itself"
    return RemoteRejectedError(
        f"the remote answered {_status_name(status)}{said}", status=status, retry_after=retry_after, hint=hint
    )


def _status_name(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, section 10.2.3)."""
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _milliseconds(began: float) -> float:
    return (time.monotonic() - began) * 1000
