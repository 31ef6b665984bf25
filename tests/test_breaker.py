from __future__ import annotations

import sqlite3
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.fallback import breaker
from edge_sdk.fallback.breaker import LONGEST_PAUSE, Breaker, BreakerState
from edge_sdk.storage.store import Store

RULES = Breaker(failures=3, cooldown=30, longest=100)


def failing(times: int, now: float = 1000.0) -> BreakerState:
    state = BreakerState()
    for _ in range(times):
        state = RULES.failed(state, now, probe=RULES.phase(state, now) == "half-open")
    return state


def test_it_opens_after_failures_in_a_row_and_a_success_forgets_them() -> None:
    assert RULES.phase(failing(2), 1000) == "closed"
    assert RULES.phase(failing(3), 1000) == "open"
    assert RULES.wait(failing(3), 1010) == 20
    assert RULES.phase(RULES.failed(RULES.succeeded(), 1000, probe=False), 1000) == "closed"


def test_one_probe_passes_when_the_pause_is_over_and_another_only_after_it() -> None:
    state = failing(3)
    assert RULES.phase(state, 1030) == "half-open"
    state = RULES.admitted(state, 1030, lasting=60)
    assert RULES.phase(state, 1031) == RULES.phase(state, 1089) == "open"
    assert RULES.phase(state, 1090) == "half-open", "the process of a probe may have died"


def test_probes_that_fail_make_the_pause_twice_as_long_up_to_a_limit() -> None:
    state, now, pauses = failing(3), 1000.0, []
    for _ in range(4):
        now = state.retry_at
        state = RULES.failed(RULES.admitted(state, now, lasting=5), now, probe=True)
        pauses.append(state.retry_at - now)
    assert pauses == [60, 100, 100, 100]


def test_calls_that_were_under_way_when_it_opened_do_not_make_the_pause_longer() -> None:
    state = failing(3)
    for now in (1001, 1002, 1003):
        state = RULES.failed(state, now, probe=False)
    assert state == failing(3)


def test_a_pause_that_the_server_asks_for_is_kept_at_once_and_within_reason() -> None:
    state = RULES.failed(BreakerState(), 1000, probe=False, retry_after=120)
    assert (RULES.wait(state, 1000), RULES.phase(state, 1120)) == (120, "closed")
    greedy = RULES.failed(BreakerState(), 1000, probe=False, retry_after=1e9)
    assert RULES.wait(greedy, 1000) == LONGEST_PAUSE


def test_a_cancelled_probe_lets_the_next_call_be_one() -> None:
    state = RULES.admitted(failing(3), 1030, lasting=60)
    assert RULES.phase(RULES.unsaid(state, 1031, probe=True), 1031) == "half-open"
    assert RULES.unsaid(state, 1031, probe=False) == state


def test_a_clock_that_was_set_back_does_not_close_the_way_for_ever() -> None:
    assert RULES.phase(failing(3, now=1e9), 1000) == "half-open"


@given(st.lists(st.tuples(st.floats(0, 200), st.booleans()), max_size=60))
def test_while_a_remote_fails_probes_are_at_least_a_pause_apart(steps: list[tuple[float, bool]]) -> None:
    state, now, last = failing(3), 1000.0, 1000.0
    for elapsed, fails in steps:
        now += elapsed
        if RULES.wait(state, now):
            continue
        assert now - last >= RULES.cooldown
        last, state = now, RULES.admitted(state, now, lasting=1)
        if fails:
            state = RULES.failed(state, now, probe=True)


def test_the_state_is_in_the_file_for_the_next_process(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        with store.database.writing() as sql:
            breaker.save(sql, "one", failing(3))
        with store.database.writing() as sql:
            breaker.save(sql, "two", failing(1))
            breaker.save(sql, "two", RULES.succeeded())
    with Store.open(tmp_path / "s.db", read_only=True) as store, store.database.reading() as sql:
        assert breaker.load(sql, "one") == failing(3)
        assert breaker.load(sql, "two") == BreakerState()
        assert rows(sql) == 1


def rows(sql: sqlite3.Connection) -> int:
    return int(sql.execute("SELECT count(*) FROM breakers").fetchone()[0])
