"""How vectors lie in a store: the newest as rows of a tail, the others sealed into segments, like an LSM tree.

A document costs a few rows; reading a million vectors back costs a thousand BLOBs, each checked by its SHA-256.
What is deleted from a segment is named by a tombstone until most of the segment is dead. Every function runs
inside a transaction of its caller. Knows nothing of documents, encoders or search.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreDamagedError

# Rows that seal the tail. What is written in all hardly depends on it; with more, the put that seals takes longer.
SEGMENT_ROWS = 1024

# Version 2 of the store. A published step is never edited: what is to be changed is changed by the next one.
TABLES = (
    # Passage ids only grow: segments by `first_id`, and after them the tail, are in their order. AUTOINCREMENT: a
    # number is never used again, so who has read a segment knows it by its number.
    """CREATE TABLE vector_segments (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        series INTEGER NOT NULL,
        first_id INTEGER NOT NULL,
        last_id INTEGER NOT NULL,
        count INTEGER NOT NULL,
        sha256 BLOB NOT NULL,
        ids BLOB NOT NULL,
        scales BLOB NOT NULL,
        codes BLOB NOT NULL
    )""",
    # Covers every question but that for the vectors themselves, so none of them walks over the BLOBs.
    "CREATE INDEX vector_segments_ranges ON vector_segments (series, first_id, last_id, count)",
    """CREATE TABLE dead_vectors (
        segment INTEGER NOT NULL REFERENCES vector_segments (id) ON DELETE CASCADE,
        passage_id INTEGER NOT NULL,
        PRIMARY KEY (segment, passage_id)
    ) WITHOUT ROWID""",
    *(
        f"""CREATE TABLE {tail} (
        passage_id INTEGER PRIMARY KEY REFERENCES passages (id) ON DELETE CASCADE,
        codes BLOB NOT NULL,
        scale REAL NOT NULL,
        checksum INTEGER NOT NULL
    )"""
        for tail in ("vector_tail", "next_vector_tail")
    ),
    "INSERT INTO meta (key, value) VALUES ('series', '0')",
)


@dataclass(frozen=True, slots=True)
class VectorSet:
    """The vectors of one encoder: those in service, or those that gather to take their place."""

    tail: str
    series: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Vectors as they are stored: `ids` int64 [n] ascending, `codes` int8 [n, d], `scales` float32 [n]."""

    ids: NDArray[np.int64]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, part: slice | NDArray[np.bool_]) -> Rows:
        """Some of the rows; a slice copies nothing."""
        return Rows(self.ids[part], self.codes[part], self.scales[part])

    def after(self, id: int) -> Rows:
        """The rows with ids above this one."""
        return self.where(slice(int(np.searchsorted(self.ids, id, "right")), None))


class Segment(NamedTuple):
    """What there is to know of a segment without reading its vectors."""

    id: int
    series: int
    first_id: int
    last_id: int
    size: int

    def __str__(self) -> str:
        return f"vector segment {self.id} (passages {self.first_id} to {self.last_id})"


def in_service(sql: sqlite3.Connection) -> VectorSet:
    """The vectors that are searched."""
    try:
        ((series,),) = sql.execute("SELECT value FROM meta WHERE key = 'series'")
        return VectorSet("vector_tail", int(series))
    except ValueError as error:
        raise damaged(sql, "the number of the vectors in service is lost") from error


def gathering(sql: sqlite3.Connection) -> VectorSet:
    """The vectors of another encoder, until they are complete."""
    return VectorSet("next_vector_tail", in_service(sql).series + 1)


# --- change -----------------------------------------------------------------------------------------


def append(sql: sqlite3.Connection, to: VectorSet, rows: Rows) -> None:
    """Add vectors, whose ids are beyond all earlier ones; seals the tail when it is long enough."""
    ((tail,),) = sql.execute(f"SELECT count(*) FROM {to.tail}")
    if tail + len(rows) >= SEGMENT_ROWS:
        rows = _joined([read_tail(sql, to), rows])
        sql.execute(f"DELETE FROM {to.tail}")
        while len(rows) >= SEGMENT_ROWS:
            _seal(sql, to.series, rows.where(slice(SEGMENT_ROWS)))
            rows = rows.where(slice(SEGMENT_ROWS, None))
    sql.executemany(
        f"INSERT INTO {to.tail} VALUES (?, ?, ?, ?)",
        [
            (id, code, scale, _checksum(id, code, scale))
            for id, code, scale in zip(rows.ids.tolist(), map(bytes, rows.codes), rows.scales.tolist(), strict=True)
        ],
    )


def bury(sql: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Take the vectors of these passages (ascending) out of all segments; those of the tails go by reference.

    Segments that are dead for the most part are written anew, with a neighbour where both have room in one. The ids
    of a document are consecutive: all but its first and last segment die as a whole and cost no writing.
    """
    if not ids:
        return
    touched = _segments(sql, "last_id >= ? AND first_id <= ?", ids[0], ids[-1])
    for segment in touched:
        inside = [id for id in ids if segment.first_id <= id <= segment.last_id]
        sql.executemany("INSERT INTO dead_vectors VALUES (?, ?)", [(segment.id, id) for id in inside])
    for number in [segment.id for segment in touched]:
        for segment in _segments(sql, "id = ?", number):  # gone when the one before it has taken it in
            _compact(sql, segment)


def replace(sql: sqlite3.Connection) -> None:
    """Put the gathered vectors in service, in place of those that were."""
    sql.execute("DELETE FROM vector_segments WHERE series = ?", (in_service(sql).series,))
    sql.execute("UPDATE meta SET value = value + 1 WHERE key = 'series'")
    sql.execute("DELETE FROM vector_tail")
    sql.execute("INSERT INTO vector_tail SELECT * FROM next_vector_tail")
    sql.execute("DELETE FROM next_vector_tail")


def clear(sql: sqlite3.Connection, which: VectorSet) -> None:
    """Remove all vectors of a set."""
    sql.execute("DELETE FROM vector_segments WHERE series = ?", (which.series,))
    sql.execute(f"DELETE FROM {which.tail}")


def _seal(sql: sqlite3.Connection, series: int, rows: Rows) -> None:
    ids, scales, codes = rows.ids.astype("<i8").tobytes(), rows.scales.astype("<f4").tobytes(), rows.codes.tobytes()
    sql.execute(
        """INSERT INTO vector_segments (series, first_id, last_id, count, sha256, ids, scales, codes)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            series,
            int(rows.ids[0]),
            int(rows.ids[-1]),
            len(rows),
            _digest(series, rows.codes.shape[1], ids, scales, codes),
            ids,
            scales,
            codes,
        ),
    )


def _compact(sql: sqlite3.Connection, segment: Segment) -> None:
    """Drop a segment without live rows; rewrite one that is dead for more than half."""
    live = _live(sql, segment)
    if live == 0:
        sql.execute("DELETE FROM vector_segments WHERE id = ?", (segment.id,))
    elif live * 2 < segment.size:
        together = [segment]
        for neighbour in _neighbours(sql, segment):
            if live + _live(sql, neighbour) <= SEGMENT_ROWS:
                together = sorted((segment, neighbour), key=lambda one: one.first_id)
                break
        rows = _joined([_read_live(sql, one) for one in together])
        sql.executemany("DELETE FROM vector_segments WHERE id = ?", [(one.id,) for one in together])
        _seal(sql, segment.series, rows)


# --- read -------------------------------------------------------------------------------------------


def count(sql: sqlite3.Connection, which: VectorSet) -> int:
    """How many vectors are alive."""
    ((number,),) = sql.execute(
        f"""SELECT (SELECT count(*) FROM {which.tail})
            + (SELECT coalesce(sum(count), 0) FROM vector_segments WHERE series = ?1)
            - (SELECT count(*) FROM dead_vectors JOIN vector_segments ON id = segment WHERE series = ?1)""",
        (which.series,),
    )
    return int(number)


def last_id(sql: sqlite3.Connection, which: VectorSet) -> int:
    """The highest id; 0 where there is no vector."""
    ((highest,),) = sql.execute(
        f"""SELECT max(coalesce((SELECT max(passage_id) FROM {which.tail}), 0),
            coalesce((SELECT max(last_id) FROM vector_segments WHERE series = ?), 0))""",
        (which.series,),
    )
    return int(highest)


def segments_of(sql: sqlite3.Connection, which: VectorSet) -> list[Segment]:
    """The segments of a set, in the order of their ids."""
    return _segments(sql, "series = ?", which.series)


def _segments(sql: sqlite3.Connection, where: str, *parameters: int) -> list[Segment]:
    columns = "id, series, first_id, last_id, count"
    rows = sql.execute(
        f"SELECT {columns} FROM vector_segments WHERE {where} ORDER BY first_id", parameters
    ).fetchall()
    if any(type(value) is not int for row in rows for value in row):
        raise damaged(sql, "the list of vector segments holds what is not a number")
    return [Segment(*row) for row in rows]


def _neighbours(sql: sqlite3.Connection, segment: Segment) -> list[Segment]:
    everyone = _segments(sql, "series = ?", segment.series)
    place = everyone.index(segment)
    return everyone[place + 1 : place + 2] + everyone[max(place - 1, 0) : place]


def _live(sql: sqlite3.Connection, segment: Segment) -> int:
    ((dead,),) = sql.execute("SELECT count(*) FROM dead_vectors WHERE segment = ?", (segment.id,))
    return segment.size - int(dead)


def read(sql: sqlite3.Connection, segment: Segment) -> Rows:
    """All rows of a segment, the dead ones too. Raises `StoreDamagedError` where they are not what was sealed."""
    rows = _sound(sql, segment)
    if rows is None:
        raise damaged(sql, f"{segment} does not match its checksum")
    return rows


def read_tail(sql: sqlite3.Connection, which: VectorSet, after: int = 0) -> Rows:
    """The rows of the tail with ids above `after`. Raises `StoreDamagedError` for one that is not what was put."""
    found = sql.execute(
        f"SELECT passage_id, codes, scale, checksum FROM {which.tail} WHERE passage_id > ? ORDER BY passage_id",
        (after,),
    ).fetchall()
    for id, codes, scale, checksum in found:
        if not _is_sound(id, codes, scale, checksum):
            raise damaged(sql, f"the vector of passage {id} does not match its checksum")
    return Rows(
        np.array([row[0] for row in found], np.int64),
        np.frombuffer(b"".join([row[1] for row in found]), np.int8).reshape(len(found), -1 if found else 0),
        np.array([row[2] for row in found], np.float32),
    )


def tail_ids(sql: sqlite3.Connection, which: VectorSet) -> NDArray[np.int64]:
    """The ids of the tail, ascending."""
    return _ids(sql, f"SELECT passage_id FROM {which.tail} ORDER BY passage_id")


def dead_ids(sql: sqlite3.Connection, which: VectorSet) -> NDArray[np.int64]:
    """The ids that have a tombstone."""
    query = "SELECT passage_id FROM vector_segments JOIN dead_vectors ON segment = id WHERE series = ?"
    return _ids(sql, query, which.series)


def _read_live(sql: sqlite3.Connection, segment: Segment) -> Rows:
    rows = read(sql, segment)
    dead = _ids(sql, "SELECT passage_id FROM dead_vectors WHERE segment = ?", segment.id)
    return rows.where(np.isin(rows.ids, dead, invert=True))


def _sound(sql: sqlite3.Connection, segment: Segment) -> Rows | None:
    """The rows of a segment; None where they are not what was sealed."""
    columns = "sha256, ids, scales, codes"
    row = sql.execute(f"SELECT {columns} FROM vector_segments WHERE id = ?", (segment.id,)).fetchone()
    try:
        sha256, ids, scales, codes = row
        dimension = len(codes) // segment.size
        if _digest(segment.series, dimension, ids, scales, codes) == sha256:
            matrix = np.frombuffer(codes, np.int8).reshape(segment.size, dimension)
            rows = Rows(np.frombuffer(ids, "<i8"), matrix, np.frombuffer(scales, "<f4"))
            if (*rows.ids[[0, -1]], len(rows)) == segment[2:]:
                return rows
    except (TypeError, ValueError, ArithmeticError):  # a damaged file may hold anything in any column
        pass
    return None


def _joined(parts: Sequence[Rows]) -> Rows:
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.ids, part.codes, part.scales) for part in parts), strict=True)
    return Rows(*map(np.concatenate, columns))


def _ids(sql: sqlite3.Connection, query: str, *parameters: int | None) -> NDArray[np.int64]:
    try:
        return np.fromiter((row[0] for row in sql.execute(query, parameters)), np.int64)
    except (TypeError, ValueError) as error:
        raise damaged(sql, "what names a vector is not a number") from error


# --- check ------------------------------------------------------------------------------------------


def find_problems(
    sql: sqlite3.Connection, which: VectorSet, dimension: int, up_to: int | None = None
) -> Iterator[str]:
    """What is wrong with a set, one line each. `up_to`: the last passage that must have a vector; None for all."""
    passages = _ids(sql, "SELECT id FROM passages WHERE id <= coalesce(?, id) ORDER BY id", up_to)
    live, beyond = [], 0
    for segment in segments_of(sql, which):
        if segment.first_id <= beyond:
            yield f"{segment} is not in the order of ids"
        beyond = max(beyond, segment.last_id)
        rows = _sound(sql, segment)
        if rows is None:
            yield f"{segment} does not match its checksum"
            live.append(passages[(passages >= segment.first_id) & (passages <= segment.last_id)])  # said once
            continue
        if rows.codes.shape[1] != dimension:
            yield f"{segment} has vectors of {rows.codes.shape[1]} components, not of {dimension}"
        if (np.diff(rows.ids) <= 0).any():
            yield f"{segment} is not in the order of ids"
        dead = _ids(sql, "SELECT passage_id FROM dead_vectors WHERE segment = ?", segment.id)
        if not np.isin(dead, rows.ids).all():
            yield f"a tombstone names a vector that is not in {segment}"
        live.append(np.setdiff1d(rows.ids, dead))
    for id, codes, scale, checksum in sql.execute(f"SELECT * FROM {which.tail} ORDER BY passage_id"):
        if id <= beyond:
            yield f"the vector of passage {id} is not in the order of ids"
        if not _is_sound(id, codes, scale, checksum):
            yield f"the vector of passage {id} does not match its checksum"
        elif len(codes) != dimension:
            yield f"the vector of passage {id} has {len(codes)} components, not {dimension}"
        live.append(np.array([id]))
    ids = np.concatenate([*live, np.empty(0, np.int64)])
    for wrong, what in (
        (np.setdiff1d(ids, passages), "has a vector but no text"),
        (np.setdiff1d(passages, ids), "has no vector"),
    ):
        yield from (f"passage {id} {what}" for id in wrong[:20])
        if len(wrong) > 20:
            yield f"and so with {len(wrong) - 20} more passages"


def damaged(sql: sqlite3.Connection, what: str) -> StoreDamagedError:
    """The error for vectors that are not what was put. Their texts are elsewhere, so they can be made again."""
    path = sql.execute("PRAGMA database_list").fetchone()[2]
    return StoreDamagedError(
        f"store {path} is damaged: {what}", hint="run `edge reindex` to make its vectors again"
    )


def _digest(series: int, dimension: int, ids: bytes, scales: bytes, codes: bytes) -> bytes:
    """The checksum of a segment: SHA-256 of all that it is made of, after a head from which all lengths follow."""
    digest = hashlib.sha256(struct.pack("<qqq", series, dimension, len(ids)))
    for part in (ids, scales, codes):
        digest.update(part)
    return digest.digest()


def _checksum(id: int, codes: bytes, scale: float) -> int:
    """The checksum of a row of the tail, CRC-32."""
    return zlib.crc32(codes, zlib.crc32(struct.pack("<qd", id, scale)))


def _is_sound(id: int, codes: object, scale: object, checksum: object) -> bool:
    """Whether a row of the tail is what was put: a damaged file may hold anything in any column."""
    return type(codes) is bytes and type(scale) is float and _checksum(id, codes, scale) == checksum
