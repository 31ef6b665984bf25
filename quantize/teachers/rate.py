"""How many requests and tokens a minute a server is asked for: a sliding window of sixty seconds.

Pure but for the clock that is passed in. Knows nothing of servers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from edge_sdk.errors import ConfigError

_WINDOW = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    """The most in any minute; None is no limit."""

    requests: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("requests", self.requests), ("tokens", self.tokens)):
            if most is not None and most < 1:
                raise ConfigError(f"a rate of {most} {name} a minute", hint="use 1 or more")


class Window:
    """What was taken in the last minute; threads may share one.

    >>> now = [0.0]
    >>> window = Window(Rate(requests=2), clock=lambda: now[0])
    >>> window.take(10), window.take(10), window.take(10)
    (0.0, 0.0, 60.0)
    >>> now[0] = 60.0
    >>> window.take(10)
    0.0
    """

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock, self._lock = rate, clock, Lock()
        self._taken: deque[tuple[float, int]] = deque()

    def take(self, tokens: int) -> float:
        """0 where a request for so many tokens may go now, and is counted; else in how many seconds to ask again.

        One for more tokens than a minute has goes when the minute is empty.
        """
        with self._lock:
            now = self._clock()
            while self._taken and self._taken[0][0] <= now - _WINDOW:
                self._taken.popleft()
            requests, most = self._rate.requests, self._rate.tokens
            crowded = requests is not None and len(self._taken) >= requests
            heavy = most is not None and sum(count for _, count in self._taken) + tokens > most
            if self._taken and (crowded or heavy):
                return self._taken[0][0] + _WINDOW - now
            self._taken.append((now, tokens))
            return 0.0
