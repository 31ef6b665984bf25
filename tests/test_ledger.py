from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.errors import BudgetError, StoreError
from edge_sdk.fallback import ledger
from edge_sdk.fallback.budget import Budget, Prices, Spent
from edge_sdk.fallback.ledger import Entry, Planned
from edge_sdk.storage.database import Database
from edge_sdk.storage.store import Store

PRICES = Prices.parse("1/2")  # a millionth a token in, two a token out
DAY = 86_400.0
NOON = 20_000 * DAY + DAY / 2  # 4 October 2024


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Database]:
    with Store.open(tmp_path / "s.db") as store:
        yield store.database


def reserve(
    file: Database, id: str, budget: str = "", now: float = NOON, tokens: tuple[int, int] = (100, 50)
) -> None:
    call = Planned(id, "https://host.example m", *tokens, "0" * 64, {"EMAIL": 1}, {"question": 40})
    with file.writing() as sql:
        ledger.reserve(sql, call, Budget.parse(budget), PRICES, now=now, lasting=90)


def spent(file: Database, since: float = 0.0) -> Spent:
    with file.reading() as sql:
        return ledger.spent(sql, since)


def entry(file: Database, id: str) -> Entry:
    with file.reading() as sql:
        found = ledger.entry(sql, id)
    assert found is not None
    return found


def test_a_call_is_reserved_at_its_full_price_and_settled_at_the_servers_count(file: Database) -> None:
    reserve(file, "a")
    assert (entry(file, "a").state, spent(file)) == ("reserved", Spent(200, 150, 1))
    with file.writing() as sql:
        ledger.settle(sql, "a", PRICES, 30, 10, outcome="stop", now=NOON + 2)
    assert spent(file) == Spent(50, 40, 1)
    assert entry(file, "a") == Entry(
        "a", "https://host.example m", "settled", NOON, NOON + 90, NOON + 2, 50, 30, 10, "0" * 64, {"EMAIL": 1},
        {"question": 40}, "stop",
    )  # fmt: skip


def test_what_is_released_was_not_spent_and_what_is_unknown_was(file: Database) -> None:
    for id in ("a", "b"):
        reserve(file, id)
    with file.writing() as sql:
        ledger.release(sql, "a", outcome="RemoteUnreachableError", now=NOON)
        ledger.leave_unknown(sql, "b", outcome="RemoteTimeoutError", now=NOON)
    assert (entry(file, "a").micro, entry(file, "b").micro) == (0, 200)
    assert spent(file) == Spent(200, 150, 1)


def test_a_call_is_closed_once(file: Database) -> None:
    reserve(file, "a")
    with file.writing() as sql:
        ledger.settle(sql, "a", PRICES, 30, 10, outcome="stop", now=NOON)
    with pytest.raises(StoreError, match="not open"), file.writing() as sql:
        ledger.release(sql, "a", outcome="late", now=NOON)
    assert spent(file) == Spent(50, 40, 1)


def test_the_call_of_a_dead_process_counts_as_spent_and_late_news_is_still_taken(file: Database) -> None:
    reserve(file, "a")
    reserve(file, "b", now=NOON + 91)
    lost = entry(file, "a")
    assert (lost.state, lost.outcome, lost.micro) == ("unknown", "lost", 200)
    assert spent(file) == Spent(400, 300, 2)
    with file.writing() as sql:
        ledger.settle(sql, "a", PRICES, 30, 10, outcome="stop", now=NOON + 95)
    assert spent(file) == Spent(250, 190, 2)


def test_what_the_server_counted_beyond_the_reservation_is_spent_too(file: Database) -> None:
    reserve(file, "a")
    with file.writing() as sql:
        ledger.settle(sql, "a", PRICES, 1000, 10**30, outcome="stop", now=NOON)
    assert spent(file).micro > 10**9
    with pytest.raises(BudgetError):
        reserve(file, "b", "5/day")


def test_a_budget_of_a_day_and_one_of_a_month_begin_anew(file: Database) -> None:
    reserve(file, "a", "2calls/month 1calls/day")
    with pytest.raises(BudgetError, match="day"):
        reserve(file, "b", "2calls/month 1calls/day", now=NOON + DAY / 4)
    reserve(file, "b", "2calls/month 1calls/day", now=NOON + DAY)
    with pytest.raises(BudgetError, match="month"):
        reserve(file, "c", "2calls/month 1calls/day", now=NOON + 2 * DAY)
    reserve(file, "c", "2calls/month 1calls/day", now=NOON + 40 * DAY)


def test_a_clock_that_was_set_back_gives_nothing_twice(file: Database) -> None:
    reserve(file, "a", "1calls/day")
    with pytest.raises(BudgetError):
        reserve(file, "b", "1calls/day", now=NOON - 3 * DAY)


def test_a_refused_call_leaves_no_row(file: Database) -> None:
    with pytest.raises(BudgetError):
        reserve(file, "a", "0.000199/request")
    with file.reading() as sql:
        assert ledger.latest(sql, 5) == []
    reserve(file, "a", "0.0002/request")


def test_the_latest_calls_come_newest_first(file: Database) -> None:
    for number in range(5):
        reserve(file, f"c{number}", now=NOON + number)
    with file.reading() as sql:
        assert [each.id for each in ledger.latest(sql, 3)] == ["c4", "c3", "c2"]


SPENDER = """
import sys
from edge_sdk.errors import BudgetError
from edge_sdk.fallback import ledger
from edge_sdk.fallback.budget import Budget, Prices
from edge_sdk.fallback.ledger import Planned
from edge_sdk.storage.store import Store

BUDGET, PRICES = Budget.parse("0.02/day"), Prices.parse("1/2")
path, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
made = 0
with Store.open(path) as store:
    for number in range(60):
        call = Planned(f"{name}-{number}", "r", 100, 50, "")
        try:
            with store.database.writing() as sql:
                ledger.reserve(sql, call, BUDGET, PRICES, now=1728043200.0, lasting=90)
        except BudgetError:
            continue
        made += 1
        if number % 3 == 0:  # cheaper than reserved
            with store.database.writing() as sql:
                ledger.settle(sql, call.id, PRICES, 60, 10, outcome="stop", now=1728043201.0)
print(made)
"""


def test_four_processes_together_never_overspend(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store.open(path).close()
    root = Path(ledger.__file__).parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(path), f"p{number}"],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    made = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    with Store.open(path) as store:
        total = spent(store.database)
    assert total.calls == sum(made)
    assert 20_000 - 200 < total.micro <= 20_000, "all that there was, and not a millionth more"
