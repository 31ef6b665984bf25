"""The runtime's model: parts that add up, rising steps, and nothing that one wild signal can do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.confidence.logistic import CLIP, Estimate, Logistic, Steps, Term, sigmoid

numbers = st.floats(-1e6, 1e6)
wild = st.floats() | st.sampled_from([math.inf, -math.inf, math.nan])
terms = st.dictionaries(
    st.sampled_from("abcdef"), st.builds(Term, numbers, st.floats(1e-6, 1e6), st.floats(-50, 50)), max_size=6
)
signals = st.dictionaries(st.sampled_from("abcdefg"), wild, max_size=7)


@st.composite
def steps(draw: st.DrawFn) -> Steps:
    pairs = draw(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8))
    bounds, values = zip(*pairs, strict=True)
    return Steps(tuple(sorted(bounds)), tuple(sorted(values)))


@given(st.floats(-50, 50), terms, st.none() | steps(), signals)
def test_contributions_add_up_to_the_log_odds_of_the_probability(
    intercept: float, weights: dict[str, Term], curve: Steps | None, measured: dict[str, float]
) -> None:
    estimate = Logistic(intercept, weights, curve).estimate(measured)
    total = estimate.intercept + sum(estimate.contributions.values())
    assert total == pytest.approx(estimate.log_odds, abs=1e-9)
    assert estimate.probability == sigmoid(estimate.log_odds)
    assert estimate.contributions.keys() == weights.keys() | ({"calibration"} if curve else set())
    if curve is not None:
        assert any(estimate.log_odds == pytest.approx(value, abs=1e-9) for value in curve.values)


@given(terms, signals)
def test_no_signal_says_more_than_three_deviations(weights: dict[str, Term], measured: dict[str, float]) -> None:
    for name, part in Logistic(0.0, weights).estimate(measured).contributions.items():
        assert abs(part) <= CLIP * abs(weights[name].weight) + 1e-9
        assert math.isfinite(part)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_signal_that_could_not_be_measured_says_nothing(value: float | None) -> None:
    assert Term(5.0, 2.0, 3.0).contribution(value) == 0.0


@given(steps(), st.floats(-30, 30), st.floats(-30, 30))
def test_steps_never_turn_an_order_round(curve: Steps, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert curve.apply(low) <= curve.apply(high)


def test_steps_hold_from_their_bound_on() -> None:
    curve = Steps((0.0, 1.0), (-2.0, 3.0))
    assert [curve.apply(at) for at in (-5.0, 0.0, 0.999, 1.0, 9.0)] == [-2.0, -2.0, -2.0, 3.0, 3.0]


@given(st.floats(-800, 800), st.floats(-800, 800))
def test_sigmoid_rises_within_0_and_1_and_is_symmetric(one: float, other: float) -> None:
    assert 0.0 <= sigmoid(one) <= 1.0
    assert sigmoid(min(one, other)) <= sigmoid(max(one, other))
    assert sigmoid(one) + sigmoid(-one) == pytest.approx(1.0)


def test_an_estimate_of_nothing_is_its_intercept() -> None:
    estimate = Estimate.of(-1.0, {})
    assert (estimate.log_odds, estimate.probability) == (-1.0, sigmoid(-1.0))
