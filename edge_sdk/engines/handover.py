"""Items from the thread that makes them to the one that reads them, in groups where they come quickly.

To wake a reader costs the threads that compute up to a tenth of a millisecond, each time: a reader that wakes fifty
times a second sees what one sees that wakes two hundred times. Knows nothing of what is made.
"""

from __future__ import annotations

import math
import time
from collections import deque
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

MOMENT = 0.02
"""Seconds for which nobody minds to wait: a group of tokens comes as often."""


class HandOver(Generic[T]):
    """A queue for one reader.

    >>> handed = HandOver[int]()
    >>> for number in range(3):
    ...     handed.put(number, wait=60.0)
    >>> handed.get(), handed.ready
    (0, False)
    >>> handed.put(3)
    >>> handed.ready, handed.get(), handed.get()
    (True, 1, 2)
    >>> handed.put(4, wait=60.0), handed.flush(), handed.get(), handed.get()
    (None, None, 3, 4)
    """

    def __init__(self) -> None:
        self._groups: SimpleQueue[list[T]] = SimpleQueue()
        self._here: deque[T] = deque()  # of the group that is being read
        self._lock = Lock()
        self._held: list[T] = []  # of the group that is being made
        self._sent = self._last = -math.inf

    def put(self, item: T, wait: float = 0.0) -> None:
        """Hand over what was held and this, unless another item may come within `wait` seconds of the last group.

        That is expected after the time that this one took. The first is never held; the last is to be put without
        `wait`.
        """
        with self._lock:
            now = time.perf_counter()
            self._held.append(item)
            another = now + (now - self._last)
            self._last = now
            if another - self._sent >= wait:
                self._send(now)

    def flush(self) -> None:
        """Hand over what is held: nothing comes for a while."""
        with self._lock:
            if self._held:
                self._send(time.perf_counter())

    def _send(self, now: float) -> None:
        group, self._held, self._sent = self._held, [], now
        self._groups.put(group)

    def get(self, timeout: float | None = None) -> T:
        """The next item, as soon as it is handed over. Raises `queue.Empty` after so many seconds without one."""
        if not self._here:
            self._here.extend(self._groups.get(timeout=timeout))
        return self._here.popleft()

    @property
    def ready(self) -> bool:
        """Whether the next item is there."""
        return bool(self._here) or not self._groups.empty()
