"""Routing metrics, against definitions written out and values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quantize.route_metrics import (
    auroc,
    bootstrap_statistic,
    brier,
    calibration_noise,
    cost_quality,
    expected_calibration_error,
    gain_captured,
    risk_coverage,
)

shares = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.8, 1.0])
answers = st.lists(st.tuples(shares, st.integers(0, 1)), min_size=1, max_size=40)
qualities = st.lists(st.tuples(shares, shares, shares), min_size=1, max_size=40)


def columns(rows: list[tuple[float, ...]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


@given(answers)
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[float, int]]) -> None:
    right = [score for score, label in rows if label]
    wrong = [score for score, label in rows if not label]
    assume(right and wrong)
    pairs = [float(a > b) + 0.5 * (a == b) for a, b in product(right, wrong)]
    score, label = columns(rows)
    assert auroc(score, label) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([-value for value in score], label) == pytest.approx(1 - auroc(score, label))


@pytest.mark.parametrize("right", [[1, 1], [0, 0]])
def test_auroc_needs_both_outcomes(right: list[int]) -> None:
    with pytest.raises(ValueError, match="of 2 answers are right"):
        auroc([0.1, 0.2], right)


def test_calibration_error_takes_bins_of_equal_mass() -> None:
    probabilities = [0.1, 0.2, 0.9, 0.95]
    assert expected_calibration_error(probabilities, [0, 0, 1, 1], 2) == pytest.approx((0.3 + 0.15) / 4)
    assert expected_calibration_error(probabilities, [0, 0, 1, 1], 1) == pytest.approx(0.15 / 4)
    one_each = sum(abs(p - y) for p, y in zip(probabilities, [1, 0, 0, 1], strict=True)) / 4
    assert expected_calibration_error(probabilities, [1, 0, 0, 1], 4) == pytest.approx(one_each)
    assert expected_calibration_error(probabilities, [1, 0, 0, 1], 100) == pytest.approx(one_each)


def test_equal_probabilities_share_a_bin() -> None:
    """Split over bins by position, a constant that is right on average would look wrong in each."""
    assert expected_calibration_error([0.5] * 20, [1] * 10 + [0] * 10) == 0.0


@given(answers, st.randoms(), st.integers(1, 12))
def test_the_order_of_the_questions_has_no_say(
    rows: list[tuple[float, int]], random: np.random.Generator, bins: int
) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[arg-type]
    (score, label), (score_mixed, label_mixed) = columns(rows), columns(mixed)
    assert expected_calibration_error(score, label, bins) == pytest.approx(
        expected_calibration_error(score_mixed, label_mixed, bins)
    )
    assert risk_coverage(score, label) == risk_coverage(score_mixed, label_mixed)
    assert 0 <= brier(score, label) <= 1


def test_exact_probabilities_show_no_more_than_noise() -> None:
    random = np.random.default_rng(5)
    probabilities = random.beta(3, 2, 1_000)
    noise = calibration_noise(probabilities.tolist(), resamples=300)
    honest = (random.random(1_000) < probabilities).tolist()
    assert noise.low <= expected_calibration_error(probabilities.tolist(), honest) <= noise.high
    overconfident = np.sqrt(probabilities).tolist()
    assert expected_calibration_error(overconfident, honest) > 2 * calibration_noise(overconfident).high
    assert 0.02 < noise.value < 0.05


@given(answers)
def test_risk_coverage_counts_what_each_threshold_serves(rows: list[tuple[float, int]]) -> None:
    score, label = columns(rows)
    points = risk_coverage(score, label)
    assert [point.threshold for point in points] == sorted(set(score), reverse=True)
    for point in points:
        served = [y for p, y in zip(score, label, strict=True) if p >= point.threshold]
        assert point.coverage == pytest.approx(len(served) / len(rows))
        assert point.risk == pytest.approx(1 - sum(served) / len(served))


def test_cost_and_quality_by_hand() -> None:
    points = cost_quality([0.9, 0.1, 0.4, 0.4], [1.0, 0.0, 0.5, 0.0], [1.0, 1.0, 0.5, 0.8])
    assert [(point.remote_share, point.quality) for point in points] == [
        (0.0, pytest.approx(1.5 / 4)),
        (0.25, pytest.approx(2.5 / 4)),
        (0.75, pytest.approx(3.3 / 4)),
        (1.0, pytest.approx(3.3 / 4)),
    ]


@given(qualities)
def test_the_curve_runs_from_always_local_to_always_remote(rows: list[tuple[float, float, float]]) -> None:
    score, local, remote = columns(rows)
    points = cost_quality(score, local, remote)
    assert (points[0].remote_share, points[-1].remote_share) == (0.0, 1.0)
    assert points[0].quality == pytest.approx(np.mean(local))
    assert points[-1].quality == pytest.approx(np.mean(remote))


@given(qualities)
def test_no_score_captures_more_than_the_oracle(rows: list[tuple[float, float, float]]) -> None:
    score, local, remote = columns(rows)
    assume(len({round(b - a, 9) for a, b in zip(local, remote, strict=True)}) > 1)
    captured = gain_captured(score, local, remote)
    assert -1 - 1e-9 <= captured <= 1 + 1e-9
    oracle = [a - b for a, b in zip(local, remote, strict=True)]
    assert gain_captured(oracle, local, remote) == pytest.approx(1)
    assert gain_captured([-value for value in oracle], local, remote) == pytest.approx(-1)
    assert gain_captured([-value for value in score], local, remote) == pytest.approx(-captured, abs=1e-9)


def test_a_constant_score_captures_nothing_and_noise_next_to_nothing() -> None:
    random = np.random.default_rng(2)
    local, remote = (random.random(4_000) < rate for rate in (0.4, 0.8))
    assert gain_captured([0.5] * 4_000, local.tolist(), remote.tolist()) == pytest.approx(0, abs=1e-12)
    assert abs(gain_captured(random.random(4_000).tolist(), local.tolist(), remote.tolist())) < 0.08


def test_with_a_perfect_remote_the_share_is_that_of_auroc() -> None:
    """Both are areas of the same staircase then: 2 AUROC - 1."""
    random = np.random.default_rng(4)
    score = random.random(200)
    local = (random.random(200) < score).astype(float).tolist()
    captured = gain_captured(score.tolist(), local, [1.0] * 200)
    assert captured == pytest.approx(2 * auroc(score.tolist(), local) - 1)


def test_nothing_to_route_by_is_an_error() -> None:
    with pytest.raises(ValueError, match="gains the same"):
        gain_captured([0.1, 0.2], [0.0, 0.5], [0.5, 1.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: auroc([], []),
        lambda: brier([0.1], [1, 0]),
        lambda: expected_calibration_error([float("nan")], [1]),
        lambda: expected_calibration_error([0.5], [1], 0),
        lambda: brier([0.5], [0.3]),
        lambda: risk_coverage([[0.5]], [[1]]),  # type: ignore[list-item]
        lambda: cost_quality([0.5], [1], [float("inf")]),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        call()


def test_the_bootstrap_interval_holds_the_value_and_repeats() -> None:
    random = np.random.default_rng(1)
    score = random.random(300)
    right = (random.random(300) < score).tolist()
    first = bootstrap_statistic(auroc, score.tolist(), right, resamples=300)
    assert first.low < first.value == auroc(score.tolist(), right) < first.high
    assert first == bootstrap_statistic(auroc, score.tolist(), right, resamples=300)
    assert first != bootstrap_statistic(auroc, score.tolist(), right, resamples=300, seed=1)
    fewer = bootstrap_statistic(auroc, score[:50].tolist(), right[:50], resamples=300)
    assert fewer.high - fewer.low > first.high - first.low


def test_resamples_without_a_wrong_answer_are_left_out() -> None:
    found = bootstrap_statistic(auroc, [0.9, 0.8, 0.1], [1, 1, 0], resamples=100)
    assert (found.low, found.high) == (1.0, 1.0)
