"""The latest decisions, each as the JSON record that its maker gave; the questions are kept as keyed hashes only.

Every function runs inside a transaction of its caller. Knows nothing of what a record says.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3

MOST = 10_000  # decisions that are kept; the oldest go first


def keep(sql: sqlite3.Connection, id: str, record: str, *, question: str, route: str, now: float) -> None:
    """Write a decision down, in place of an earlier one with this id, and drop those beyond `MOST`."""
    sql.execute(
        "INSERT OR REPLACE INTO decisions (id, made_at, question_hash, route, record) VALUES (?, ?, ?, ?, ?)",
        (id, now, question_hash(sql, question), route, record),
    )
    # Row ids grow by one, so this is never more than `MOST`, and it takes no counting.
    sql.execute("DELETE FROM decisions WHERE rowid <= (SELECT max(rowid) FROM decisions) - ?", (MOST,))


def record_of(sql: sqlite3.Connection, id: str) -> str | None:
    """The record of a decision; None when it was never made or has been dropped."""
    row = sql.execute("SELECT record FROM decisions WHERE id = ?", (id,)).fetchone()
    return None if row is None else str(row[0])


def question_hash(sql: sqlite3.Connection, question: str) -> str:
    """HMAC-SHA-256 of a question under a key of this store: equal questions meet, and no list of guesses fits."""
    key = sql.execute("SELECT value FROM meta WHERE key = 'question_key'").fetchone()
    return hmac.new(bytes.fromhex(key[0]), question.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
