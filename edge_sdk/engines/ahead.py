"""Tokens that are made before they are asked for: the model computes while the one before is looked at.

To wake a reader and to be woken by it takes a quarter of a millisecond a token, for which the cores would wait.
Knows nothing of models or of what is made.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Items in the order in which they are made, on a thread that `submit` gives a job to.

    `make` returns an item and whether another may follow. When more than `most` items wait to be read the job ends,
    and reading begins another; with 0 nothing is made before it is asked for. One reader.

    >>> numbers = iter([1, 2, 3])
    >>> made = Ahead(lambda job: job(), lambda: (next(numbers), True), most=1)
    >>> made.get(), next(numbers)
    (1, 3)
    """

    def __init__(
        self, submit: Callable[[Callable[[], object]], object], make: Callable[[], tuple[T, bool]], *, most: int
    ) -> None:
        self._submit, self._make, self._most = submit, make, most
        self._lock = Lock()
        self._made: SimpleQueue[T | BaseException] = SimpleQueue()
        self._unread = 0
        self._working = self._ended = False

    def get(self) -> T:
        """The next item, as soon as there is one; raises what `make` or `submit` raises. Not after the last."""
        self._begin(self._unread == 0)
        item = self._made.get()
        with self._lock:
            self._unread -= 1
        if isinstance(item, BaseException):
            raise item
        self._begin(self._unread < self._most)
        return item

    def stop(self) -> None:
        """Make no more but what is being made; does not wait."""
        self._ended = True

    def _begin(self, wanted: bool) -> None:
        with self._lock:
            wanted = wanted and not (self._working or self._ended)
            self._working |= wanted
        if wanted:
            self._submit(self._work)

    def _work(self) -> None:
        going = True
        while going:
            item: T | BaseException
            try:
                item, more = self._make()
            except BaseException as error:
                item, more = error, False
            with self._lock:
                self._unread += 1
                if not more:  # never set back: `stop`, which takes no lock, may have come meanwhile
                    self._ended = True
                going = self._working = not self._ended and self._unread <= self._most
            self._made.put(item)
