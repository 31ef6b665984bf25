"""Scores of tokens to spans: the arithmetic of extractive reading, in numpy.

Scores are normalised over all passages of a question together, so that spans of different passages can be compared
(shared normalisation, Clark and Gardner 2018, arXiv:1710.10723). Knows nothing of text or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CANDIDATES = 2
"""Spans that are kept of a window: the best, and the best of those that share no token with it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The tokens `start` to `end`, both included, and the sum of their two scores."""

    start: int
    end: int
    score: float


def best_spans(starts: Floats, ends: Floats, longest: int, count: int = CANDIDATES) -> list[Scored]:
    """The best spans of at most `longest` tokens, best first, no two of which share a token.

    Scores of one window's tokens [tokens]; -inf where no span may start or end. Of equals the first, shorter one.

    >>> [(span.start, span.end) for span in best_spans(np.array([3, 0, 1]), np.array([0, 2, 1]), longest=2)]
    [(0, 1), (2, 2)]
    """
    sums = _sums(starts, ends, longest)
    found: list[Scored] = []
    while len(found) < count and sums.size:
        start, more = divmod(int(sums.T.argmax()), len(sums))
        if sums[more, start] == -np.inf:
            break
        found.append(Scored(start, start + more, float(sums[more, start])))
        for length in range(len(sums)):  # spans that end before it, or start after it, stay
            sums[length, max(start - length, 0) : start + more + 1] = -np.inf
    return found


def likely_spans(starts: Floats, ends: Floats, longest: int, count: int) -> list[Scored]:
    """The `count` best spans of at most `longest` tokens, in no order; they may share tokens.

    >>> found = likely_spans(np.array([3, 0, 1]), np.array([0, 2, 1]), longest=2, count=2)
    >>> sorted((span.start, span.end) for span in found)
    [(0, 0), (0, 1)]
    """
    sums = _sums(starts, ends, longest)
    best = np.argpartition(sums, -count, None)[-count:] if sums.size > count else np.arange(sums.size)
    places = ((int(more), int(start)) for more, start in zip(*np.unravel_index(best, sums.shape), strict=True))
    return [
        Scored(start, start + more, float(sums[more, start]))
        for more, start in places
        if sums[more, start] > -np.inf
    ]


def _sums(starts: Floats, ends: Floats, longest: int) -> NDArray[np.float64]:
    """Scores [tokens of the span less one, start]; -inf where there is no such span."""
    size = len(starts)
    sums = np.full((min(longest, size), size), -np.inf, np.float64)
    for more in range(len(sums)):
        sums[more, : size - more] = starts[: size - more] + ends[more:]
    return sums


def shared_log_total(scores: Sequence[Floats]) -> float:
    """The logarithm of the sum of the exponentials of all scores of all windows; -inf where there is none.

    >>> round(shared_log_total([np.array([0.0, 0.0]), np.array([-np.inf]), np.array([np.log(2.0)])]), 4)
    1.3863
    """
    every = np.concatenate([*scores, np.empty(0)]).astype(np.float64)
    peak = every.max(initial=-np.inf)
    return float(peak + np.log(np.exp(every - peak).sum())) if np.isfinite(peak) else float("-inf")
