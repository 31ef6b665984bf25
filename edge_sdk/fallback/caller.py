"""The guarded way to a remote: breaker, reservation, one call, reconciliation.

What is not written down is not sent: where the file cannot be written, nothing is sent; where it cannot be written
afterwards, the reservation stands and counts as spent. It knows nothing of what may be sent: its messages have
passed the privacy gate.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event

from ..errors import BudgetError, ConfigError, RemoteError, RemotePausedError, RemoteRejectedError, StoreError
from ..records import Message, RemoteReply
from . import breaker as breakers
from . import ledger
from .breaker import Breaker, BreakerState
from .budget import Budget, Prices
from .ledger import Entry, Planned, Transactions
from .remote import Remote, RemoteStream, may_be_billed

_SLACK = 30.0  # seconds beyond the deadline until a reservation's process is taken for dead
_FINISH_REASONS = {"stop", "length", "cancelled", "content_filter", "tool_calls", "unknown"}


@dataclass(slots=True)
class _Book:
    """What the running call knows of its row in the ledger."""

    call: Planned
    probe: bool = False
    entry: Entry | None = None


class Call(RemoteStream):
    """A guarded request: iterate for pieces of text, then read `reply` and `entry`. Closing it early hangs up."""

    def __init__(self, pieces: Generator[str, None, RemoteReply], book: _Book) -> None:
        super().__init__(pieces)
        self._book = book

    @property
    def id(self) -> str:
        """The reservation; also the idempotency key, unless another was given."""
        return self._book.call.id

    @property
    def entry(self) -> Entry | None:
        """The row in the ledger: reserved while it runs, closed afterwards. None where nothing was reserved."""
        return self._book.entry


@dataclass(frozen=True)
class Caller:
    """Calls a remote within a budget; `file` (the store's) holds ledger and breaker.

    Raises `ConfigError` when the budget has a limit in money and no prices are known: what costs an unknown
    amount fits no limit.
    """

    remote: Remote
    file: Transactions
    budget: Budget = field(default_factory=Budget)
    prices: Prices | None = None
    breaker: Breaker = field(default_factory=Breaker)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        if self.budget.needs_prices and self.prices is None:
            raise ConfigError(
                "the budget is in money and the remote has no prices",
                hint='set EDGE_REMOTE_PRICES, like "0.15/0.60" for a million tokens in and out, or "0/0"',
            )

    @property
    def name(self) -> str:
        """What ledger and breaker call the remote: its address and model."""
        return f"{self.remote.url} {self.remote.model}"

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        characters: Mapping[str, int] | None = None,
        entities: Mapping[str, int] | None = None,
        cancel: Event | None = None,
        idempotency_key: str | None = None,
    ) -> Call:
        """Prepare one call; it is written down, and then sent, when the stream is first iterated.

        `characters` (by kind) and `entities` (by type) describe what is sent, for the ledger. Iterating raises
        `RemotePausedError` and `BudgetError` before anything is sent, and what `Remote.complete` raises after.
        Nothing is ever sent twice.
        """
        body = self.remote.preview(messages, max_tokens=max_tokens, temperature=temperature)
        # A token is a byte at least, and the JSON around the text is longer than what a chat template adds.
        call = Planned(
            secrets.token_hex(16),
            self.name,
            len(body),
            max_tokens,
            hashlib.sha256(body).hexdigest(),
            entities or {},
            characters or {},
        )
        book = _Book(call)

        def ask() -> RemoteStream:
            return self.remote.complete(
                messages,
                max_tokens=max_tokens,
                temperature=temperature,
                cancel=cancel,
                idempotency_key=idempotency_key or call.id,
            )

        return Call(self._run(book, ask), book)

    def obstacle(self, messages: Sequence[Message], *, max_tokens: int) -> RemotePausedError | BudgetError | None:
        """What would stop such a call right now; None when nothing would. Reserves nothing and sends nothing."""
        body = self.remote.preview(messages, max_tokens=max_tokens)
        call = Planned("", self.name, len(body), max_tokens, "")
        try:
            with self.file.reading() as sql:
                self._breaker_state(sql, self.clock())
                ledger.check(sql, call, self.budget, self._prices, now=self.clock())
        except (RemotePausedError, BudgetError) as error:
            return error
        except StoreError as error:
            return _unwritable(error)
        return None

    @property
    def _prices(self) -> Prices:
        return self.prices or Prices(0, 0)

    def _run(self, book: _Book, ask: Callable[[], RemoteStream]) -> Generator[str, None, RemoteReply]:
        try:
            with self.file.writing() as sql:
                self._admit(sql, book, self.clock())
        except StoreError as error:
            book.entry = None  # the commit has failed
            raise _unwritable(error) from error
        try:
            stream = ask()
            try:
                yield from stream
            finally:
                stream.close()
            reply = stream.reply
        except BaseException as error:  # GeneratorExit too: the user went away in the middle
            self._reconcile(book, error)
            raise
        self._reconcile(book, reply)
        return reply

    def _breaker_state(self, sql: sqlite3.Connection, now: float) -> BreakerState:
        """The breaker's state; raises `RemotePausedError` while it is open."""
        state = breakers.load(sql, self.name)
        wait = self.breaker.wait(state, now)
        if wait:
            raise RemotePausedError(
                f"the remote {self.remote.model!r} is left alone for now (failures in a row: {state.failures})",
                seconds=wait,
                hint=f"it is tried again in {math.ceil(wait)} s",
            )
        return state

    def _admit(self, sql: sqlite3.Connection, book: _Book, now: float) -> None:
        """Breaker and reservation, in one transaction: a call that has no room in the budget is no probe."""
        state = self._breaker_state(sql, now)
        lasting = self.remote.deadline + _SLACK
        ledger.reserve(sql, book.call, self.budget, self._prices, now=now, lasting=lasting)
        book.entry = ledger.entry(sql, book.call.id)
        book.probe = self.breaker.phase(state, now) == "half-open"
        if book.probe:
            breakers.save(sql, self.name, self.breaker.admitted(state, now, lasting=lasting))

    def _reconcile(self, book: _Book, end: RemoteReply | BaseException) -> None:
        """Close the row and tell the breaker. By now the reply is there or lost: a failing file changes nothing."""
        with suppress(StoreError), self.file.writing() as sql:
            now = self.clock()
            self._close(sql, book.call, end, now)
            book.entry = ledger.entry(sql, book.call.id)
            state = breakers.load(sql, self.name)
            breakers.save(sql, self.name, self._after(state, end, now, book.probe))

    def _close(self, sql: sqlite3.Connection, call: Planned, end: RemoteReply | BaseException, now: float) -> None:
        outcome = _outcome(end)
        if isinstance(end, RemoteReply):
            prompt, completion = end.prompt_tokens, end.completion_tokens
            if (
                end.finish_reason != "cancelled" and prompt and completion
            ):  # a reply that took no tokens is no count
                ledger.settle(sql, call.id, self._prices, prompt, completion, outcome=outcome, now=now)
                return
        elif not may_be_billed(end):
            ledger.release(sql, call.id, outcome=outcome, now=now)
            return
        ledger.leave_unknown(sql, call.id, outcome=outcome, now=now)

    def _after(
        self, state: BreakerState, end: RemoteReply | BaseException, now: float, probe: bool
    ) -> BreakerState:
        """What the end of a call says of the remote. One that refuses this very request is well."""
        match end:
            case RemoteReply(finish_reason="cancelled"):
                return self.breaker.unsaid(state, now, probe=probe)
            case RemoteReply():
                return self.breaker.succeeded()
            case RemoteRejectedError(status=status) if status < 500 and status not in (408, 429):
                return self.breaker.succeeded()
            case RemoteError():
                pause = end.retry_after if isinstance(end, RemoteRejectedError) else None
                return self.breaker.failed(state, now, probe=probe, retry_after=pause)
        return self.breaker.unsaid(state, now, probe=probe)


def _outcome(end: RemoteReply | BaseException) -> str:
    """One word for the ledger. A server's own finish reason could be any text, so only the known ones are kept."""
    if isinstance(end, RemoteReply):
        return end.finish_reason if end.finish_reason in _FINISH_REASONS else "other"
    return "abandoned" if isinstance(end, GeneratorExit) else type(end).__name__


def _unwritable(error: StoreError) -> BudgetError:
    return BudgetError(f"the ledger cannot be used, nothing was sent: {error.message}", hint=error.hint)
