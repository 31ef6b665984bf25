"""One SQLite file that is safe to write: identity, durability, patience with locks, transactions, typed errors.

Knows nothing of what is in the file. Written for several processes on one file and several threads on one
`Database`, whose single connection they use in turn.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import StoreBusyError, StoreDamagedError, StoreError, StoreFullError

_SLICE = 0.2  # seconds that SQLite waits by itself, deaf to Ctrl-C; a longer wait is made of such slices
_MAGIC = b"SQLite format 3\0"
# The file may come from elsewhere, so its schema is not trusted: https://www.sqlite.org/security.html
_SETTINGS = """
    PRAGMA trusted_schema = OFF;
    PRAGMA cell_size_check = ON;
    PRAGMA mmap_size = 0;
    PRAGMA foreign_keys = ON;
    PRAGMA synchronous = FULL;
    PRAGMA temp_store = MEMORY;
    PRAGMA journal_size_limit = 16777216;
"""


@dataclass(frozen=True, slots=True)
class Schema:
    """What marks a file as ours, and how an empty or older one is brought to `version`, within a transaction."""

    application_id: int
    version: int
    migrate: Callable[[sqlite3.Connection], None]


class Database:
    """An open file. It does not survive `fork`: a child that uses it gets a `StoreError`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, read_only: bool, busy_timeout: float) -> None:
        self.path = path
        self.read_only = read_only
        self._connection: sqlite3.Connection | None = connection
        self._busy_timeout = busy_timeout
        self._pid = os.getpid()
        self._turn = threading.Lock()

    @classmethod
    def open(cls, path: Path, schema: Schema, *, read_only: bool, busy_timeout: float) -> Database:
        """Open or create the file, at the current schema.

        WAL with `synchronous=FULL`, so that a commit survives power loss; a rollback journal where the file
        system has no WAL. Raises `StoreError` for a path that cannot be opened and for a file of another program
        or a newer version, its subclasses for a locked, full or damaged one. A refused file is left untouched.
        """
        _prepare_path(path, read_only=read_only)
        uri = f"{path.absolute().as_uri()}?{_mode(path) if read_only else 'mode=rw'}"
        deadline = time.monotonic() + busy_timeout
        with _store_errors(path):
            connection = sqlite3.connect(
                uri, uri=True, timeout=min(_SLICE, busy_timeout), isolation_level=None, check_same_thread=False
            )
            try:
                connection.executescript(_SETTINGS)
                current = _version(connection, path, schema, deadline) == schema.version
                if read_only and not current:
                    raise StoreError(
                        f"store {path} is empty or of an older version", hint="open it for writing once"
                    )
                if not read_only:
                    set_journal_mode(connection, deadline)
                if not current:
                    _migrate(connection, path, schema, deadline)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, read_only=read_only, busy_timeout=busy_timeout)

    def close(self) -> None:
        """Close the file; closing twice is fine. In a forked child this does nothing: the file is the parent's."""
        if self._pid != os.getpid():
            return
        with self._turn:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction that sees one state of the file, whatever other processes write meanwhile."""
        return self._transaction("DEFERRED")

    def writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction that is all or nothing, and durable when the block has ended.

        IMMEDIATE takes the write lock first: a transaction that reads and then writes fails at once, without
        waiting, when another process has written in between.
        """
        return self._transaction("IMMEDIATE")

    @contextmanager
    def _transaction(self, mode: Literal["DEFERRED", "IMMEDIATE"]) -> Iterator[sqlite3.Connection]:
        if self._pid != os.getpid():  # asked before the lock, which another thread may have held at the fork
            raise StoreError(f"store {self.path} was opened in another process", hint="open it again after a fork")
        with self._turn, _store_errors(self.path):
            sql = self._connection
            if sql is None:
                raise StoreError(f"store {self.path} is closed", hint="open it again")
            deadline = time.monotonic() + self._busy_timeout
            try:
                _patiently(sql, f"BEGIN {mode}", deadline)
                if mode == "DEFERRED":  # only the first read takes its view of the file
                    _patiently(sql, "SELECT 1 FROM sqlite_master LIMIT 1", deadline)
                yield sql
                _patiently(sql, "COMMIT", deadline)
            except BaseException:
                if sql.in_transaction:
                    with suppress(sqlite3.Error):  # after some errors SQLite has rolled back by itself
                        sql.execute("ROLLBACK")
                raise


def set_journal_mode(connection: sqlite3.Connection, deadline: float) -> str:
    """A write-ahead log where the file system lets processes share memory, else a rollback journal."""
    try:
        mode = _patiently(connection, "PRAGMA journal_mode = WAL", deadline).fetchone()[0]
    except sqlite3.OperationalError as error:
        if _code(error) & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL):
            raise
        mode = "refused"
    if mode != "wal":
        mode = _patiently(connection, "PRAGMA journal_mode = DELETE", deadline).fetchone()[0]
    return str(mode)


def damaged(path: Path, cause: object) -> StoreDamagedError:
    """The error for a file that is not, or no longer, a sound store."""
    return StoreDamagedError(
        f"store {path} is damaged or not a store: {cause}",
        hint="restore a copy, or move the file away and add the documents again",
    )


def _prepare_path(path: Path, *, read_only: bool) -> None:
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Made here and not by SQLite: documents are private, and the system's errors say what is wrong.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        elif not path.is_file():
            raise StoreError(f"there is no store at {path}", hint="run `edge add PATH` first")
        with path.open("rb") as file:  # SQLite takes any file of a few bytes for empty, and writes over it
            start = file.read(len(_MAGIC))
        if start not in (b"", _MAGIC):
            raise damaged(path, "file is not a database")
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise StoreError(f"store {path!s} cannot be opened: {getattr(error, 'strerror', error)}") from error


def _mode(path: Path) -> str:
    """How to open for reading: on a read-only file system SQLite must not ask for memory to share with writers."""
    unchangeable = hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY
    return "immutable=1" if unchangeable else "mode=ro"


def _version(connection: sqlite3.Connection, path: Path, schema: Schema, deadline: float) -> int:
    """The schema version of the file, 0 when it is empty; raises for files that are not ours to touch."""
    tables = _patiently(connection, "SELECT count(*) FROM sqlite_master", deadline).fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != schema.application_id and (tables or application or version):
        raise StoreError(
            f"{path} is an SQLite database of another program, not an edge store", hint="choose another --store"
        )
    if version > schema.version:
        raise StoreError(
            f"store {path} has version {version}, this edge-sdk knows up to {schema.version}",
            hint="upgrade edge-sdk",
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, path: Path, schema: Schema, deadline: float) -> None:
    """All or nothing; where several processes find the same old file, one migrates and the others see it done."""
    _patiently(connection, "BEGIN IMMEDIATE", deadline)
    try:
        if _version(connection, path, schema, deadline) < schema.version:
            schema.migrate(connection)
            connection.execute(f"PRAGMA application_id = {schema.application_id}")
            connection.execute(f"PRAGMA user_version = {schema.version}")
        _patiently(connection, "COMMIT", deadline)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _patiently(connection: sqlite3.Connection, statement: str, deadline: float) -> sqlite3.Cursor:
    """Execute what may meet another process's lock, again and again until `deadline` (monotonic clock).

    In slices, because Python learns of Ctrl-C only when SQLite returns.
    """
    while True:
        try:
            return connection.execute(statement)
        except sqlite3.OperationalError as error:
            if _code(error) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """What SQLite raises inside becomes a `StoreError` that names the file, the cause and the next step."""
    started = time.monotonic()
    try:
        yield
    except UnicodeDecodeError as error:  # an error message that quotes damaged text
        raise damaged(path, "its schema is not text") from error
    except sqlite3.Error as error:
        raise _as_store_error(error, path, time.monotonic() - started) from error


def _as_store_error(error: sqlite3.Error, path: Path, waited: float) -> StoreError:
    code = _code(error)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusyError(
                f"store {path} is locked by another process (waited {waited:.1f} s)",
                hint="try again when the other one has finished",
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_FORMAT:
            return damaged(path, error)
    # A file-size limit or a quota shows as a failed write, not as SQLITE_FULL.
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
        return StoreFullError(
            f"no space to write to store {path}; what was acknowledged is safe",
            hint="free some space and run it again",
        )
    if code == sqlite3.SQLITE_IOERR_SHORT_READ or "decode to UTF-8" in str(error):
        return damaged(path, error)
    return StoreError(f"store {path}: {error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})")


def _code(error: sqlite3.Error) -> int:
    """SQLite's extended result code; 0 for what Python's module raises by itself."""
    return int(getattr(error, "sqlite_errorcode", 0))
