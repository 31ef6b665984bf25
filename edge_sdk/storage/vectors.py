"""Vector search by scanning: int8 rows and their sign bits in memory, and the k nearest of them.

The only face that the rest of the SDK has on vector arithmetic; `kernels.scan` does the work. An arena grows by
append, an index is what it held at one moment. Knows nothing of passages, text or files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernel_faces import scan

FIRST_CHUNK, LARGEST_CHUNK = 1 << 13, 1 << 18
"""Rows of the first piece of memory that an arena takes, and of the largest; each takes as many as there are."""
EXACT_ROWS = 1 << 15
"""Up to so many rows a search scans all codes (less than half a millisecond); beyond it, sign bits come first."""


def candidates(k: int, rows: int) -> int:
    """How many rows the sign bits propose so that at least 0.99 of the k nearest are served in the end.

    Of the ten nearest of real questions among 9,000 and 38,688 sentences (MiniLM), 0.99 were among the first 474
    and 734 by sign bits and 0.995 among 605 and 965; of clustered vectors among 1,961 of 100,000 and 10,433 of
    1,000,000 (0.995: 2,286 and 15,815). Three times as many for the 50 nearest. The power covers the harder set,
    with room for what the codes themselves miss (0.004 to 0.006). A float query on the same bits needs a quarter
    of the rows, but its four bit planes cost more time than scoring the rest; a random rotation and RaBitQ's
    stored corrections (arXiv 2405.12497) on top of it save a further tenth.

    >>> candidates(10, 100_000), candidates(50, 1_000_000)
    (5137, 79432)
    """
    return int((max(k, 10) / 5 * rows) ** 0.7)


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
class _Chunk:
    """Some rows, or the room for them. The rows in use never change; `signs` are in blocks of eight rows."""

    ids: NDArray[np.int64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    signs: NDArray[np.uint64]

    @classmethod
    def room(cls, rows: int, dimension: int) -> _Chunk:
        """Memory is taken from the system only when a row is written."""
        return cls(
            np.empty(rows, np.int64),
            _aligned((rows, dimension), np.int8),
            np.empty(rows, np.float32),
            _aligned(scan.sign_blocks(rows, dimension), np.uint64),
        )

    def first(self, rows: int) -> _Chunk:
        """A view of the first rows."""
        return _Chunk(self.ids[:rows], self.codes[:rows], self.scales[:rows], self.signs[: -(-rows // 8)])

    def write(self, at: int, ids: NDArray[np.int64], codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        stop = at + len(ids)
        self.ids[at:stop], self.codes[at:stop], self.scales[at:stop] = ids, codes, scales
        scan.pack_signs(self.codes[at:stop], self.signs, at)

    def __len__(self) -> int:
        return len(self.ids)


class VectorArena:
    """Rows that grow by append; snapshots share its memory and are never changed by what follows.

    Not for several threads at once; the snapshots are.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._chunks: list[_Chunk] = []
        self._count = 0
        self._free = 0  # rows of the last chunk that are not written yet

    def __len__(self) -> int:
        return self._count

    def append(self, ids: NDArray[np.int64], codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        """Copy rows to the end: `ids` [n] ascending and above all earlier ones, `codes` [n, d], `scales` [n].

        Raises `ValueError` where they do not fit; nothing is appended then.
        """
        if codes.shape != (len(ids), self.dimension) or scales.shape != (len(ids),):
            raise ValueError(f"{ids.shape} ids and {scales.shape} scales do not match codes of shape {codes.shape}")
        last = int(self._used()[-1].ids[-1]) if self._count else None
        if (np.diff(ids) <= 0).any() or (last is not None and len(ids) and ids[0] <= last):
            raise ValueError("the ids of vectors must be strictly ascending")
        done = 0
        while done < len(ids):
            if self._free == 0:
                self._free = min(max(FIRST_CHUNK, self._count), LARGEST_CHUNK)
                self._chunks.append(_Chunk.room(self._free, self.dimension))
            part = slice(done, min(done + self._free, len(ids)))
            self._chunks[-1].write(len(self._chunks[-1]) - self._free, ids[part], codes[part], scales[part])
            self._free -= part.stop - part.start
            self._count += part.stop - part.start
            done = part.stop

    def snapshot(self, dead: Collection[int] | NDArray[np.int64] = ()) -> VectorIndex:
        """The rows as they are now, without those whose id is in `dead`."""
        chunks = self._used()
        return VectorIndex(self.dimension, tuple(chunks), _bitmaps(chunks, _sorted_ids(dead)))

    def _used(self) -> list[_Chunk]:
        if not self._free:
            return self._chunks[:]
        return [*self._chunks[:-1], self._chunks[-1].first(len(self._chunks[-1]) - self._free)]


@dataclass(frozen=True, slots=True, eq=False)
class VectorIndex:
    """Quantised unit vectors under the ids of what they stand for; immutable, so threads may share one.

    Made by `VectorArena.snapshot`, or from arrays by `of`.
    """

    dimension: int
    _chunks: tuple[_Chunk, ...]
    _alive: tuple[NDArray[np.uint64], ...] | None  # a bit a row, for each chunk; None when all rows live

    @classmethod
    def of(cls, ids: NDArray[np.int64], codes: NDArray[np.int8], scales: NDArray[np.float32]) -> VectorIndex:
        """An index of `ids` int64 [n] strictly ascending, `codes` int8 [n, d] and `scales` float32 [n]."""
        if codes.ndim != 2:
            raise ValueError(f"expected a matrix of codes, got {codes.ndim} dimensions")
        arena = VectorArena(codes.shape[1])
        arena.append(ids, codes, scales)
        return arena.snapshot()

    def __len__(self) -> int:
        if self._alive is None:
            return sum(map(len, self._chunks))
        return sum(int(np.bitwise_count(bits).sum()) for bits in self._alive)

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all rows that live, ascending."""
        return _joined([chunk.ids[mask] for chunk, mask in self._living()], np.zeros(0, np.int64))

    @property
    def codes(self) -> NDArray[np.int8]:
        """A copy of the codes of all rows that live [n, d]."""
        return _joined(
            [chunk.codes[mask] for chunk, mask in self._living()], np.zeros((0, self.dimension), np.int8)
        )

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scales of all rows that live [n]."""
        return _joined([chunk.scales[mask] for chunk, mask in self._living()], np.zeros(0, np.float32))

    def top_k(
        self,
        query: NDArray[np.float32],
        k: int,
        allowed: Collection[int] | None = None,
        *,
        exact: bool | None = None,
        proposed: int | None = None,
        threads: int = 1,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k rows nearest to `query` (unit length, float32 [d]): their ids and cosines, best first.

        `exact` scores every row; otherwise the sign bits propose `proposed` rows (default: `candidates`) and only
        those are scored. By default that is done beyond `EXACT_ROWS` rows. Equal cosines are ordered by id, so
        the answer does not depend on how rows are stored. `allowed` limits the search to these ids. Fewer than k
        rows give fewer. `threads` share the exact scan.
        """
        codes, scale = self._query(query)
        total = sum(map(len, self._chunks))
        if k < 1 or not total:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        bits = self._alive
        if allowed is not None:
            bits = _bitmaps(self._chunks, _sorted_ids(allowed), within=self._alive, keep=True)
        if exact is None:
            exact = total <= EXACT_ROWS
        masks = bits or (None,) * len(self._chunks)
        if exact:
            found = self._scan(codes, k, masks, threads)
        else:
            found = self._scan_signs(codes, k, proposed or candidates(k, total), bits)
        ids = _joined(
            [chunk.ids[rows] for chunk, (rows, _) in zip(self._chunks, found, strict=True)], np.zeros(0, np.int64)
        )
        scores = _joined([scores for _, scores in found], np.zeros(0, np.float32))
        if k < len(scores):  # all equal to the k-th best stay, or the partition would break ties at random
            kept = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
            ids, scores = ids[kept], scores[kept]
        order = np.lexsort((ids, -scores))[:k]
        return ids[order], _cosines(scores[order], scale)

    def cosines(self, query: NDArray[np.float32], ids: Collection[int]) -> NDArray[np.float32]:
        """The cosine of `query` with each of `ids`, in their order; NaN where the index has no such id."""
        codes, scale = self._query(query)
        wanted = np.fromiter(ids, np.int64, len(ids))
        result = np.full(len(wanted), np.nan, np.float32)
        for chunk, at, rows in self._find(wanted):
            result[at] = _cosines(scan.score_rows(chunk.codes, chunk.scales, codes, rows), scale)
        return result

    def vectors(self, ids: Collection[int]) -> NDArray[np.float32]:
        """The vectors of `ids` as stored, decoded: float32 [len(ids), d]; zeros where the index has no such id."""
        wanted = np.fromiter(ids, np.int64, len(ids))
        result = np.zeros((len(wanted), self.dimension), np.float32)
        for chunk, at, rows in self._find(wanted):
            result[at] = chunk.codes[rows] * chunk.scales[rows, None]
        return result

    def _query(self, query: NDArray[np.float32]) -> tuple[NDArray[np.int16], float]:
        query = np.ascontiguousarray(query, dtype=np.float32)
        if query.shape != (self.dimension,):
            raise ValueError(f"a query of shape {query.shape} does not fit vectors of {self.dimension} components")
        return scan.quantize_query(query)

    def _scan(
        self, query: NDArray[np.int16], k: int, masks: Iterable[NDArray[np.uint64] | None], threads: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The best k of each chunk: rows and scores."""

        def best(chunk: _Chunk, mask: NDArray[np.uint64] | None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            rows, scores = scan.top_k(chunk.codes, chunk.scales, query[None], k, mask)
            return rows[0], scores[0]

        if threads == 1 or len(self._chunks) == 1:
            return list(map(best, self._chunks, masks))
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(best, self._chunks, masks))

    def _scan_signs(
        self, query: NDArray[np.int16], k: int, proposed: int, bits: tuple[NDArray[np.uint64], ...] | None
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The proposed rows of each chunk with their scores. All chunks but the last are whole: rows run on."""
        words = scan.sign_words(query)
        ends = np.cumsum([len(chunk) for chunk in self._chunks])
        starts = ends - [len(chunk) for chunk in self._chunks]
        distances = np.empty(8 * sum(len(chunk.signs) for chunk in self._chunks), np.uint16)
        for start, chunk in zip(starts, self._chunks, strict=True):
            scan.hamming(chunk.signs, words, distances[start : start + 8 * len(chunk.signs)])
        alive = None if bits is None else np.concatenate(bits)
        rows = scan.nearest(distances[: ends[-1]], max(proposed, k), alive)
        found = []
        for start, chunk, part in zip(
            starts, self._chunks, np.split(rows, np.searchsorted(rows, ends[:-1])), strict=True
        ):
            found.append((part - start, scan.score_rows(chunk.codes, chunk.scales, query, part - start)))
        return found

    def _find(self, wanted: NDArray[np.int64]) -> Iterable[tuple[_Chunk, NDArray[np.int64], NDArray[np.int64]]]:
        """For each chunk the places in `wanted` that it has, and their rows in it."""
        for number, chunk in enumerate(self._chunks):
            rows = np.searchsorted(chunk.ids, wanted)
            at = np.flatnonzero(rows < len(chunk))
            at = at[chunk.ids[rows[at]] == wanted[at]]
            if self._alive is not None and len(at):
                place = rows[at].astype(np.uint64)
                bits = self._alive[number][place // np.uint64(64)] >> (place % np.uint64(64))
                at = at[(bits & np.uint64(1)).astype(bool)]
            if len(at):
                yield chunk, at, rows[at]

    def _living(self) -> Iterable[tuple[_Chunk, NDArray[np.bool_] | slice]]:
        for number, chunk in enumerate(self._chunks):
            if self._alive is None:
                yield chunk, slice(None)
            else:
                yield chunk, _mask(self._alive[number], len(chunk))


def _bitmaps(
    chunks: Iterable[_Chunk],
    ids: NDArray[np.int64],
    *,
    within: tuple[NDArray[np.uint64], ...] | None = None,
    keep: bool = False,
) -> tuple[NDArray[np.uint64], ...] | None:
    """A bit a row for each chunk: with `keep` of the rows in `ids`, else of all others. None where all are set."""
    if not len(ids) and not keep:
        return None
    result = []
    for number, chunk in enumerate(chunks):
        mask = np.full(len(chunk), not keep)
        rows = np.searchsorted(chunk.ids, ids)
        known = rows < len(chunk)
        known[known] = chunk.ids[rows[known]] == ids[known]
        mask[rows[known]] = keep
        bits = scan.bitmap(mask)
        result.append(bits if within is None else bits & within[number])
    return tuple(result)


def _sorted_ids(ids: Collection[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(ids if isinstance(ids, np.ndarray) else np.fromiter(ids, np.int64, len(ids)))


def _mask(bits: NDArray[np.uint64], rows: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits.astype("<u8").view(np.uint8), bitorder="little", count=rows).astype(bool)


def _cosines(scores: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    # Rounding to int8 can carry a cosine past 1 by a thousandth; callers may rely on the range.
    cosines: NDArray[np.float32] = np.clip(scores * np.float32(scale), -1.0, 1.0)
    return cosines


def _joined(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else empty


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array that starts on a cache line, so that no row of whole lines straddles one more than it needs."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
