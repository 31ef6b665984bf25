"""The vectors of a store in memory, kept up with the file: each time, only what has come since the last is read.

Knows how vectors lie in a store, and nothing of documents, encoders or what is searched for.
"""

from __future__ import annotations

import sqlite3

import numpy as np
from numpy.typing import NDArray

from . import segments
from .segments import Rows, VectorSet
from .vectors import VectorArena, VectorIndex


class VectorReader:
    """Reads the vectors in service, inside a transaction of its caller; not for several threads at once.

    A vector never changes under its id, so what is in memory stays right: a change is what has come, which is
    appended, and what has died. That is told by tombstones, or else by the absence from where it must have been,
    as in a segment that was compacted meanwhile.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Free the memory; the next index is read from the beginning."""
        self._arena = VectorArena(0)
        self._of: tuple[int, int] | None = None  # series and dimension
        self._ids = np.empty(0, np.int64)  # of all rows in memory
        self._absent: dict[int, NDArray[np.int64]] = {}  # segment read -> rows in memory that it should have had

    def index(self, sql: sqlite3.Connection, dimension: int) -> VectorIndex:
        """All live vectors. Raises `StoreDamagedError` where one of those read does not match its checksum."""
        which = segments.in_service(sql)
        try:
            if self._of != (which.series, dimension):
                self._begin(which, dimension)
            absent = self._catch_up(sql, which)
            if len(absent) > segments.SEGMENT_ROWS + len(self._ids) // 4:  # memory for what the file has dropped
                self._begin(which, dimension)
                absent = self._catch_up(sql, which)
        except ValueError as error:  # the arena refuses them
            self.forget()
            raise segments.damaged(sql, f"its vectors do not fit together: {error}") from error
        except BaseException:
            self.forget()
            raise
        return self._arena.snapshot(np.concatenate([absent, segments.dead_ids(sql, which)]))

    def _begin(self, which: VectorSet, dimension: int) -> None:
        self.forget()
        self._arena, self._of = VectorArena(dimension), (which.series, dimension)

    def _catch_up(self, sql: sqlite3.Connection, which: VectorSet) -> NDArray[np.int64]:
        """Append what is new; gives the rows in memory that died without leaving a tombstone."""
        known, fresh = self._ids, []
        newest = int(known[-1]) if len(known) else 0
        current = segments.segments_of(sql, which)
        starts = np.searchsorted(known, [segment.first_id for segment in current], "left").tolist()
        stops = np.searchsorted(known, [segment.last_id for segment in current], "right").tolist()
        read, self._absent = self._absent, {}
        outside, end = [], 0
        for segment, start, stop in zip(current, starts, stops, strict=True):
            outside.append(known[end:start])
            end = stop
            absent = read.get(segment.id)
            if absent is None:
                rows = segments.read(sql, segment)
                absent = _without(known[start:stop], rows.ids)
                fresh.append(self._append(rows.after(newest)))
            self._absent[segment.id] = absent
        outside.append(_without(known[end:], segments.tail_ids(sql, which)))
        fresh.append(self._append(segments.read_tail(sql, which, after=newest)))
        self._ids = np.concatenate([known, *fresh])
        return np.concatenate([*outside, *self._absent.values()])

    def _append(self, rows: Rows) -> NDArray[np.int64]:
        if len(rows):
            self._arena.append(rows.ids, rows.codes, rows.scales)
        return rows.ids


def _without(ids: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.setdiff1d(ids, others, assume_unique=True) if len(ids) else ids  # numpy hashes `others` first
