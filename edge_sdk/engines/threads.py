"""How many threads compute the next step: fewer where another process has taken a core, all again when it has gone.

The threads of llama.cpp wait for each other some thousand times a token, so one that does not get its core holds up
all: a busy process beside them makes two threads two to a hundred times slower than one. Pure logic: seconds come
in, a number of threads comes out. Knows nothing of clocks, processes or llama.cpp.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

ALLOWANCE = 1.05
"""A step may take so many times what it takes on fewer threads, for good."""
PATIENCE = 4.0
"""Steps' worth of time that may be lost beyond that before fewer threads are used."""
SHARE = 0.1
"""Of the time that goes by on fewer threads, what attempts with more may have cost."""
DRAFT = 32
"""Tokens that are evaluated together much like one. Parts of a prompt are longer: there each thread takes as much
work as it gets done, so beside a busy process all of them are about as fast as one: nothing is to be gained."""
_FIRST = 3  # steps on a number of threads before another is tried
_WAIT, _LONGEST_WAIT = 8, 256  # steps' worth of time until the next attempt; doubled each time that one fails
_MOST_OF_A_STEP = 3.0  # steps' worth that a single one adds to the loss that is watched
_WORST = 1000.0  # steps' worth that a single step counts for at most: the machine may have been asleep


class ThreadPace:
    """The number of threads for steps that are alike, single tokens for instance, from what the last ones took.

    The loss against fewer threads is summed up, never below zero (Page's CUSUM), and too much of it ends the
    attempt. What an attempt has lost altogether is to be less than `SHARE` of the time until the next, so that all
    steps together take at most 1.1 of what one thread would, but for the first losses.

    >>> pace = ThreadPace(2)
    >>> pace.tried_one(0.010)
    >>> for seconds in (0.007, 0.007, 0.300, 0.300):
    ...     pace.took(seconds)
    >>> pace.threads
    1
    """

    def __init__(self, most: int) -> None:
        self._rungs = sorted({most, most - 1, most // 2, 1} - {0}, reverse=True)
        self._at = 0
        self._times: dict[int, deque[float]] = {}  # of all but the most threads, which none are fewer than
        self._usual: dict[int, float] = {}  # their medians, kept, for this is asked at every token
        self._steps = 0  # since the number changed
        self._excess = 0.0  # the CUSUM, in seconds
        self._lost = 0.0  # by this attempt, against fewer threads; below zero where it has won
        self._fails = 0
        self._wait, self._waited = 0.0, 0.0  # seconds to wait before the next attempt, and waited already

    @property
    def threads(self) -> int:
        """For the next step."""
        return self._rungs[self._at]

    @property
    def unsure(self) -> bool:
        """Whether it has to be told what a step takes on one thread; see `tried_one`."""
        return len(self._rungs) > 1 and self._steps >= _FIRST and self._rungs[-1] not in self._usual

    def tried_one(self, seconds: float) -> None:
        """Learn what a step has taken on one thread, out of turn."""
        self._learn(self._rungs[-1], seconds)

    def took(self, seconds: float) -> None:
        """Learn what a step on `threads` has taken."""
        if self._at:
            self._learn(self.threads, seconds)
        self._steps += 1
        if self._at < len(self._rungs) - 1 and (fewer := self._fewer()) is not None:
            self._compare(seconds, fewer)
        if self._at:
            self._waited += seconds
            if self._waited >= self._wait and self._steps >= _FIRST:
                self._excess, self._lost = 0.0, max(0.0, self._lost)
                self._move(self._at - 1)

    def took_together(self, steps: Iterable[float]) -> None:
        """`took` for steps that followed each other, all of them on `threads` as it was for the first."""
        threads = self.threads
        for seconds in steps:
            took = self.took if self.threads == threads else self.passed
            took(seconds)

    def passed(self, seconds: float) -> None:
        """So much time went by with something else, a prompt for instance: it counts towards the next attempt."""
        self._waited += seconds

    def _fewer(self) -> float | None:
        """Seconds of a step on the best number of fewer threads that is known."""
        below = self._rungs[self._at + 1 :]
        return min((self._usual[count] for count in below if count in self._usual), default=None)

    def _learn(self, threads: int, seconds: float) -> None:
        times = self._times.setdefault(threads, deque(maxlen=5))
        times.append(seconds)
        self._usual[threads] = median(times)

    def _compare(self, seconds: float, fewer: float) -> None:
        seconds = min(seconds, _WORST * fewer)
        self._lost += seconds - fewer
        # No single step is reason enough: the numbers of a model depend on the number of threads, in the last bits.
        self._excess = max(0.0, self._excess + min(seconds - ALLOWANCE * fewer, _MOST_OF_A_STEP * fewer))
        if self._excess > PATIENCE * fewer:
            failed = self._lost > 0
            self._fails = min(self._fails + 1, 16) if failed else 0
            pause = min(_WAIT << self._fails, _LONGEST_WAIT) * fewer
            self._wait, self._waited = max(pause, self._lost / SHARE), 0.0
            self._move(self._at + 1)

    def _move(self, to: int) -> None:
        self._at, self._steps = to, 0
