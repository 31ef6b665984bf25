"""Fitting: a known model comes back, no weight against its sign, Platt keeps an order and isotonic rises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.confidence.logistic import Logistic
from quantize import fit as module
from quantize.fit import ISOTONIC_FROM, PENALTIES, fit, isotonic, platt
from quantize.route_metrics import expected_calibration_error

Rows = list[dict[str, float]]


def drawn(count: int, weights: dict[str, float], intercept: float = 0.0, seed: int = 0) -> tuple[Rows, list[bool]]:
    """Standard normal signals, and answers that are right with the probability of the model."""
    random = np.random.default_rng(seed)
    rows: Rows = [{name: float(random.normal()) for name in weights} for _ in range(count)]
    log_odds = [intercept + sum(weights[name] * row[name] for name in weights) for row in rows]
    return rows, [bool(random.random() < 1 / (1 + np.exp(-each))) for each in log_odds]


def test_a_known_model_comes_back() -> None:
    weights = {"a": 1.5, "b": -1.0, "c": 0.0}
    rows, right = drawn(900, weights, 0.4)
    found = fit(rows, right, dict.fromkeys(weights, 0))
    assert found.model.steps is None
    assert found.model.intercept == pytest.approx(0.4, abs=0.25)
    for name, weight in weights.items():
        assert found.model.terms[name].weight == pytest.approx(weight, abs=0.3)
    assert found.penalty in PENALTIES


def test_probabilities_are_calibrated_on_new_questions() -> None:
    weights = {"a": 2.0, "b": 1.0}
    rows, right = drawn(900, weights, -0.5)
    more, labels = drawn(3000, weights, -0.5, seed=1)
    model = fit(rows, right, {"a": 1, "b": 1}).model
    assert expected_calibration_error([model.estimate(row).probability for row in more], labels) < 0.05


def test_what_a_penalty_shrinks_is_stretched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Platt on the log-odds of rows that were held out, put into the weights."""
    monkeypatch.setattr(module, "PENALTIES", (1000.0,))
    rows, right = drawn(900, {"a": 1.5}, 0.4)
    model = fit(rows, right, {"a": 1}).model
    assert model.terms["a"].weight == pytest.approx(1.5, abs=0.4)  # 0.3 without
    assert model.intercept == pytest.approx(0.4, abs=0.25)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([-1, 0, 1]), min_size=1),
    st.floats(-2, 2),
)
def test_no_weight_is_against_its_sign(seed: int, signs: dict[str, int], strength: float) -> None:
    rows, right = drawn(60, dict.fromkeys(signs, strength), seed=seed)
    right = right[:5] + [True] * 5 + [False] * 5 + right[15:]
    model = fit(rows, right, signs).model
    assert all(signs[name] * term.weight >= 0 for name, term in model.terms.items())


def test_a_signal_against_its_sign_is_left_out_and_the_others_stay() -> None:
    rows, right = drawn(400, {"a": 1.5, "b": -1.5})
    model = fit(rows, right, {"a": 1, "b": 1}).model
    assert model.terms.keys() == {"a"}


def test_signals_that_never_change_or_are_missing_say_nothing() -> None:
    rows, right = drawn(200, {"a": 1.5})
    model = fit(
        [row | {"same": 3.0, "wild": np.inf} for row in rows], right, {"a": 0, "same": 0, "none": 0, "wild": 0}
    )
    assert model.model.terms.keys() == {"a"}
    assert fit(rows, right, {"none": 0}).model.terms == {}


def test_a_missing_value_counts_as_the_mean() -> None:
    rows, right = drawn(300, {"a": 1.5, "b": 1.0})
    some = [row if at % 3 else {"b": row["b"]} for at, row in enumerate(rows)]
    model = fit(some, right, {"a": 1, "b": 1}).model
    present = [row["a"] for row in some if "a" in row]
    assert model.terms["a"].mean == pytest.approx(np.mean(present))
    assert model.terms["a"].deviation == pytest.approx(np.std(present))
    assert model.estimate({"b": 0.3}).contributions["a"] == 0.0


def test_held_out_probabilities_are_of_models_that_had_not_seen_the_row() -> None:
    """On signals that are noise a model that had seen them would look good."""
    random = np.random.default_rng(3)
    rows = [{f"s{at}": float(random.normal()) for at in range(20)} for _ in range(120)]
    right = [bool(random.random() < 0.5) for _ in rows]
    found = fit(rows, right, {f"s{at}": 0 for at in range(20)})
    gap = found.held_out[np.array(right)].mean() - found.held_out[~np.array(right)].mean()
    assert abs(gap) < 0.1
    assert len(found.held_out) == len(rows)
    assert ((found.held_out > 0) & (found.held_out < 1)).all()


def test_equal_input_gives_an_equal_model() -> None:
    rows, right = drawn(150, {"a": 1.0})
    assert fit(rows, right, {"a": 1}).model == fit(rows, right, {"a": 1}).model


@pytest.mark.parametrize("right", [[True] * 50, [False] * 50, [True] * 46 + [False] * 4, []])
def test_too_few_of_a_kind_are_refused(right: list[bool]) -> None:
    with pytest.raises(ValueError, match="at least 5 of each"):
        fit([{"a": 0.1}] * len(right), right, {"a": 0})


def test_separable_answers_give_a_finite_model() -> None:
    rows = [{"a": float(at)} for at in range(60)]
    model = fit(rows, [at >= 30 for at in range(60)], {"a": 1}).model
    assert 0.7 < model.estimate({"a": 59.0}).probability < 1
    assert 0 < model.estimate({"a": 0.0}).probability < 0.3


def test_from_a_thousand_labels_on_the_curve_is_isotonic() -> None:
    rows, right = drawn(ISOTONIC_FROM, {"a": 1.0})
    model: Logistic = fit(rows, right, {"a": 1}).model
    assert model.steps is not None
    assert all(low < high for low, high in pairwise(model.steps.bounds))
    assert all(low <= high for low, high in pairwise(model.steps.values))


scores = st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=2, max_size=60)


@given(scores)
def test_isotonic_rises_and_claims_no_certainty(pairs: list[tuple[float, bool]]) -> None:
    log_odds, labels = (np.array(column, float) for column in zip(*pairs, strict=True))
    steps = isotonic(log_odds, labels)
    assert all(low < high for low, high in pairwise(steps.bounds))
    assert all(low <= high for low, high in pairwise(steps.values))
    assert np.isfinite(steps.values).all()
    assert steps.bounds[0] == log_odds.min()


def test_isotonic_is_that_of_pool_adjacent_violators() -> None:
    steps = isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert steps.bounds == (1.0, 2.0, 4.0)
    assert steps.values == pytest.approx(np.log([1 / 2, 1.0, 2.0]))  # 1 of 3, 2 of 4, 2 of 3, with the two added


@given(scores, st.sampled_from([1e-6, 1.0, 10.0]))
def test_platt_keeps_an_order_and_is_finite(pairs: list[tuple[float, bool]], prior: float) -> None:
    log_odds, labels = (np.array(column, float) for column in zip(*pairs, strict=True))
    slope, shift = platt(log_odds, labels, prior=prior)
    assert slope > 0
    assert np.isfinite([slope, shift]).all()


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_platt_of_answers_that_are_all_alike_is_finite(label: float) -> None:
    """A task on which a sure model is always wrong."""
    sure = np.full(200, 2.0 if label == 0 else -2.0)
    slope, shift = platt(sure, np.full(200, label), prior=10.0)
    assert slope > 0
    assert np.isfinite(shift)
    assert (slope * sure[0] + shift > 0) == bool(label)


def test_platt_finds_what_was_stretched_and_moved() -> None:
    random = np.random.default_rng(0)
    true = random.normal(0, 1.5, 4000)
    labels = (random.random(4000) < 1 / (1 + np.exp(-true))).astype(float)
    slope, shift = platt(2 * true + 1, labels)
    assert (slope, shift) == (pytest.approx(0.5, abs=0.05), pytest.approx(-0.5, abs=0.1))


def test_a_strong_prior_leaves_log_odds_as_they_are() -> None:
    slope, shift = platt(np.array([-1.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0]), prior=1e6)
    assert (slope, shift) == (pytest.approx(1.0, abs=1e-3), pytest.approx(0.0, abs=1e-3))
