"""Work that blocks, on threads, for a server that must not: so many at once, in turn, ended when nobody waits.

Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event as Flag
from threading import Thread
from typing import Generic, TypeVar

from ..errors import EngineError, RequestError

_T = TypeVar("_T")
Work = Callable[[Flag], Iterator[_T]]
"""Gives items, and ends soon once the flag is set."""

ENDING = "the server is ending"
_ALIVE = 10.0  # seconds without an item
_LOOK = 0.02  # seconds between two looks at whether all have ended


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Work that has not begun: what begins it, and what tells whoever waits that it never will."""

    start: Callable[[], None]
    refuse: Callable[[RequestError], None]


class Desk(Generic[_T]):
    """Runs iterators on threads, `parallel` at once; `waiting` more wait their turn, first come first served.

    Used on one event loop.
    """

    def __init__(self, parallel: int, waiting: int, *, alive: float = _ALIVE) -> None:
        """An empty list comes after every `alive` seconds in which no item did."""
        self.parallel, self._waiting, self._alive = parallel, waiting, alive
        self._pending: deque[_Waiting] = deque()
        self._running: dict[Flag, Callable[[RequestError], None]] = {}
        self._closed = False

    @property
    def here(self) -> int:
        """How many run or wait."""
        return len(self._running) + len(self._pending)

    async def items(self, work: Work[_T]) -> AsyncGenerator[list[_T], None]:
        """What the iterator gives, as it comes: what has come since the last list; raises what it raises.

        Once this is closed, the flag that `work` got is set; the next in turn begins when the thread has ended.
        Raises `RequestError` where too many wait already.
        """
        if self._closed or self.here >= self.parallel + self._waiting:
            raise _refusal(ENDING if self._closed else f"{self.here} requests run or wait already")
        loop, cancel = asyncio.get_running_loop(), Flag()
        found, some = deque[_T](), asyncio.Event()
        end = list[Exception | None]()  # in the end one, None where nothing went wrong
        refused = list[RequestError]()

        def tell(item: _T) -> None:
            found.append(item)
            if len(found) == 1:  # else the loop is awake, or is being woken
                loop.call_soon_threadsafe(some.set)

        def tell_end(error: Exception | None) -> None:
            end.append(error)
            some.set()

        def refuse(error: RequestError) -> None:
            refused.append(error)
            some.set()

        def leave(error: Exception | None) -> None:
            self._running.pop(cancel, None)
            tell_end(error)
            self._next()

        def run() -> None:
            wrong: Exception | None = None
            try:
                for item in work(cancel):
                    tell(item)
            except Exception as error:
                wrong = error
            except BaseException as error:  # as native code of some packages raises
                wrong = EngineError(f"unexpected {type(error).__name__}")
            with suppress(RuntimeError):  # the loop has ended, and with it whoever listened
                loop.call_soon_threadsafe(leave, wrong)

        def start() -> None:
            self._running[cancel] = refuse
            try:
                Thread(target=run, name="edge-answer", daemon=True).start()
            except RuntimeError:
                del self._running[cancel]
                refuse(_refusal("no thread can be started"))

        waiting = _Waiting(start, refuse)
        self._pending.append(waiting)
        self._next()
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._alive):
                        await some.wait()
                woken = some.is_set()
                some.clear()
                if refused:  # what has come since may be the end of half an answer
                    raise refused[0]
                items = list[_T]()
                while found:  # to its end, for who appends to what is not empty wakes nobody
                    items.append(found.popleft())
                if items or not woken:
                    yield items
                if end and not found:  # more may have come while those were looked at
                    if end[0] is not None:
                        raise end[0]
                    return
        finally:
            cancel.set()
            with suppress(ValueError):
                self._pending.remove(waiting)

    def end(self) -> None:
        """Take nothing more, and end what runs: whoever waits for it gets a `RequestError`."""
        self._closed = True
        while self._pending:
            self._pending.popleft().refuse(_refusal(ENDING))
        for cancel, refuse in self._running.items():
            cancel.set()
            refuse(_refusal(ENDING))

    async def close(self, seconds: float) -> None:
        """End, and wait as long as that for what runs."""
        self.end()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._running:
                    await asyncio.sleep(_LOOK)

    def _next(self) -> None:
        while self._pending and len(self._running) < self.parallel:
            self._pending.popleft().start()


def _refusal(why: str) -> RequestError:
    return RequestError(why, status=503, hint="ask again in a while")
