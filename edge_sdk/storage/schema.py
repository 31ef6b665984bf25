"""What is in a store: the tables, their migrations, the statements that change them, and the check of it all.

The only module that uses `sqlite_utils`, and only to create or migrate. Every function runs inside a transaction
of its caller. Knows nothing of files, locks or durability.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..records import Chunk, ParsedDocument
from . import segments, version_3

if TYPE_CHECKING:
    from sqlite_utils import Database, Migrations

APPLICATION_ID = 0x45444745  # "EDGE", at offset 68 of the file
VERSION = 3  # `user_version`; one higher with every migration

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT: an id is never used again, so an index of ids in memory can be outdated but never wrong.
    """CREATE TABLE documents (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        media_type TEXT NOT NULL,
        content_hash TEXT NOT NULL,
        characters INTEGER NOT NULL,
        passages INTEGER NOT NULL,
        added_at TEXT NOT NULL
    )""",
    """CREATE TABLE passages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        heading TEXT NOT NULL,
        text TEXT NOT NULL,
        "start" INTEGER NOT NULL,
        "end" INTEGER NOT NULL,
        text_hash BLOB NOT NULL,
        UNIQUE (document_id, position)
    )""",
    """CREATE VIEW indexed_passages AS
        SELECT passages.id, documents.id AS document_id, documents.title, passages.heading, passages.text
        FROM passages JOIN documents ON documents.id = passages.document_id""",
    # External content: the index holds no second copy of the text. Kept in step by statements, not by triggers,
    # because an untrusted schema may not reach a virtual table.
    """CREATE VIRTUAL TABLE passages_fts USING fts5 (
        title, heading, text, content = 'indexed_passages', content_rowid = 'id',
        tokenize = 'porter unicode61 remove_diacritics 2'
    )""",
    """CREATE TABLE vectors (
        passage_id INTEGER PRIMARY KEY REFERENCES passages (id) ON DELETE CASCADE,
        codes BLOB NOT NULL,
        scale REAL NOT NULL
    )""",
    # Where another encoder's vectors gather until they are complete and take the place of `vectors`.
    """CREATE TABLE vectors_next (
        passage_id INTEGER PRIMARY KEY REFERENCES passages (id) ON DELETE CASCADE,
        codes BLOB NOT NULL,
        scale REAL NOT NULL
    )""",
    "INSERT INTO meta (key, value) VALUES ('generation', '0')",
)


@dataclass(frozen=True, slots=True)
class StoredEncoder:
    """Which encoder made the vectors of a store."""

    fingerprint: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.fingerprint[:12]} ({self.dimension} dimensions)"


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an empty or older store to `VERSION`."""
    from sqlite_utils import Database

    # Plugins of sqlite-utils are someone else's code; there are no triggers.
    _migrations().apply(Database(connection, execute_plugins=False, recursive_triggers=False))


def _migrations() -> Migrations:
    """Every step from an empty file to `VERSION`. A published step is never edited: add the next one."""
    from sqlite_utils import Migrations

    migrations = Migrations("edge")

    @migrations(name="0001_documents_passages_vectors")
    def initial(db: Database) -> None:
        for statement in _SCHEMA:
            db.execute(statement)

    @migrations(name="0002_vector_segments")
    def vector_segments(db: Database) -> None:
        for statement in segments.TABLES:
            db.execute(statement)
        _move_vectors(db.conn, "vectors", segments.in_service(db.conn), "dimension")
        _move_vectors(db.conn, "vectors_next", segments.gathering(db.conn), "next_dimension")

    @migrations(name="0003_routing")
    def routing(db: Database) -> None:
        for statement in version_3.TABLES:
            db.execute(statement)

    return migrations


def _move_vectors(sql: sqlite3.Connection, table: str, to: segments.VectorSet, dimension: str) -> None:
    """From version 1, where each was a row. One that has lost bytes stays behind, and the check will miss it."""
    length = int(meta(sql, dimension) or 0)
    query = f"SELECT passage_id, codes, scale FROM {table} WHERE length(codes) = ? ORDER BY passage_id LIMIT ?"
    while rows := sql.execute(query, (length, segments.SEGMENT_ROWS)).fetchall():
        ids, codes, scales = zip(*rows, strict=True)
        matrix = np.frombuffer(b"".join(codes), np.int8).reshape(len(rows), length)
        # First, so that the new rows take the place of the old ones and the file does not grow.
        sql.execute(f"DELETE FROM {table} WHERE passage_id <= ?", (ids[-1],))
        segments.append(sql, to, segments.Rows(np.array(ids), matrix, np.array(scales, np.float32)))
    # The new tables have other names, so that a process which still runs version 1 fails and never serves a part.
    sql.execute(f"DROP TABLE {table}")


# --- documents --------------------------------------------------------------------------------------


def put_document(sql: sqlite3.Connection, document: ParsedDocument, passages: int, label: str | None = None) -> int:
    """Insert or update the row of a document; its id. Without a new label an updated one keeps the old."""
    relabel = "" if label is None else ", label = excluded.label"
    row = sql.execute(
        f"""INSERT INTO documents (name, title, media_type, content_hash, characters, passages, added_at, label)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (name) DO UPDATE SET
            title = excluded.title, media_type = excluded.media_type, content_hash = excluded.content_hash,
            characters = excluded.characters, passages = excluded.passages, added_at = excluded.added_at
            {relabel}
        RETURNING id""",
        (
            storable_name(document.name),
            storable(document.title),
            storable(document.media_type),
            document.content_hash,
            len(document.text),
            passages,
            datetime.now(UTC).isoformat(timespec="seconds"),
            label or "",
        ),
    ).fetchone()
    return int(row[0])


def insert_passages(
    sql: sqlite3.Connection,
    document: int,
    chunks: Sequence[Chunk],
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
) -> None:
    """Insert the passages of a document with their vectors and full-text entries."""
    ids = []
    for position, chunk in enumerate(chunks):
        text = storable(chunk.text)
        inserted = sql.execute(
            """INSERT INTO passages (document_id, position, heading, text, "start", "end", text_hash)
            VALUES (?, ?, ?, ?, ?, ?, ?)""",
            (document, position, storable(chunk.heading), text, chunk.start, chunk.end, text_hash(text)),
        )
        ids.append(inserted.lastrowid)
    segments.append(sql, segments.in_service(sql), segments.Rows(np.array(ids, np.int64), codes, scales))
    sql.execute(
        """INSERT INTO passages_fts (rowid, title, heading, text)
        SELECT id, title, heading, text FROM indexed_passages WHERE document_id = ?""",
        (document,),
    )


def remove_passages(sql: sqlite3.Connection, document: int) -> None:
    """Take a document's passages out: first of the full-text index, which has to be told the old text."""
    sql.execute(
        """INSERT INTO passages_fts (passages_fts, rowid, title, heading, text)
        SELECT 'delete', id, title, heading, text FROM indexed_passages WHERE document_id = ?""",
        (document,),
    )
    ids = sql.execute("SELECT id FROM passages WHERE document_id = ? ORDER BY id", (document,)).fetchall()
    segments.bury(sql, [id for (id,) in ids])
    sql.execute("DELETE FROM passages WHERE document_id = ?", (document,))  # vectors in a tail go by reference


def document_id(sql: sqlite3.Connection, name: str) -> int | None:
    """The row of the document with this name."""
    row = sql.execute("SELECT id FROM documents WHERE name = ?", (storable_name(name),)).fetchone()
    return None if row is None else int(row[0])


def encoder_of(sql: sqlite3.Connection, prefix: str = "") -> StoredEncoder | None:
    """The encoder of the vectors in service; with "next_" that of those that gather."""
    fingerprint, dimension = meta(sql, f"{prefix}encoder"), meta(sql, f"{prefix}dimension")
    return StoredEncoder(fingerprint, int(dimension)) if fingerprint and dimension else None


def set_encoder(sql: sqlite3.Connection, encoder: StoredEncoder | None, prefix: str = "") -> None:
    """Record the encoder of the vectors in service, or with "next_" of those that gather; None forgets it."""
    if encoder == encoder_of(sql, prefix):
        return
    keys = f"{prefix}encoder", f"{prefix}dimension"
    sql.execute("DELETE FROM meta WHERE key IN (?, ?)", keys)
    if encoder is not None:
        values = encoder.fingerprint, str(encoder.dimension)
        sql.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", zip(keys, values, strict=True))


def meta(sql: sqlite3.Connection, key: str) -> str | None:
    """A fact about the whole store."""
    row = sql.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def count_change(sql: sqlite3.Connection) -> None:
    """Tells every process that the vectors it has in memory are outdated."""
    sql.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")


def count(sql: sqlite3.Connection, table: str) -> int:
    """Rows of one of our tables."""
    return int(sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def storable_name(name: str) -> str:
    r"""File names may hold bytes that are not text; those are spelled out, so that two names stay two.

    >>> print(storable_name("caf\udce9.txt"))
    caf\udce9.txt
    """
    return storable(name.encode("utf-8", "backslashreplace").decode())


# --- text and checksums -----------------------------------------------------------------------------


def storable(text: str) -> str:
    """`text` as SQLite can hold it: each lone surrogate and each NUL becomes U+FFFD, so offsets stay.

    >>> storable("a\\ud800b\\0")
    'a\ufffdb\ufffd'
    """
    if "\0" in text:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def text_hash(text: str) -> bytes:
    """The checksum that is kept with a passage: SHA-256 of its UTF-8 text."""
    return hashlib.sha256(text.encode()).digest()


def find_problems(connection: sqlite3.Connection, *, full_text: bool) -> Iterator[str]:
    """What is wrong, one line each: structure, full-text index, references, numbers, checksums.

    Call it inside a transaction, and with `full_text` in one that may write.
    """
    for (line,) in connection.execute("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"SQLite: {' '.join(line.split())}"
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} belongs to nothing in {parent}"
    if full_text:
        try:  # rank 1: compare with the passages, too
            connection.execute("INSERT INTO passages_fts (passages_fts, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            yield f"the full-text index does not match the passages: {error}"
    for name, found, passages in connection.execute(
        """SELECT name, count(position), documents.passages FROM documents
        LEFT JOIN passages ON document_id = documents.id GROUP BY documents.id
        HAVING count(position) <> documents.passages OR max(position) <> documents.passages - 1"""
    ):
        yield f"{name!r} has {found} of {passages} passages"
    yield from find_vector_problems(connection)
    yield from find_vector_problems(connection, "next_")
    for id, name, text, checksum in connection.execute(
        "SELECT passages.id, name, text, text_hash FROM passages JOIN documents ON documents.id = document_id"
    ):
        if text_hash(str(text)) != checksum:
            yield f"passage {id} of {name!r} does not match its checksum"


def find_vector_problems(sql: sqlite3.Connection, prefix: str = "") -> Iterator[str]:
    """What is wrong with the vectors in service, or with "next_" with those that gather."""
    encoder = encoder_of(sql, prefix)
    which = segments.gathering(sql) if prefix else segments.in_service(sql)
    up_to = segments.last_id(sql, which) if prefix else None
    return segments.find_problems(sql, which, encoder.dimension if encoder else 0, up_to)
