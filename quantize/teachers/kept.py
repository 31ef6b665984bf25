"""Replies of teachers, kept in one SQLite file: what has been asked once is never asked, nor paid for, again.

A reply is on the disk before the next one is taken, so a process that is killed at any moment loses only what was
being asked. Knows nothing of how a teacher works or of what replies are for.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self, get_args

from edge_sdk.errors import StoreDamagedError, StoreError
from edge_sdk.fallback.ledger import Transactions
from edge_sdk.records import FinishReason
from edge_sdk.storage.database import Database, Schema
from edge_sdk.storage.version_3 import TABLES

from ..collection import Update
from .teacher import Reply, Request, Teacher

_REPLIES = """CREATE TABLE replies (
    teacher TEXT NOT NULL,
    request TEXT NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL CHECK (finish_reason IN ('stop', 'length', 'cancelled')),
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    logprobs BLOB NOT NULL,  -- little-endian doubles, one a token
    cost REAL NOT NULL,
    seconds REAL NOT NULL,  -- since the reply before it, so that the sum is the time that was spent waiting
    PRIMARY KEY (teacher, request)
) WITHOUT ROWID"""
_COLUMNS = "text, finish_reason, prompt_tokens, completion_tokens, logprobs, cost"
_LEDGER = ("spend", "spend_by_time", "breakers")  # the tables of `fallback.ledger` and `fallback.breaker`
_PATIENCE = 30.0  # seconds for another process that writes to the same file


@dataclass(frozen=True, slots=True)
class Summary:
    """What the kept replies took altogether; `seconds` is the time spent waiting for them, `cost` money."""

    replies: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float


class Kept:
    """A file of replies, made where it does not exist; several processes and threads may use one.

    >>> with Kept(Path("replies.db")) as kept:  # doctest: +SKIP
    ...     replies = kept.ask(teacher, requests)
    """

    def __init__(self, path: Path) -> None:
        """Raises `StoreDamagedError` for a file that is none or is damaged, `StoreError` for other obstacles."""
        self.path = path
        with self._errors():
            self._database = Database.open(path, _SCHEMA, read_only=False, busy_timeout=_PATIENCE)
        try:
            with self._errors(), self._database.reading() as sql:
                found = sql.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise StoreDamagedError(" ".join(str(found).split()))
        except BaseException:
            self.close()
            raise

    @property
    def ledger(self) -> Transactions:
        """For `fallback.caller`: the tables in which calls that cost something are written down."""
        return self._database

    def ask(
        self,
        teacher: Teacher,
        requests: Sequence[Request],
        progress: Update = lambda done, total, detail: None,
        cancel: Event | None = None,
    ) -> list[Reply | None]:
        """A reply to each request: kept ones, and the teacher's to the others. Equal requests are asked once.

        None stands where the teacher gave none, because `cancel` was set or it could not answer. Whatever the
        teacher raises comes through; what it had replied until then is kept. `progress` counts replies.
        """
        fingerprint, replies = teacher.fingerprint, self._kept(teacher.fingerprint, requests)
        missing = list({request.key: request for request in requests if request.key not in replies}.values())
        total = len(replies) + len(missing)
        progress(len(replies), total, "replies")
        if missing and not (cancel is not None and cancel.is_set()):
            coming, since = teacher.replies(missing, cancel), time.monotonic()
            try:
                for position, reply in coming:
                    now = time.monotonic()
                    key = missing[position].key
                    replies[key] = self._keep(fingerprint, key, reply, now - since)
                    since = now
                    progress(len(replies), total, "replies")
            finally:
                if isinstance(coming, Generator):
                    coming.close()
        return [replies.get(request.key) for request in requests]

    def summary(self, fingerprint: str | None = None) -> Summary:
        """What all replies took, or those of one teacher."""
        with self._errors(), self._database.reading() as sql:
            row = sql.execute(
                """SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
                    coalesce(sum(cost), 0.0), coalesce(sum(seconds), 0.0)
                FROM replies WHERE ?1 IS NULL OR teacher = ?1""",
                (fingerprint,),
            ).fetchone()
        return Summary(*row)

    def close(self) -> None:
        """Close the file; again does nothing."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _kept(self, fingerprint: str, requests: Sequence[Request]) -> dict[str, Reply]:
        found = {}
        with self._errors(), self._database.reading() as sql:
            for key in {request.key for request in requests}:
                row = sql.execute(
                    f"SELECT {_COLUMNS} FROM replies WHERE teacher = ? AND request = ?", (fingerprint, key)
                ).fetchone()
                if row is not None:
                    found[key] = _reply(row)
        return found

    def _keep(self, fingerprint: str, key: str, reply: Reply, seconds: float) -> Reply:
        """Write a reply down; as it will be read again."""
        reply = replace(reply, text=reply.text.encode("utf-8", "replace").decode())  # half a character is no text
        with self._errors(), self._database.writing() as sql:
            sql.execute(
                f"""INSERT OR REPLACE INTO replies (teacher, request, {_COLUMNS}, seconds)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                (
                    fingerprint,
                    key,
                    reply.text,
                    reply.finish_reason,
                    reply.prompt_tokens,
                    reply.completion_tokens,
                    _packed(reply.logprobs),
                    float(reply.cost),
                    seconds,
                ),
            )
        return reply

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What the store's errors advise is for documents."""
        try:
            yield
        except StoreDamagedError as error:
            raise StoreDamagedError(
                f"{self.path} is damaged, or holds no replies of teachers: {error.message}",
                hint="restore a copy, or move it away and ask again",
            ) from error
        except StoreError as error:
            raise type(error)(error.message, hint=error.hint.replace("--store", "file")) from error


def _migrate(sql: sqlite3.Connection) -> None:
    for statement in (_REPLIES, *(table for table in TABLES if table.split()[2] in _LEDGER)):
        sql.execute(statement)


_SCHEMA = Schema(application_id=0x45444B31, version=1, migrate=_migrate)


def _packed(logprobs: Sequence[float]) -> bytes:
    values = array("d", logprobs)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _reply(row: Sequence[Any]) -> Reply:
    text, reason, prompt, completion, packed, cost = row
    values = array("d")
    try:
        values.frombytes(packed)
        if reason not in get_args(FinishReason):
            raise ValueError(f"a reply ended with {reason!r}")
        if sys.byteorder == "big":
            values.byteswap()
        return Reply(str(text), reason, int(prompt), int(completion), tuple(values), float(cost))
    except (TypeError, ValueError) as error:
        raise StoreDamagedError(f"a row makes no sense: {error}") from error
