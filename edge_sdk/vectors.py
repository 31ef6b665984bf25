"""Vector search by scanning: rows quantised to int8, an index of them in memory, and its k nearest rows.

The only face that the rest of the SDK has on vector arithmetic. Knows nothing of passages, text or files; numpy
does the work, in blocks, so a search needs memory for the scores and one block whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 19  # values decoded to float32 at a time: 2 MiB, which stays in the second-level cache
_TILE = 8192  # values in one BLAS call; see `_dots`


def quantize_rows(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise each row to int8 with one scale, so that `matrix ≈ codes * scales[:, None]`.

    Gives `codes` [n, d] and `scales` [n]. Symmetric: the largest absolute value of a row becomes 127, and no code
    is -128. A component is off by at most half a scale; a row of zeros has scale 0. Raises `ValueError` where a
    value is not finite.

    >>> codes, scales = quantize_rows(np.array([[0.6, -0.8], [0.0, 0.0]], dtype=np.float32))
    >>> codes.tolist(), [round(float(scale), 4) for scale in scales]
    ([[95, -127], [0, 0]], [0.0063, 0.0])
    """
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix of rows, got {matrix.ndim} dimensions")
    if not np.isfinite(matrix).all():
        raise ValueError("a vector holds a value that is not finite")
    peaks = np.abs(matrix).max(axis=1, initial=0.0)
    scales = (peaks / 127).astype(np.float32)
    steps = np.where(scales > 0, scales, np.float32(1))[:, None]
    codes = np.clip(np.rint(matrix / steps), -127, 127).astype(np.int8)
    return codes, scales


@dataclass(frozen=True, slots=True, eq=False)
class VectorIndex:
    """Quantised unit vectors under the ids of what they stand for; immutable, so threads may share one.

    `ids` int64 [n] strictly ascending, `codes` int8 [n, d] and `scales` float32 [n] as from `quantize_rows`. The
    index takes the arrays over and makes them read-only.
    """

    ids: NDArray[np.int64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.ids.shape != (count,) or self.codes.ndim != 2 or len(self.codes) != count:
            raise ValueError(f"{self.ids.shape} ids do not match codes of shape {self.codes.shape}")
        if self.scales.shape != (count,):
            raise ValueError(f"{self.scales.shape} scales do not match {count} ids")
        if (np.diff(self.ids) <= 0).any():
            raise ValueError("the ids of a vector index must be strictly ascending")
        for array in (self.ids, self.codes, self.scales):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """Components of one vector."""
        return int(self.codes.shape[1])

    def top_k(
        self, query: NDArray[np.float32], k: int, allowed: Collection[int] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k rows nearest to `query` (unit length, float32 [d]): their ids and cosines, best first.

        Exact over the codes: every row is scored, in float32. Equal cosines are ordered by id, so the answer does
        not depend on how rows are stored. `allowed` limits the search to these ids. Fewer than k rows give fewer.
        """
        rows = None if allowed is None else np.flatnonzero(np.isin(self.ids, np.fromiter(allowed, np.int64)))
        ids = self.ids if rows is None else self.ids[rows]
        scores = self._cosines(query, rows)
        k = min(k, len(ids))
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # Everything equal to the k-th best takes part in the sort, or the partition would break ties at random.
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        best = np.flatnonzero(scores >= least)
        best = best[np.lexsort((ids[best], -scores[best]))[:k]]
        return ids[best], scores[best]

    def cosines(self, query: NDArray[np.float32], ids: Collection[int]) -> NDArray[np.float32]:
        """The cosine of `query` with each of `ids`, in their order; NaN where the index has no such id."""
        wanted = np.fromiter(ids, np.int64, len(ids))
        result = np.full(len(wanted), np.nan, np.float32)
        rows = np.searchsorted(self.ids, wanted)
        known = np.flatnonzero(rows < len(self))
        known = known[self.ids[rows[known]] == wanted[known]]
        result[known] = self._cosines(query, rows[known])
        return result

    def _cosines(self, query: NDArray[np.float32], rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        query = np.ascontiguousarray(query, dtype=np.float32)
        if query.shape != (self.dimension,):
            raise ValueError(f"a query of shape {query.shape} does not fit vectors of {self.dimension} components")
        if not np.isfinite(query).all():
            raise ValueError("the query holds a value that is not finite")
        scores = np.empty(len(self) if rows is None else len(rows), np.float32)
        for start, dots in _dots(self.codes, query, rows):
            scores[start : start + len(dots)] = dots
        scores *= self.scales if rows is None else self.scales[rows]
        # Rounding to int8 can carry a cosine past 1 by a thousandth; callers may rely on the range.
        return np.clip(scores, -1.0, 1.0, out=scores)


def _dots(
    codes: NDArray[np.int8], query: NDArray[np.float32], rows: NDArray[np.int64] | None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Dot products of `query` with the rows of `codes`, block by block with the position of each block.

    A block is multiplied as a stack of small tiles: OpenBLAS runs a product of fewer than 9,216 values on the
    calling thread. One big matrix-vector product goes to its thread pool instead, whose spinning threads took up
    to thirty times longer when another process had a core (24 ms instead of 0.7 for 10,000 rows of 384).
    """
    count, dimension = (len(codes) if rows is None else len(rows)), max(1, codes.shape[1])
    tile = max(1, _TILE // dimension)
    height = tile * max(1, _BLOCK // (tile * dimension))
    block = np.zeros((min(height, -(-count // tile) * tile), codes.shape[1]), np.float32)
    for start in range(0, count, height):
        stop = min(start + height, count)
        block[: stop - start] = codes[start:stop] if rows is None else codes[rows[start:stop]]
        tiles = -(-(stop - start) // tile)
        stack = block[: tiles * tile].reshape(tiles, tile, codes.shape[1])
        yield start, (stack @ query).reshape(-1)[: stop - start]
