"""The web application: routes, streams of events, and what becomes of a client that goes away.

The one module that knows the web framework. Nothing of what is asked or answered is written to a log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import EdgeError, MissingExtraError, RequestError
from .answering import ENCODER, Answering, End, Piece, joined
from .desk import ENDING, Desk
from .guard import MOST_BYTES, Guard
from .replies import Completion, embeddings, failure, model_list
from .requests import ChatRequest, read_chat, read_embedding, read_json

try:
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as missing:
    raise MissingExtraError("the server", "serve") from missing

WAITING = 64
"""Requests that may wait for their turn."""
_UPLOAD = 60.0  # seconds for a request to be sent
_FRAMES = 4  # of a traceback
_PATIENCE = 10.0  # seconds for answers to end when the server does
_PAGE = (
    ("/", "index.html", "text/html"),
    ("/page.css", "page.css", "text/css"),
    ("/page.js", "page.js", "text/javascript"),
)
_PAGE_HEADERS = {  # it loads and reaches nothing but this server, and no other page may show it
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_RETRY_AFTER = "1"  # seconds, for a request that came when there were too many
_T = TypeVar("_T")


def make_app(answering: Answering, guard: Guard, *, parallel: int, waiting: int = WAITING) -> App:
    """The application on `answering`, of which `parallel` answers are made at once."""
    uploads = _Uploads()
    desk: Desk[Piece | End] = Desk(parallel, waiting)
    vectors: Desk[NDArray[np.float32]] = Desk(1, waiting)
    started = int(time.time())

    async def health(request: Request) -> Response:
        return _json({"status": "ok", "requests": desk.here, "parallel": desk.parallel})

    async def models(request: Request) -> Response:
        return _json(model_list([*answering.models, ENCODER], started))

    async def embed(request: Request) -> Response:
        wanted = read_embedding(await uploads.read(request))
        items = partial(vectors.items, answering.embed(wanted))
        return _Whole(partial(_all, items), lambda parts: embeddings(np.concatenate(parts), wanted, ENCODER))

    async def chat(request: Request) -> Response:
        wanted = read_chat(await uploads.read(request), answering.edge.sampling)
        reply = Completion(f"chatcmpl-{secrets.token_hex(12)}", wanted.model, int(time.time()))
        items = partial(desk.items, answering.chat(wanted))
        if wanted.stream:
            return _Stream(items, wanted, reply)
        return _Whole(partial(_end, items), partial(reply.whole, logprobs=wanted.logprobs))

    def end() -> None:
        for each in (uploads, desk, vectors):
            each.end()

    @asynccontextmanager
    async def closing(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.gather(desk.close(_PATIENCE), vectors.close(_PATIENCE))

    routes = [
        *(Route(path, _page(file, kind)) for path, file, kind in _PAGE),
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/embeddings", embed, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {404: _no_route, 405: _no_route, EdgeError: _error, Exception: _error}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=closing)
    app.router.redirect_slashes = False  # a redirection has no error that a program could read
    return App(app, guard, end)


def _page(file: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = resources.files(__package__).joinpath("page", file).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, headers=_PAGE_HEADERS, media_type=kind)

    return page


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    hint = "there are /v1/chat/completions, /v1/embeddings, /v1/models, /health and the page /"
    return _failed(
        RequestError(f"{request.method} {request.url.path[:80]} is not served", status=status, hint=hint)
    )


async def _error(request: Request, error: Exception) -> Response:
    return _failed(error)


class _Uploads:
    """Reads the bodies of requests."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()
        self._ended = False

    async def read(self, request: Request) -> Mapping[str, Any]:
        """The JSON object of a request; to read a long one takes a while, so that happens in a thread."""
        parts, size, limit = list[bytes](), 0, asyncio.timeout(0 if self._ended else _UPLOAD)
        self._limits.add(limit)
        try:
            async with limit:
                async for part in request.stream():
                    parts.append(part)
                    if (size := size + len(part)) > MOST_BYTES:
                        hint = f"send at most {MOST_BYTES} bytes"
                        raise RequestError("the body is too long", status=413, hint=hint)
        except TimeoutError:
            if self._ended:
                raise RequestError(ENDING, status=503, hint="ask again in a while") from None
            raise RequestError(f"the body took more than {_UPLOAD:g} s", status=408) from None
        finally:
            self._limits.discard(limit)
        return await asyncio.to_thread(read_json, b"".join(parts))

    def end(self) -> None:
        """Wait for no more."""
        self._ended = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(value), status, headers, "application/json")


def _failed(error: Exception) -> Response:
    status, value = failure(error)
    headers = {"Retry-After": _RETRY_AFTER} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(value, status, headers)


class App:
    """Lets through what may ask, for a server that says `end` on its event loop before it waits for what runs."""

    def __init__(self, app: ASGIApp, guard: Guard, end: Callable[[], None]) -> None:
        self._app, self._guard, self.end = app, guard, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            try:
                self._guard.check(scope["method"], scope["path"], headers)
            except RequestError as error:
                app = _failed(error)
        try:
            await app(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:  # the client has its reply
            _log(error)


def _log(error: Exception) -> None:
    """Where something unexpected went wrong, without its message, which may quote what was asked."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    logging.getLogger(__name__).error("unexpected %s at %s", type(error).__name__, places)


_Items = Callable[[], AsyncGenerator[list[_T], None]]


async def _end(items: _Items[Piece | End]) -> End:
    async with aclosing(items()) as found:
        async for some in found:
            for item in some:
                if isinstance(item, End):
                    return item
    raise AssertionError("an answer has an end")


async def _all(items: _Items[_T]) -> list[_T]:
    async with aclosing(items()) as found:
        return [item async for some in found for item in some]


class _Whole(Response, Generic[_T]):
    """What is made of the result of some work, in one piece."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, _T]], made: Callable[[_T], object]) -> None:
        super().__init__()
        self._work, self._made = work, made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            found = await _attended(self._work(), receive)
            await _json(self._made(found))(scope, receive, send)


class _Stream(Response):
    """The answer as server-sent events, the last one `[DONE]`, with a comment now and then while it is at work.

    An error before the first event has a status of its own; a later one is the last event.
    """

    def __init__(self, items: _Items[Piece | End], wanted: ChatRequest, reply: Completion) -> None:
        super().__init__()
        self._items, self._wanted, self._reply = items, wanted, reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await _attended(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        begun = False
        async with aclosing(self._events()) as events:
            async for some in events:
                if not begun:
                    begun = True
                    headers = [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-store"),
                    ]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": some.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[str, None]:
        begun = spoken = False
        try:
            async with aclosing(self._items()) as items:
                async for some in items:
                    begun = True
                    chunks = [chunk for item in joined(some) for chunk in self._chunks(item)]
                    if chunks and not spoken:
                        spoken = True
                        chunks.insert(0, self._reply.first())
                    yield "".join(map(_event, chunks)) or ": at work\n\n"
        except Exception as error:
            if not begun:
                raise
            if not isinstance(error, EdgeError):
                _log(error)
            yield _event(failure(error)[1])
        else:
            yield "data: [DONE]\n\n"

    def _chunks(self, item: Piece | End) -> Iterator[dict[str, Any]]:
        if isinstance(item, Piece):
            yield self._reply.piece(item, logprobs=self._wanted.logprobs)
            return
        yield self._reply.last(item)
        if self._wanted.usage:
            yield self._reply.usage(item)


def _event(value: object) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _attended(work: Coroutine[Any, Any, _T], receive: Receive) -> _T:
    """What the coroutine gives; it is cancelled where the client goes away first (`ClientDisconnect`)."""
    doing, going = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({doing, going}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        doing.cancel()
        going.cancel()
        await asyncio.gather(doing, going, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
