"""What remote calls have cost: one row a call, written before it is made, closed when its end is known.

A row is first reserved at the most that the call may cost. It is settled at what the server counted, released when
it is certain that the server did nothing, and else it stays at the reserved amount as `unknown`: so is one whose
process died. Every function runs inside a transaction of its caller, so processes that share a store never
overspend together. A row holds no text; its SHA-256 is that of the bytes that were sent.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..errors import StoreError
from .budget import Budget, Limit, Prices, Spent, starts

State = Literal["reserved", "settled", "released", "unknown"]
_MOST_TOKENS = 10**9  # a server that counts more is not believed further: the sum must stay a number
_COLUMNS = """id, remote, state, reserved_at, expires_at, closed_at,
    coalesce(actual_micro, reserved_micro),
    coalesce(actual_prompt_tokens, reserved_prompt_tokens),
    coalesce(actual_completion_tokens, reserved_completion_tokens),
    payload_sha256, entities, characters, outcome"""


class Transactions(Protocol):
    """A file that is read and written in transactions: `storage.database.Database`."""

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction that sees one state of the file."""

    def writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction that holds the write lock from its start (BEGIN IMMEDIATE), and is all or nothing."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A call before it is made, with the most tokens that it can take."""

    id: str
    remote: str  # its address and model
    prompt_tokens: int
    completion_tokens: int
    payload_sha256: str
    entities: Mapping[str, int] = field(default_factory=dict)  # what was found in it, by type
    characters: Mapping[str, int] = field(default_factory=dict)  # what leaves the device, by kind


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the ledger. Amounts are what counts as spent: as reserved until the server's own are known."""

    id: str
    remote: str
    state: State
    reserved_at: float
    expires_at: float
    closed_at: float | None
    micro: int
    prompt_tokens: int
    completion_tokens: int
    payload_sha256: str
    entities: Mapping[str, int]
    characters: Mapping[str, int]
    outcome: str  # the reply's finish reason or the error's class


def reserve(
    sql: sqlite3.Connection, call: Planned, budget: Budget, prices: Prices, *, now: float, lasting: float
) -> None:
    """Write a call down at its full price; raises `BudgetError` when the budget has no room for it.

    `lasting` is after how many seconds it has ended in any case.
    """
    expire(sql, now)
    most = check(sql, call, budget, prices, now=now)
    sql.execute(
        """INSERT INTO spend (id, remote, state, reserved_at, expires_at, reserved_micro, reserved_prompt_tokens,
            reserved_completion_tokens, payload_sha256, entities, characters)
        VALUES (?, ?, 'reserved', ?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            call.id,
            call.remote,
            now,
            now + lasting,
            most.micro,
            call.prompt_tokens,
            call.completion_tokens,
            call.payload_sha256,
            json.dumps(dict(call.entities)),
            json.dumps(dict(call.characters)),
        ),
    )


def check(sql: sqlite3.Connection, call: Planned, budget: Budget, prices: Prices, *, now: float) -> Spent:
    """The most that a call may cost; raises `BudgetError` when the budget has no room for that."""
    cost = prices.cost(call.prompt_tokens, call.completion_tokens)
    most = Spent(cost, call.prompt_tokens + call.completion_tokens, 1)
    day, month = starts(now)
    total = Spent() if budget.total == Limit() else spent(sql, 0.0)
    budget.check(most, spent(sql, day), spent(sql, month), total)
    return most


def settle(
    sql: sqlite3.Connection, id: str, prices: Prices, prompt: int, completion: int, *, outcome: str, now: float
) -> None:
    """Close a call at the tokens that the server counted, even where they are more than was reserved."""
    prompt, completion = min(prompt, _MOST_TOKENS), min(completion, _MOST_TOKENS)
    _close(sql, id, "settled", (prices.cost(prompt, completion), prompt, completion), outcome=outcome, now=now)


def release(sql: sqlite3.Connection, id: str, *, outcome: str, now: float) -> None:
    """Close a call on which the server has certainly not worked: nothing was spent."""
    _close(sql, id, "released", (0, 0, 0), outcome=outcome, now=now)


def leave_unknown(sql: sqlite3.Connection, id: str, *, outcome: str, now: float) -> None:
    """Close a call of which nobody knows what it cost: all that was reserved counts as spent."""
    _close(sql, id, "unknown", (None, None, None), outcome=outcome, now=now)


def expire(sql: sqlite3.Connection, now: float) -> None:
    """Close the calls whose process has died, or has lost its file: what they reserved counts as spent."""
    sql.execute(
        """UPDATE spend SET state = 'unknown', closed_at = ?, outcome = 'lost'
        WHERE state = 'reserved' AND expires_at < ?""",
        (now, now),
    )


def spent(sql: sqlite3.Connection, since: float) -> Spent:
    """What was spent from a moment on, reservations included; a released call is none."""
    row = sql.execute(
        """SELECT coalesce(sum(coalesce(actual_micro, reserved_micro)), 0),
            coalesce(sum(coalesce(actual_prompt_tokens, reserved_prompt_tokens)
                + coalesce(actual_completion_tokens, reserved_completion_tokens)), 0), count(*)
        FROM spend WHERE reserved_at >= ? AND state <> 'released'""",
        (since,),
    ).fetchone()
    return Spent(*map(int, row))


def entry(sql: sqlite3.Connection, id: str) -> Entry | None:
    """One call; None when there is none with this id."""
    row = sql.execute(f"SELECT {_COLUMNS} FROM spend WHERE id = ?", (id,)).fetchone()
    return None if row is None else _entry(row)


def latest(sql: sqlite3.Connection, limit: int) -> list[Entry]:
    """The last calls, newest first."""
    rows = sql.execute(f"SELECT {_COLUMNS} FROM spend ORDER BY reserved_at DESC, rowid DESC LIMIT ?", (limit,))
    return [_entry(row) for row in rows]


def _close(
    sql: sqlite3.Connection,
    id: str,
    state: State,
    actual: tuple[int | None, int | None, int | None],
    *,
    outcome: str,
    now: float,
) -> None:
    """Once only: but what had expired (a machine that slept) still takes what is known by now."""
    closed = sql.execute(
        """UPDATE spend SET state = ?, actual_micro = ?, actual_prompt_tokens = ?, actual_completion_tokens = ?,
            outcome = ?, closed_at = ? WHERE id = ? AND (state = 'reserved' OR outcome = 'lost')""",
        (state, *actual, outcome, now, id),
    )
    if closed.rowcount != 1:
        raise StoreError(f"call {id} is not open in the ledger")


def _entry(row: tuple[Any, ...]) -> Entry:
    values = [*row[:10], json.loads(row[10]), json.loads(row[11]), row[12]]
    return Entry(*values)
