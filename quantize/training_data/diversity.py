"""A few out of many that stand for all of them, chosen by their vectors.

Knows nothing of texts or encoders.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_BLOCK = 1 << 22  # similarities in memory at a time


def facility_location(vectors: Floats, budget: int, weights: Sequence[float] | None = None) -> list[int]:
    """Rows that together are most like all rows, the one that adds most first.

    Greedy on the sum of every row's cosine to the nearest chosen one (none counts as 0), which comes within 1 - 1/e
    of the best possible (Nemhauser, Wolsey and Fisher 1978); lazily, as gains only fall (Minoux 1978). `vectors`
    [n, d] have length 1; `weights` say how much each row counts. Equal gains go by position.

    >>> facility_location(np.float32([[1, 0], [0.8, 0.6], [0.8, -0.6], [-1, 0]]), 2)
    [0, 3]
    """
    count = np.ones(len(vectors), np.float32) if weights is None else np.asarray(weights, np.float32)
    near = np.zeros(len(vectors), np.float32)  # to the nearest chosen row
    queue = [(-gain, row, 0) for row, gain in enumerate(_first_gains(vectors, count))]
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < budget:
        _, row, known = heapq.heappop(queue)
        if known == len(chosen):  # worked out since the last choice: no other can have more
            chosen.append(row)
            near = np.maximum(near, _cosines(vectors, vectors[row]))
        else:
            better = np.maximum(_cosines(vectors, vectors[row]) - near, 0)
            heapq.heappush(queue, (-float(better @ count), row, len(chosen)))
    return chosen


def k_center(vectors: Floats, budget: int) -> list[int]:
    """Rows such that none is far from a chosen one: always the one that is farthest from those chosen so far.

    Within twice the best possible distance (Gonzalez 1985). It begins with the row nearest to the centre, and it
    chooses what stands apart, be that rare or mere noise. `vectors` [n, d] have length 1.
    """
    if not len(vectors) or budget < 1:
        return []
    chosen = [int(np.argmax(_cosines(vectors, vectors.mean(axis=0))))]
    near = _cosines(vectors, vectors[chosen[0]])
    while len(chosen) < min(budget, len(vectors)):
        near[chosen[-1]] = np.inf
        chosen.append(int(np.argmin(near)))
        near = np.maximum(near, _cosines(vectors, vectors[chosen[-1]]))
    return chosen


def coverage(vectors: Floats, chosen: Sequence[int]) -> float:
    """The mean cosine of all rows to the nearest of the chosen ones: what `facility_location` makes large."""
    near = np.zeros(len(vectors), np.float32)
    for row in chosen:
        near = np.maximum(near, _cosines(vectors, vectors[row]))
    return float(near.mean()) if len(near) else 0.0


def _first_gains(vectors: Floats, count: Floats) -> list[float]:
    """What each row adds when nothing is chosen yet."""
    step, gains = max(1, _BLOCK // max(1, len(vectors))), []
    for start in range(0, len(vectors), step):
        gains += (np.maximum(vectors[start : start + step] @ vectors.T, 0) @ count).tolist()
    return gains


def _cosines(vectors: Floats, one: Floats) -> Floats:
    return np.asarray(vectors @ one, np.float32)
