"""Questions that wait for the network: redacted before they come here, sent at most once, gone when they expire.

A question is marked as under way before it is sent. Only when it is certain that the server did nothing does it
wait for another try, each time twice as long; one whose end nobody knows is never sent again, and the user is told.
`flush` knows nothing of remotes and policies: both are functions that it is given; `refusals` makes the second.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import (
    BudgetError,
    ConfigError,
    EdgeError,
    OfflineError,
    RemoteError,
    RemotePausedError,
    RemoteRejectedError,
    RemoteUnreachableError,
)
from ..privacy.detectors import find
from ..privacy.gate import PrivacyPolicy
from ..records import Message, RemoteReply
from .ledger import Transactions
from .remote import Remote, may_be_billed

State = Literal["queued", "sending", "answered", "failed", "unknown", "expired"]

MOST = 1000  # questions that wait; more are refused
LIFETIME = 7 * 86_400.0  # seconds until a question that was not answered is dropped
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 6 * 3600.0
_LEASE = 900.0  # seconds after which a sending process is taken for dead; longer than any deadline
# They stop a flush: the next question would meet the same.
_NOT_NOW = (RemoteUnreachableError, RemotePausedError, BudgetError, OfflineError, ConfigError)
_COLUMNS = "id, created_at, expires_at, payload, idempotency_key, policy, attempts, next_try_at, state, result"


@dataclass(frozen=True, slots=True)
class Payload:
    """What is to be sent, exactly, and what the ledger is to know of it."""

    messages: tuple[Message, ...]
    max_tokens: int
    characters: Mapping[str, int] = field(default_factory=dict)
    entities: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queued:
    """A question in the outbox. `result` is the answer, or why there is none; `payload` is None once expired."""

    id: str
    created_at: float
    expires_at: float
    payload: Payload | None
    idempotency_key: str
    policy: str  # fingerprint of the policy that let it in
    attempts: int
    next_try_at: float
    state: State
    result: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages to send; none once they are dropped."""
        return self.payload.messages if self.payload is not None else ()


Send = Callable[[Queued], RemoteReply]
Refuse = Callable[[Queued], str | None]
"""Says why a question may not be sent as things are now; None lets it go."""


@dataclass(frozen=True)
class Outbox:
    """The questions that wait in a file, the store's. Several processes may flush it at once."""

    file: Transactions
    clock: Callable[[], float] = time.time

    def put(self, payload: Payload, *, policy: str, lifetime: float = LIFETIME) -> str:
        """Queue a question, whose payload has been redacted; its id. Raises `RemoteError` when too many wait."""
        id, now = secrets.token_hex(8), self.clock()
        with self.file.writing() as sql:
            _expire(sql, now)
            if sql.execute("SELECT count(*) FROM outbox WHERE state = 'queued'").fetchone()[0] >= MOST:
                raise RemoteError(f"{MOST} questions wait in the outbox", hint="run `edge outbox send` or `drop`")
            sql.execute(
                """INSERT INTO outbox
                (id, created_at, expires_at, payload, idempotency_key, policy, next_try_at, state)
                VALUES (?, ?, ?, ?, ?, ?, ?, 'queued')""",
                (id, now, now + lifetime, _to_json(payload), secrets.token_hex(16), policy, now),
            )
        return id

    def questions(self) -> list[Queued]:
        """All of them, oldest first, those that are done included until they are dropped."""
        now = self.clock()
        with self.file.writing() as sql:
            _expire(sql, now)
            rows = sql.execute(f"SELECT {_COLUMNS} FROM outbox ORDER BY created_at, rowid").fetchall()
        return [_queued(row) for row in rows]

    def flush(self, send: Send, refuse: Refuse, *, at_once: bool = False) -> Iterator[Queued]:
        """Send what is due, one after the other, and yield each as it ended.

        `refuse` is asked right before; if it raises, that is a refusal. `send` makes one call, in which nothing is
        sent twice, and returns its reply or raises. A remote that cannot be reached, is left alone or has no
        budget ends the flush. `at_once` does not wait for the time of the next try.
        """
        for id in self._due(at_once):
            item = self._claim(id, at_once)
            if item is None:
                continue  # another process was faster, or it has expired
            reason = _reason(refuse, item)
            if reason is not None:
                yield self._end(item, "queued", reason)
                continue
            stop = False
            try:
                reply = send(item)
            except EdgeError as error:
                stop = isinstance(error, _NOT_NOW)
                ended = self._end(item, _state_after(error), str(error))
            except BaseException as error:
                self._end(item, "unknown", f"interrupted by {type(error).__name__}")
                raise
            else:
                cut = reply.finish_reason == "cancelled"
                ended = self._end(item, "unknown" if cut else "answered", "cancelled" if cut else reply.text)
            yield ended
            if stop:
                return

    def drop(self, ids: Sequence[str] | None = None) -> int:
        """Delete these questions, or all (None); how many. One that is under way is lost, not called back."""
        with self.file.writing() as sql:
            if ids is None:
                return sql.execute("DELETE FROM outbox").rowcount
            return sum(sql.execute("DELETE FROM outbox WHERE id = ?", (id,)).rowcount for id in ids)

    def purge(self) -> int:
        """Delete what is over: answered, failed, unknown and expired questions; how many."""
        with self.file.writing() as sql:
            _expire(sql, self.clock())
            return sql.execute("DELETE FROM outbox WHERE state NOT IN ('queued', 'sending')").rowcount

    # --- steps of a flush ---------------------------------------------------------------------------

    def _due(self, at_once: bool) -> list[str]:
        now = self.clock()
        with self.file.writing() as sql:
            _expire(sql, now)
            rows = sql.execute(
                """SELECT id FROM outbox WHERE state = 'queued' AND (? OR next_try_at <= ?)
                ORDER BY created_at, rowid""",
                (at_once, now),
            )
            return [str(id) for (id,) in rows]

    def _claim(self, id: str, at_once: bool) -> Queued | None:
        """Mark a question as under way, if it still waits: from here on only its own end lets it wait again."""
        now = self.clock()
        with self.file.writing() as sql:
            _expire(sql, now)
            row = sql.execute(
                f"""UPDATE outbox SET state = 'sending', attempts = attempts + 1, next_try_at = ?
                WHERE id = ? AND state = 'queued' AND (? OR next_try_at <= ?) RETURNING {_COLUMNS}""",
                (now + _LEASE, id, at_once, now),
            ).fetchone()
        item = None if row is None else _queued(row)
        if item is not None and item.payload is None:
            self._end(item, "failed", "its payload cannot be read")
            return None
        return item

    def _end(self, item: Queued, state: State, result: str) -> Queued:
        pause = min(_FIRST_PAUSE * 2.0 ** min(item.attempts - 1, 20), _LONGEST_PAUSE)
        with self.file.writing() as sql:
            row = sql.execute(
                f"""UPDATE outbox SET state = ?, result = ?, next_try_at = ? WHERE id = ? AND attempts = ?
                AND state IN ('sending', 'unknown') RETURNING {_COLUMNS}""",
                (state, result, self.clock() + pause, item.id, item.attempts),
            ).fetchone()
        return item if row is None else _queued(row)  # None: dropped meanwhile


def policy_name(policy: PrivacyPolicy, remote: Remote) -> str:
    """What a queued question was prepared for: how its words were chosen, and who is to read them."""
    return f"{policy.send} {policy.level} {remote.url} {remote.model}"


def refusals(policy: PrivacyPolicy, remote: Remote, consent: Callable[[Queued], bool] | None = None) -> Refuse:
    """The check for `Outbox.flush` under the policy of today, which may be another than when a question was queued.

    In mode `ask`, `consent` is given each question and only True is a yes. The rules of redaction look at the
    words once more: they may have learned something since.
    """

    def refuse(item: Queued) -> str | None:
        if policy.mode not in ("prefer_local", "ask", "prefer_remote"):
            return f"the privacy mode is {policy.mode}: nothing leaves this device"
        if item.policy != policy_name(policy, remote):
            return "it was queued for another remote or under other privacy settings"
        found = {finding.kind for message in item.messages for finding in find(message.content)}
        if found:
            return f"it holds what may not leave ({', '.join(sorted(found))})"
        if policy.mode == "ask" and not (consent is not None and consent(item) is True):
            return "you did not agree to send it"
        return None

    return refuse


def _state_after(error: EdgeError) -> State:
    """Whether there may be another try. The same request would be refused again, and one may have been served."""
    if isinstance(error, RemoteRejectedError) and error.status in (400, 413, 422):
        return "failed"
    return "unknown" if may_be_billed(error) else "queued"


def _reason(refuse: Refuse, item: Queued) -> str | None:
    """Why an item may not be sent. A check that fails lets nothing pass."""
    try:
        return refuse(item)
    except Exception as error:
        return f"the policy could not be checked ({type(error).__name__}), nothing was sent"


def _expire(sql: sqlite3.Connection, now: float) -> None:
    """What is too old is dropped with its text; what a dead process was sending may have arrived."""
    sql.execute(
        """UPDATE outbox SET state = 'unknown', result = 'the process that sent it did not end'
        WHERE state = 'sending' AND next_try_at < ?""",
        (now,),
    )
    sql.execute(
        "UPDATE outbox SET state = 'expired', payload = '' WHERE state = 'queued' AND expires_at <= ?", (now,)
    )


def _to_json(payload: Payload) -> str:
    return json.dumps(
        asdict(payload) | {"characters": dict(payload.characters), "entities": dict(payload.entities)}
    )


def _queued(row: tuple[Any, ...]) -> Queued:
    id, created_at, expires_at, payload, *rest = row
    return Queued(id, created_at, expires_at, _from_json(payload), *rest)


def _from_json(text: str) -> Payload | None:
    try:
        content = json.loads(text)
        messages = tuple(Message(message["role"], message["content"]) for message in content["messages"])
        return Payload(messages, content["max_tokens"], content["characters"], content["entities"])
    except (ValueError, KeyError, TypeError):
        return None
