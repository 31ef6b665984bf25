"""The program that `test_crash` kills: it forks workers that write to a store and acknowledge on standard output.

Each line of standard input is an order in JSON. The answer is `start PID...`, whatever the workers say, and, when
all of them have ended or were killed, `end STATUS...`. Forked from one process that has loaded everything, a worker
writes its first document some milliseconds after the order.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_documents import WordEncoder, made

from edge_sdk import ingest
from edge_sdk.errors import StoreError, StoreFullError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.records import Chunk, ParsedDocument
from edge_sdk.storage import schema, segments
from edge_sdk.storage.store import Store
from edge_sdk.storage.vectors import quantize_rows

ENCODER = WordEncoder(dimension=16)
NAMES = 30
segments.SEGMENT_ROWS = 8  # so that every third step seals or compacts
OPERATIONS = 3  # of which one deletes, where there is something to delete


def version_of(name: str, version: int) -> tuple[ParsedDocument, list[Chunk]]:
    """What a document holds in one version; so the reader can tell what it ought to find."""
    texts = [f"{name} version {version} passage {number} " * 8 for number in range(1 + version % 5)]
    return made(name, *texts, heading=f"{name} › {version}", title=f"title {version}")


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # one write: workers' lines do not mix


def put_version(store: Store, name: str, version: int) -> None:
    document, chunks = version_of(name, version)
    store.put(document, chunks, ENCODER.encode([chunk.text for chunk in chunks]))


def write(path: str, first: int, count: int, worker: str = "", early: bool = False, only_add: bool = False) -> None:
    """Add, update and delete; say `begin` before each step and `ack` when it is durable."""
    store = Store.open(path, encoder_fingerprint=ENCODER.fingerprint, dimension=ENCODER.dimension)
    for version in range(first, first + count):
        name = f"{worker}{version if only_add else version * 7 % NAMES}"
        if early:  # the sabotage: acknowledge when all is written but not committed
            _before_commit(lambda name=name, version=version: say("ack", name, version))
        if version % OPERATIONS == 2 and not only_add and not early:
            say("begin", name, "gone")
            store.delete(name)
            say("ack", name, "gone")
        else:
            say("begin", name, version)
            put_version(store, name, version)
            if not early:
                say("ack", name, version)


def fill(path: str, limit: int | None = None) -> None:
    """Add until there is no space, or no document left; then search."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write(path, 0, 400, only_add=True)
        say("enough")
    except StoreFullError as error:
        say("full", error)
    try:
        with Store.open(path, read_only=True) as store:
            say("found", len(store.search_text('"passage"', 10_000)), len(store.vector_index()))
    except StoreError as error:
        say("unreadable", error)


def reindex(path: str, dimension: int, seed: int) -> None:
    with Store.open(path) as store:
        store.reindex(WordEncoder(dimension, seed), lambda done, total: say("ack", done, total))
        say("done")
        signal.pause()  # so that there is always something to kill


def add(path: str, folder: str) -> None:
    """What `edge add FOLDER` does, with a fake encoder; acknowledges each report."""
    with Store.open(path) as store:
        for report in ingest.add(store, FakeEncoder(dimension=32), [folder]):
            say("ack", Path(report.name).name, report.status)
        say("done")
        signal.pause()  # so that there is always something to kill


def describe(path: str) -> None:
    say("store", json.dumps(stored(path)))


def stored(path: str | Path) -> dict[str, Any]:
    """All that is in a store: for each document its hash, title and passages; and what its check complains of."""
    documents: dict[str, tuple[str, str, list[list[object]]]] = {}
    with Store.open(path) as store:
        with store._database.reading() as sql:
            for name, content_hash, title in sql.execute("SELECT name, content_hash, title FROM documents"):
                documents[name] = (content_hash, title, [])
            for name, *passage in sql.execute(
                """SELECT name, text, heading, "start", "end" FROM passages
                JOIN documents ON documents.id = document_id ORDER BY document_id, position"""
            ):
                documents[name][2].append(passage)
        return {"documents": documents, "problems": store.check() + foreign_vectors(store)}


def foreign_vectors(store: Store) -> list[str]:
    """The passages whose vector is not that of their text."""
    index = store.vector_index()
    passages = store.passages(index.ids.tolist())
    codes, _ = quantize_rows(ENCODER.encode([passage.text for passage in passages]))
    pairs = zip(passages, map(bytes, index.codes), map(bytes, codes), strict=True)
    return [f"passage {passage.id} has another one's vector" for passage, found, own in pairs if found != own]


def as_stored(name: str, version: int) -> list[object]:
    """How a complete version of a document looks in `stored`."""
    document, chunks = version_of(name, version)
    passages = [[chunk.text, chunk.heading, chunk.start, chunk.end] for chunk in chunks]
    return [document.content_hash, document.title, passages]


def _before_commit(acknowledge: Callable[[], None]) -> None:
    def last_statement(sql: sqlite3.Connection, original: Callable[..., None] = _COUNT_CHANGE) -> None:
        original(sql)
        acknowledge()

    schema.count_change = last_statement


_COUNT_CHANGE = schema.count_change
_WORK: dict[str, Callable[..., None]] = {
    "write": write,
    "fill": fill,
    "reindex": reindex,
    "describe": describe,
    "add": add,
}


def serve() -> None:
    for line in sys.stdin:
        orders = json.loads(line)
        workers = []
        for order in orders:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    _WORK[order.pop("work")](**order)
                    status = 0
                except BaseException as error:
                    say("error", type(error).__name__, error)
                finally:
                    os._exit(status)
            workers.append(pid)
        say("start", *workers)
        say("end", *(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers))


if __name__ == "__main__":
    serve()
