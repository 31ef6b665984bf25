"""Binomial tails against exact sums of fractions; no SciPy is needed for them."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.confidence.binomial import binomial_cdf, clopper_pearson_upper, regularised_beta


def exact_cdf(successes: int, trials: int, rate: float) -> float:
    """In integers over one denominator: a sum of fractions would reduce every term."""
    ratio = Fraction(rate)
    hit, whole = ratio.numerator, ratio.denominator
    total = sum(comb(trials, k) * hit**k * (whole - hit) ** (trials - k) for k in range(successes + 1))
    return float(Fraction(total, whole**trials))


@given(st.data(), st.integers(1, 100), st.integers(1, 255))
def test_the_tail_is_the_exact_sum(data: st.DataObject, trials: int, parts: int) -> None:
    successes, rate = data.draw(st.integers(0, trials)), parts / 256
    assert binomial_cdf(successes, trials, rate) == pytest.approx(exact_cdf(successes, trials, rate), rel=1e-11)


@pytest.mark.parametrize("trials", [200, 1_000])
@pytest.mark.parametrize("rate", [1 / 128, 1 / 8, 0.5])
def test_large_tails_keep_their_digits(trials: int, rate: float) -> None:
    for successes in (0, 1, int(trials * rate / 2), int(trials * rate), trials - 1):
        expected = exact_cdf(successes, trials, rate)
        assert binomial_cdf(successes, trials, rate) == pytest.approx(expected, rel=1e-10, abs=1e-280)


def test_a_million_trials_follow_the_normal_law() -> None:
    assert binomial_cdf(500_000, 1_000_000, 0.5) == pytest.approx(0.5 + 0.5 * comb_share(1_000_000), rel=1e-9)


def comb_share(trials: int) -> float:
    """P(X = trials / 2) of a fair coin, by Stirling's series."""
    return (2 / (3.141592653589793 * trials)) ** 0.5 * (1 - 1 / (4 * trials))


@pytest.mark.parametrize(("successes", "expected"), [(-1, 0.0), (0, 1.0), (5, 1.0)])
def test_ends_of_the_tail(successes: int, expected: float) -> None:
    assert binomial_cdf(successes, 0, 0.3) == expected


@given(st.data(), st.integers(1, 100), st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_the_bound_is_the_least_rate_that_the_counts_rule_out(
    data: st.DataObject, trials: int, delta: float
) -> None:
    errors = data.draw(st.integers(0, trials - 1))
    bound = clopper_pearson_upper(errors, trials, delta)
    assert errors / trials < bound < 1
    assert exact_cdf(errors, trials, bound) <= delta * (1 + 1e-9)
    assert exact_cdf(errors, trials, bound * (1 - 1e-6)) > delta


@pytest.mark.parametrize(("alpha", "least"), [(0.2, 11), (0.1, 22), (0.05, 45), (0.02, 114), (0.01, 230)])
def test_how_many_right_answers_show_anything(alpha: float, least: int) -> None:
    assert clopper_pearson_upper(0, least, 0.1) <= alpha < clopper_pearson_upper(0, least - 1, 0.1)


def test_no_trials_show_nothing() -> None:
    assert clopper_pearson_upper(0, 0, 0.1) == clopper_pearson_upper(4, 4, 0.1) == 1.0


@pytest.mark.parametrize(("a", "b", "x"), [(0, 1, 0.5), (1, -1, 0.5), (1, 1, 1.5), (1, 1, float("nan"))])
def test_what_is_no_beta_function_is_refused(a: float, b: float, x: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        regularised_beta(a, b, x)


@given(st.floats(0.1, 60), st.floats(0.1, 60), st.floats(0.001, 0.999))
def test_the_beta_function_is_symmetric(a: float, b: float, x: float) -> None:
    assert regularised_beta(a, b, x) == pytest.approx(1 - regularised_beta(b, a, 1 - x), abs=1e-12)
