"""How many drafted tokens pay to be verified together: from what batches cost here and how often drafts are right.

Two things keep drafts from costing. One is made only where the tokens expected of it are worth more than the time
of its batch; and an answer that has lost a token's time and a small share of its own, gains set off, makes no more.
Knows nothing of models or clocks; times come in as seconds.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_COSTS = {4: 2.2, 8: 2.9, 16: 4.3}  # of a batch, in single tokens; kernels take four at a time
_CHANCES = (0.4, 0.55, 0.65, 0.75, 0.8, 0.85, 0.9)  # that the next token is right, after a match of 2, 3, ... 8
_WEIGHT = 6.0  # observations that these chances count for
_FORGET = 0.97  # what an observation counts for when the next comes
_MARGIN = 1.05  # expected tokens for the time of one, from which on a draft is tried
_TIMES = 9  # durations of which the median is taken
_REMIND = 64  # tokens evaluated alone after which costs move back to what was assumed, so that they are tried again


class DraftLength:
    """Learns for as long as a model is loaded.

    How often drafts are right is learned without making any: each token shows what a draft would have been worth.
    `credit` is what the answer may still lose, in single tokens.

    >>> lengths = DraftLength()
    >>> lengths.begin(), [lengths.single(0.01) for _ in range(3)]
    (None, [None, None, None])
    >>> lengths.choose(match=9, most=99), lengths.choose(match=9, most=2), lengths.choose(match=0, most=99)
    (7, 0, 0)
    >>> lengths.batch(8, 0.030), lengths.gain()
    (None, None)
    >>> lengths.credit < 0, lengths.choose(match=9, most=99)
    (True, 0)
    """

    def __init__(self, *, share: float = 0.015, grant: float = 1.0) -> None:
        """`grant` is what an answer may lose at once, `share` of each token what it may lose besides."""
        self._share, self._grant = share, grant
        self.credit = grant
        self._alone: deque[float] = deque(maxlen=_TIMES)
        self._single = 0.0
        self._singles = 0
        self._ratios = {size: deque((cost, cost), maxlen=_TIMES) for size, cost in _COSTS.items()}
        self.costs = dict(_COSTS)
        self._right = [chance * _WEIGHT for chance in _CHANCES]
        self._seen = [_WEIGHT] * len(_CHANCES)

    def begin(self) -> None:
        """An answer begins; what others have gained is not to be lost by it."""
        self.credit = min(self.credit, self._grant)

    def choose(self, match: int, most: int) -> int:
        """How many tokens to draft, at most `most`, where the last `match` tokens stood before; 0 for none."""
        if not match or len(self._alone) < 3:
            return 0
        best, rate, risk = 0, _MARGIN, 1 - self.chance(match)
        expected, chance, length = 1.0, 1.0, 0
        for size, cost in self.costs.items():
            if size > most + 1:
                break
            while length < size - 1:
                chance *= self.chance(match + length)
                expected += chance
                length += 1
            if expected > rate * cost and risk * (cost - 1) <= self.credit:
                best, rate = length, expected / cost
        return best

    def chance(self, match: int) -> float:
        """That a draft's next token is right, after a match of so many."""
        at = _level(match)
        return self._right[at] / self._seen[at]

    def observe(self, match: int, right: bool) -> None:
        """A token came; it is or would have been right in a draft made after `match` tokens."""
        at = _level(match)
        self._right[at] = self._right[at] * _FORGET + right
        self._seen[at] = self._seen[at] * _FORGET + 1

    def single(self, seconds: float) -> None:
        """A token was evaluated alone."""
        self._alone.append(seconds)
        self._single = median(self._alone)
        self.credit += self._share
        self._singles += 1
        if self._singles % _REMIND == 0:
            for size in self.costs:
                self._note(size, _COSTS[size])

    def batch(self, size: int, seconds: float) -> None:
        """A token and its draft were evaluated together."""
        ratio = seconds / self._single
        self.credit -= ratio
        self._note(size, ratio)

    def gain(self) -> None:
        """A token came out of a batch."""
        self.credit += 1 + self._share

    def _note(self, size: int, cost: float) -> None:
        self._ratios[size].append(cost)
        self.costs[size] = median(self._ratios[size])


def _level(match: int) -> int:
    return min(match, len(_CHANCES) + 1) - 2
