"""When a remote that fails is left alone, and when it is tried again: a circuit breaker, in the store's file.

Closed, calls pass. Several failures in a row open it, as does a server that asks for a pause; when the time has
passed it is half-open and lets one call through as a probe. The rules are pure, with the clock passed in; `load`
and `save` run inside a transaction of their caller, so that processes which share a store share the breaker.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

Phase = Literal["closed", "open", "half-open"]

LONGEST_PAUSE = 3600.0
"""Seconds. A server that asks for more is believed so far; a time to come that is further off than this was written
by a clock that has been set back since, and is taken for passed."""


@dataclass(frozen=True, slots=True)
class BreakerState:
    """What there is to remember of a remote: failures in a row, and when it may be called again (seconds)."""

    failures: int = 0
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """The rules: `failures` in a row open it for `cooldown` seconds, twice as long after each probe that fails.

    >>> rules, state = Breaker(failures=2, cooldown=30), BreakerState()
    >>> for now in (0, 1):
    ...     state = rules.failed(state, now, probe=False)
    >>> rules.phase(state, 30), rules.wait(state, 30), rules.phase(state, 31)
    ('open', 1.0, 'half-open')
    >>> rules.phase(rules.admitted(state, 31, lasting=60), 32)
    'open'
    """

    failures: int = 5
    cooldown: float = 30.0
    longest: float = 600.0

    def phase(self, state: BreakerState, now: float) -> Phase:
        """`open`: leave it alone; `half-open`: the next call is a probe."""
        if now < state.retry_at <= now + LONGEST_PAUSE:
            return "open"
        return "half-open" if state.failures >= self.failures else "closed"

    def wait(self, state: BreakerState, now: float) -> float:
        """Seconds until a call may pass; 0 when it may now."""
        return state.retry_at - now if self.phase(state, now) == "open" else 0.0

    def admitted(self, state: BreakerState, now: float, *, lasting: float) -> BreakerState:
        """A call passes. While it runs as a probe, at most `lasting` seconds, no other one does."""
        if self.phase(state, now) != "half-open":
            return state
        return BreakerState(state.failures, now + min(max(lasting, self.cooldown), LONGEST_PAUSE))

    def succeeded(self) -> BreakerState:
        """The remote answers: closed."""
        return BreakerState()

    def failed(
        self, state: BreakerState, now: float, *, probe: bool, retry_after: float | None = None
    ) -> BreakerState:
        """A call that passed has failed; `retry_after` is the pause that the server asked for.

        Calls that were under way when it opened say nothing new, so they do not make the pause longer.
        """
        straggler = not probe and self.phase(state, now) == "open"
        failures = state.failures if straggler else state.failures + 1
        retry_at = state.retry_at if straggler else 0.0
        if failures >= self.failures and not straggler:
            retry_at = now + min(self.cooldown * 2.0 ** min(failures - self.failures, 30), self.longest)
        if retry_after is not None:
            retry_at = max(retry_at, now + min(retry_after, LONGEST_PAUSE))
        return BreakerState(failures, retry_at)

    def unsaid(self, state: BreakerState, now: float, *, probe: bool) -> BreakerState:
        """A call ended without a word on the remote, as when the user cancels: the next one may be the probe."""
        return BreakerState(state.failures, now) if probe else state


def load(sql: sqlite3.Connection, remote: str) -> BreakerState:
    """What is remembered of a remote."""
    row = sql.execute("SELECT failures, retry_at FROM breakers WHERE remote = ?", (remote,)).fetchone()
    return BreakerState() if row is None else BreakerState(int(row[0]), float(row[1]))


def save(sql: sqlite3.Connection, remote: str, state: BreakerState) -> None:
    """Remember this of a remote; the state of one that is well takes no row."""
    if state == BreakerState():
        sql.execute("DELETE FROM breakers WHERE remote = ?", (remote,))
    else:
        sql.execute("INSERT OR REPLACE INTO breakers VALUES (?, ?, ?)", (remote, state.failures, state.retry_at))
