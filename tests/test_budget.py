from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import BudgetError, ConfigError
from edge_sdk.fallback.budget import Budget, Limit, Prices, Spent, money, parse_money, starts


def test_a_budget_reads_as_it_is_written() -> None:
    budget = Budget.parse("0.01/request, 0.5/day 9000tokens/day 5/month 20calls/month 1calls/request")
    assert budget == Budget(Limit(10_000, None, 1), Limit(500_000, 9000, None), Limit(5_000_000, None, 20))
    assert budget.needs_prices
    assert not Budget.parse("9000tokens/day").needs_prices
    assert Budget.parse("") == Budget()


@pytest.mark.parametrize(
    "text",
    ["0.5", "0.5/week", "x/day", "1.5calls/day", "-1/day", "1.2.3/day", "9tokens", "1e3/day", "1" * 40 + "/day"],
)
def test_a_budget_that_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0.15", "a/b", "-1/0", "nan/0", "inf/0", "1/2/3", ""])
def test_prices_that_cannot_be_read_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError):
        Prices.parse(text)


@given(st.integers(0, 10**12), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_cost_is_never_rounded_down(price: int, prompt: int, completion: int) -> None:
    cost = Prices(price, price).cost(prompt, completion)
    assert 0 <= cost * 10**6 - price * (prompt + completion) < 10**6


@given(st.integers(0, 10**14))
def test_money_is_read_back_as_it_was_shown(micro: int) -> None:
    assert parse_money(money(micro)) == micro


@pytest.mark.parametrize("period", ["request", "day", "month", "total"])
@pytest.mark.parametrize("unit", ["micro", "tokens", "calls"])
def test_each_limit_holds_to_the_last_unit(period: str, unit: str) -> None:
    budget = Budget(**{period: Limit(**{unit: 10})})
    before = Spent() if period == "request" else Spent(6, 6, 6)
    day, month = (before if period == "day" else Spent()), (before if period != "total" else Spent())
    budget.check(Spent(**{unit: 10 - getattr(before, unit)}), day, month, before)
    named = "total budget" if period == "total" else f"budget of the {period}"
    with pytest.raises(BudgetError, match=f"the {named} has"):
        budget.check(Spent(**{unit: 11 - getattr(before, unit)}), day, month, before)


def test_the_error_says_what_is_left() -> None:
    with pytest.raises(BudgetError, match=r"may take 0\.02 and the budget of the day has 0\.01 left of 0\.50"):
        Budget.parse("0.50/day").check(Spent(20_000, 5, 1), Spent(490_000, 1, 1), Spent())


def test_days_and_months_begin_at_midnight_utc() -> None:
    assert starts(951_868_799.5) == (951_782_400, 949_363_200)  # 29 February 2000, the last half second
    assert starts(951_868_800) == (951_868_800, 951_868_800)
