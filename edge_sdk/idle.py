"""Does something once when nothing has been going on for a while; knows nothing of what that is.

The language model of an `Edge` is freed so, in an app that stays open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import RLock, Timer
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class IdleTimer:
    """Calls `act` when `seconds` have passed since the last `busy` block ended; never while one is open.

    Without `seconds` it never does. The call comes from a thread of its own, which does not keep the process alive.

    >>> timer = IdleTimer(None, lambda: print("idle"))
    >>> with timer.busy():
    ...     pass
    >>> timer.stop()
    """

    def __init__(self, seconds: float | None, act: Callable[[], None]) -> None:
        self._seconds, self._act = seconds, act
        # Held while `act` runs, so that what begins then waits for its end. Garbage collection may close a block
        # in the middle of anything, so the same thread may take it again.
        self._lock = RLock()
        self._open = 0
        self._timer: Timer | None = None
        self._stopped = False

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While this is open, it is not idle; several may be at once."""
        with self._lock:
            self._open += 1
            self._cancel()
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if not self._open and self._seconds is not None and not self._stopped:
                    self._timer = Timer(self._seconds, self._idle)
                    self._timer.daemon = True
                    self._timer.start()

    def stop(self) -> None:
        """It does nothing any more."""
        with self._lock:
            self._stopped = True
            self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _idle(self) -> None:
        with self._lock:
            if not self._open and not self._stopped:
                self._act()


class HasIdleTimer(Protocol):
    """What has a timer that its own doings keep from acting."""

    idle: IdleTimer


_Arguments = ParamSpec("_Arguments")
_Self = TypeVar("_Self", bound=HasIdleTimer)
_Item = TypeVar("_Item")


def while_busy(
    method: Callable[Concatenate[_Self, _Arguments], Iterator[_Item]],
) -> Callable[Concatenate[_Self, _Arguments], Iterator[_Item]]:
    """A generator method whose object is busy from the first item asked for until the generator has ended."""

    @wraps(method)
    def busy(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Iterator[_Item]:
        with self.idle.busy():
            yield from method(self, *args, **kwargs)

    return busy
