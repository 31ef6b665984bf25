"""The rows of learned answers: records in, records out, and the statements that need no vectors.

Every function runs inside a transaction of its caller. Knows nothing of when two questions are the same.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal, get_args

from ..errors import EdgeError
from ..storage.schema import storable

State = Literal["quarantine", "accepted", "rejected", "expired"]
STATES: tuple[State, ...] = get_args(State)
MOST = 20_000
"""Answers that are kept; beyond it the expired go first, then those in quarantine, then the least used."""

COLUMNS = "id, question, answer, provenance, state, created_at, expires_at, uses"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an answer comes from. `agreement` names everything that spoke for it, in the order in which it did."""

    remote: str  # the URL that was asked
    model: str
    date: str  # UTC, ISO 8601
    agreement: tuple[str, ...] = ()
    redacted: bool = False  # something was taken out of the question before it was sent


@dataclass(frozen=True, slots=True)
class LearnedAnswer:
    """One remote answer. `similarity` is the cosine to the question asked, where it was found by one."""

    id: int
    question: str
    answer: str
    provenance: Provenance
    state: State
    created: str  # UTC, ISO 8601
    expires: str
    uses: int
    similarity: float | None = None

    @property
    def origin(self) -> str:
        """A sentence to show beside the answer, which must never look as if it were from the documents."""
        source, reasons = self.provenance, "; ".join(self.provenance.agreement)
        return (
            f"not from your documents: {source.model} at {source.remote} answered {self.question!r} on "
            f"{source.date[:10]} ({reasons or 'not accepted yet'})"
        )


def generation(sql: sqlite3.Connection) -> str | None:
    """Differs after every change of what may be served, by whatever process."""
    row = sql.execute("SELECT value FROM meta WHERE key = 'learned'").fetchone()
    return None if row is None else str(row[0])


def count_change(sql: sqlite3.Connection) -> None:
    """Tells every process that what it has in memory is outdated."""
    sql.execute(
        "INSERT INTO meta (key, value) VALUES ('learned', '1') ON CONFLICT (key) DO UPDATE SET value = value + 1"
    )


def expire(sql: sqlite3.Connection, now: float) -> None:
    """Mark what is past its time; what was rejected stays rejected for good."""
    sql.execute(
        """UPDATE learned_answers SET state = 'expired'
        WHERE expires_at <= ? AND state IN ('accepted', 'quarantine')""",
        (now,),
    )


def trim(sql: sqlite3.Connection) -> None:
    """Delete what is beyond `MOST`."""
    ((count,),) = sql.execute("SELECT count(*) FROM learned_answers")
    if count > MOST:
        sql.execute(
            """DELETE FROM learned_answers WHERE id IN (SELECT id FROM learned_answers ORDER BY
            CASE state WHEN 'expired' THEN 0 WHEN 'quarantine' THEN 1 WHEN 'accepted' THEN 2 ELSE 3 END,
            uses, created_at LIMIT ?)""",
            (count - MOST,),
        )


def listed(sql: sqlite3.Connection, states: Sequence[State], now: float) -> Iterator[LearnedAnswer]:
    """The answers that are in these states now, the newest first."""
    for row in sql.execute(f"SELECT {COLUMNS} FROM learned_answers ORDER BY id DESC"):
        each = read(row)
        if each.state in ("accepted", "quarantine") and float(row[6]) <= now:
            each = replace(each, state="expired")
        if each.state in states:
            yield each


def row_of(sql: sqlite3.Connection, id: int) -> LearnedAnswer:
    """One answer. Raises `EdgeError` when there is none of that number."""
    row = sql.execute(f"SELECT {COLUMNS} FROM learned_answers WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise EdgeError(f"there is no learned answer {id}", hint="see `edge learned list`")
    return read(row)


def read(row: Sequence[object]) -> LearnedAnswer:
    """A row of `COLUMNS` as a record."""
    id, question, answer, provenance, state, created, expires, uses = row
    return LearnedAnswer(
        int(str(id)),
        str(question),
        str(answer),
        _loaded(str(provenance)),
        next((each for each in STATES if each == state), "rejected"),
        _iso(float(str(created))),
        _iso(float(str(expires))),
        int(str(uses)),
    )


def dumped(provenance: Provenance) -> str:
    """A provenance as the column holds it."""
    return storable(json.dumps(asdict(provenance), ensure_ascii=True))


def _loaded(text: str) -> Provenance:
    """Where it was damaged, an answer counts as redacted, so that it stays on the device."""
    try:
        found = json.loads(text)
        return Provenance(**{**found, "agreement": tuple(map(str, found["agreement"]))})
    except (ValueError, TypeError, KeyError):
        return Provenance("unknown", "unknown", "", redacted=True)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
