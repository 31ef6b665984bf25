"""Documents, their passages, the full-text index and the vectors, in one SQLite file.

A document is stored as a whole and acknowledged when `put` returns: from then on neither a kill nor a power loss
takes it back. Several processes may use one file, and several threads one `Store`: they take turns on its one
connection. Knows nothing of parsing, of how text becomes vectors, or of ranking.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..documents.chunk import embedding_text
from ..errors import EncoderMismatchError, StoreDamagedError, StoreError
from ..records import Chunk, DocumentInfo, ParsedDocument, Passage
from . import decisions, schema, segments
from .database import Database, Schema, damaged
from .schema import StoredEncoder
from .vector_reader import VectorReader
from .vectors import VectorIndex, quantize_rows

if TYPE_CHECKING:
    from ..encoders.embed import Encoder

_SCHEMA = Schema(schema.APPLICATION_ID, schema.VERSION, schema.migrate)
# Column weights of BM25: title, heading, text. A heading names what its passage is about (on identifiers in
# Python's documentation the first hit was right for .87 instead of .84); a title stands on every passage alike.
_BM25 = "bm25(1.0, 2.0, 1.0)"
_REINDEX_BATCH = 64  # passages a transaction: the most that a kill costs
_PASSAGE = """
    SELECT passages.id, name, title, heading, text, "start", "end",
        CASE passages.label WHEN '' THEN documents.label ELSE passages.label END, text_hash
    FROM passages JOIN documents ON documents.id = document_id WHERE passages.id = ?"""


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How much a store holds. Every passage has one vector."""

    documents: int
    passages: int


class Store:
    """An open store. Use `Store.open`; it is a context manager.

    Every method raises a `StoreError`; a busy, full or damaged store has its own subclass. A `Store` does not
    survive `fork`: open another one in the child.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._encoder: StoredEncoder | None = None
        self._label: str | None = None
        self._index: tuple[str | None, VectorIndex] | None = None  # with the generation that it shows
        self._vectors = VectorReader()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder_fingerprint: str | None = None,
        dimension: int | None = None,
        read_only: bool = False,
        busy_timeout: float = 10.0,
    ) -> Store:
        """Open the store at `path`; unless `read_only`, it is made where there is none, with its folder.

        The encoder may be declared here (fingerprint and dimension) or by `use_encoder`, at the latest before
        `put`. `busy_timeout` is how many seconds an operation waits for another process.
        """
        store = cls(Database.open(Path(path), _SCHEMA, read_only=read_only, busy_timeout=busy_timeout))
        if encoder_fingerprint is not None:
            try:
                store.use_encoder(encoder_fingerprint, dimension or 0)
            except BaseException:
                store.close()
                raise
        return store

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._database.path

    def close(self) -> None:
        """Close the file. Closing twice is fine; anything else afterwards is a `StoreError`."""
        self._database.close()
        self._index = None
        self._vectors.forget()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the encoder --------------------------------------------------------------------------------

    def encoder(self) -> StoredEncoder | None:
        """The encoder that made the vectors; None for a store that never held any."""
        with self._database.reading() as sql:
            return schema.encoder_of(sql)

    def use_encoder(self, fingerprint: str, dimension: int) -> None:
        """Declare where vectors and queries come from, for `put`, which records it with the first document.

        Raises `EncoderMismatchError` when the vectors in the store are another encoder's.
        """
        if dimension < 1:
            raise ValueError(f"an encoder of {dimension} dimensions")
        encoder = StoredEncoder(fingerprint, dimension)
        with self._database.reading() as sql:
            self._require(sql, encoder)
        self._encoder = encoder

    def _require(self, sql: sqlite3.Connection, encoder: StoredEncoder) -> None:
        recorded = schema.encoder_of(sql)
        if recorded not in (None, encoder) and segments.count(sql, segments.in_service(sql)):
            raise EncoderMismatchError(
                f"the vectors in {self.path} were made by encoder {recorded}, not by {encoder}",
                hint="run `edge reindex` to embed its passages again, or use the other encoder",
            )

    # --- documents ----------------------------------------------------------------------------------

    def put(
        self, document: ParsedDocument, chunks: Sequence[Chunk], vectors: NDArray[np.float32]
    ) -> Literal["added", "updated"]:
        """Store a document with its passages and their vectors, in place of an earlier version of that name.

        `vectors` is [len(chunks), dimension] with rows of unit length (or zeros: a text without a token). Returns
        after COMMIT: all of the document is there or, on any error, the store is as it was. Lone surrogates and
        NUL become U+FFFD.
        """
        return self.put_all([(document, chunks, vectors)])[0]

    def put_all(
        self, documents: Sequence[tuple[ParsedDocument, Sequence[Chunk], NDArray[np.float32]]]
    ) -> list[Literal["added", "updated"]]:
        """Store several documents in one transaction, as `put` does one: all of them are there, or none.

        Small documents cost mostly their COMMIT, in time and in what a memory card has to write.
        """
        encoder = self._encoder
        if encoder is None:
            raise StoreError(f"no encoder was declared for {self.path}", hint="call use_encoder before put")
        quantised = [_checked(*each, encoder) for each in documents]
        statuses: list[Literal["added", "updated"]] = []
        with self._database.writing() as sql:
            self._require(sql, encoder)
            schema.set_encoder(sql, encoder)
            for (document, chunks, _), (codes, scales) in zip(documents, quantised, strict=True):
                known = schema.document_id(sql, document.name)
                if known is not None:
                    schema.remove_passages(sql, known)
                stored = schema.put_document(sql, document, len(chunks), self._label)
                schema.insert_passages(sql, stored, chunks, codes, scales)
                statuses.append("added" if known is None else "updated")
            schema.count_change(sql)
        return statuses

    def delete(self, name: str) -> bool:
        """Remove a document with its passages; False when there is none of that name."""
        with self._database.writing() as sql:
            known = schema.document_id(sql, name)
            if known is not None:
                schema.remove_passages(sql, known)
                sql.execute("DELETE FROM documents WHERE id = ?", (known,))
                schema.count_change(sql)
        return known is not None

    def use_label(self, label: str | None) -> None:
        """Give this label to every document that is put from now on; None: new ones get "", others keep theirs."""
        self._label = None if label is None else schema.storable(label)

    def set_label(self, name: str, label: str) -> bool:
        """Label a document, and so its passages; False when there is none of that name."""
        with self._database.writing() as sql:
            changed = sql.execute(
                "UPDATE documents SET label = ? WHERE name = ?",
                (schema.storable(label), schema.storable_name(name)),
            )
            return changed.rowcount > 0

    def content_hash(self, name: str) -> str | None:
        """The content hash of the stored version of a document; None when there is none."""
        with self._database.reading() as sql:
            row = sql.execute(
                "SELECT content_hash FROM documents WHERE name = ?", (schema.storable_name(name),)
            ).fetchone()
        return None if row is None else str(row[0])

    def documents(self) -> list[DocumentInfo]:
        """Every document, by name."""
        with self._database.reading() as sql:
            rows = sql.execute(
                """SELECT name, title, media_type, characters, passages, content_hash, added_at, label
                FROM documents ORDER BY name"""
            )
            return [DocumentInfo(*row) for row in rows]

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """The passages with these ids, in this order, without those that are gone by now.

        Each text is checked against its hash: bit rot is a `StoreDamagedError` and never an answer.
        """
        with self._database.reading() as sql:
            rows = [row for id in ids if (row := sql.execute(_PASSAGE, (int(id),)).fetchone()) is not None]
        for row in rows:
            if schema.text_hash(str(row[4])) != row[8]:
                raise damaged(self.path, f"passage {row[0]} of {row[1]!r} does not match its checksum")
        return [Passage(*row[:8]) for row in rows]

    def counts(self) -> StoreCounts:
        """How many documents and passages there are."""
        with self._database.reading() as sql:
            return StoreCounts(schema.count(sql, "documents"), schema.count(sql, "passages"))

    # --- search -------------------------------------------------------------------------------------

    def search_text(self, match: str, limit: int) -> list[tuple[int, float]]:
        """The passages that match an FTS5 expression, as (id, BM25), best first; larger is better.

        Make `match` with `fulltext.match_expression`; "" matches nothing. Equal scores are ordered by id.
        """
        if not match or limit <= 0:
            return []
        with self._database.reading() as sql:
            rows = sql.execute(
                """SELECT rowid, -rank FROM passages_fts WHERE passages_fts MATCH ? AND rank MATCH ?
                ORDER BY rank, rowid LIMIT ?""",
                (schema.storable(match), _BM25, limit),
            )
            return [(int(id), float(score)) for id, score in rows]

    def count_text(self, match: str, limit: int) -> int:
        """How many passages match an FTS5 expression; counting stops at `limit`. Takes a tenth of a search."""
        with self._database.reading() as sql:
            found = sql.execute(
                "SELECT count(*) FROM (SELECT 1 FROM passages_fts WHERE passages_fts MATCH ? LIMIT ?)",
                (schema.storable(match), limit),
            ).fetchone()
        return int(found[0])

    def vector_index(self) -> VectorIndex:
        """All vectors, in memory. After a change by this or another process, only what is new is read.

        Raises `EncoderMismatchError` when they are not (or no longer) those of the declared encoder, and
        `StoreDamagedError` when one of those read does not match its checksum.
        """
        with self._database.reading() as sql:
            encoder = schema.encoder_of(sql)
            if self._encoder is not None:
                self._require(sql, self._encoder)
            generation = schema.meta(sql, "generation")
            if self._index is None or self._index[0] != generation:
                self._index = None  # where it has to be read anew, the old one's memory is free before
                self._index = generation, self._vectors.index(sql, encoder.dimension if encoder else 0)
            return self._index[1]

    # --- decisions ----------------------------------------------------------------------------------

    @property
    def database(self) -> Database:
        """The file and its transactions, for what is kept beside the documents: ledger, outbox, learned answers."""
        return self._database

    def keep_decision(self, id: str, record: str, *, question: str = "", route: str = "") -> None:
        """Keep the record (JSON) of how a question was routed; beyond 10,000 the oldest are dropped.

        The question itself is not kept, only a hash of it under a key of this store.
        """
        with self._database.writing() as sql:
            decisions.keep(sql, id, record, question=question, route=route, now=time.time())

    def decision(self, id: str) -> str | None:
        """The record that was kept under this id; None when there is none, or no longer."""
        with self._database.reading() as sql:
            return decisions.record_of(sql, id)

    # --- care ---------------------------------------------------------------------------------------

    def reindex(self, encoder: Encoder, progress: Callable[[int, int], None] | None = None) -> int:
        """Embed every passage with `encoder` and use it from now on; returns how many were embedded.

        The old vectors serve until the new ones are complete and take their place in one transaction. After a
        kill, the next call goes on where it stopped. `progress(done, total)` is called after every batch.
        """
        target = StoredEncoder(encoder.fingerprint, encoder.dimension)
        with self._database.writing() as sql:
            if schema.encoder_of(sql) == target and not any(schema.find_vector_problems(sql)):
                self._encoder = target
                return 0
            if schema.encoder_of(sql, "next_") != target or any(schema.find_vector_problems(sql, "next_")):
                segments.clear(sql, segments.gathering(sql))
                schema.set_encoder(sql, target, "next_")
            before = segments.count(sql, segments.gathering(sql))
        embedded = 0
        while batch := self._next_to_embed(target):
            texts = [embedding_text(heading, text) for _, heading, text in batch]
            codes, scales = _quantised(encoder.encode(texts), len(batch), target, str(self.path))
            with self._database.writing() as sql:
                self._require_reindex(sql, target)
                to, ids = segments.gathering(sql), np.array([id for id, _, _ in batch])
                wanted = sql.execute(  # one may have been deleted meanwhile, or embedded by another process
                    "SELECT id FROM passages WHERE id > ? AND id <= ?", (segments.last_id(sql, to), int(ids[-1]))
                ).fetchall()
                there = np.isin(ids, [id for (id,) in wanted])
                segments.append(sql, to, segments.Rows(ids, codes, scales).where(there))
                total = schema.count(sql, "passages")
            embedded += len(batch)
            if progress is not None:
                progress(min(before + embedded, total), total)
        self._encoder = target
        return embedded

    def _next_to_embed(self, target: StoredEncoder) -> list[tuple[int, str, str]]:
        """The next passages without a new vector. When there are none, the new vectors replace the old ones."""
        with self._database.writing() as sql:
            self._require_reindex(sql, target)
            # Ids only grow and are taken in order, so all up to the highest are done or deleted.
            rows = sql.execute(
                "SELECT id, heading, text FROM passages WHERE id > ? ORDER BY id LIMIT ?",
                (segments.last_id(sql, segments.gathering(sql)), _REINDEX_BATCH),
            ).fetchall()
            if not rows:
                segments.replace(sql)
                schema.set_encoder(sql, None, "next_")
                schema.set_encoder(sql, target)
                schema.count_change(sql)
            return rows

    def _require_reindex(self, sql: sqlite3.Connection, target: StoredEncoder) -> None:
        if schema.encoder_of(sql, "next_") != target:
            raise StoreError(f"another process reindexes {self.path} too", hint="run `edge reindex` again")

    def check(self) -> list[str]:
        """What is wrong with the store, one line each; empty when it is sound. Reads the whole file.

        A store opened `read_only` is checked without its full-text index, whose own check counts as a write.
        """
        full_text = not self._database.read_only
        try:
            with self._database.writing() if full_text else self._database.reading() as sql:
                return list(schema.find_problems(sql, full_text=full_text))
        except StoreDamagedError as error:
            return [error.message]


def _checked(
    document: ParsedDocument, chunks: Sequence[Chunk], vectors: NDArray[np.float32], encoder: StoredEncoder
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The vectors of a document as they are stored; refuses passages that are not parts of its text."""
    for chunk in chunks:
        if chunk.text != document.text[chunk.start : chunk.end]:
            raise ValueError(f"{document.name!r} has another text at {chunk.start} than its passage")
    return _quantised(vectors, len(chunks), encoder, document.name)


def _quantised(
    vectors: NDArray[np.float32], count: int, encoder: StoredEncoder, what: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The vectors as they are stored; refuses any that would make later cosines wrong."""
    if count == 0:
        return np.empty((0, encoder.dimension), np.int8), np.empty(0, np.float32)
    if len(vectors) != count:
        raise ValueError(f"{len(vectors)} vectors for {count} passages of {what!r}")
    if vectors.shape != (count, encoder.dimension):
        raise EncoderMismatchError(
            f"vectors for {what!r} have shape {vectors.shape}, not those of encoder {encoder}"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isclose(lengths, 1, atol=0.01) | (lengths == 0)).all():  # NaN is close to nothing
        raise StoreError(f"encoder {encoder} gave vectors for {what!r} that are not of unit length")
    return quantize_rows(vectors)
