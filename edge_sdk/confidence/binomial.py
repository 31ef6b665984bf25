"""Binomial tails and the Clopper-Pearson bound, in plain Python so that no device needs SciPy for them.

Exact up to rounding: the tail is a regularised incomplete beta function, summed as a continued fraction. Knows
nothing of what is counted.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, lgamma, log, log1p

_TINY = 1e-300  # stands for a zero denominator in Lentz's method
_CLOSE = 1e-15
_MOST_TERMS = 100_000  # about the square root of the trials is needed


def regularised_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for positive `a`, `b` and `x` in [0, 1] (DLMF 8.17).

    >>> round(regularised_beta(2, 3, 0.5), 12)  # 11/16
    0.6875
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ValueError(f"I_x(a, b) needs positive a, b and x from 0 to 1, not a={a}, b={b}, x={x}")
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only on this side of the mode
        return 1.0 - _front(b, a, 1 - x, log1p(-x), log(x)) * _continued_fraction(b, a, 1 - x)
    return _front(a, b, x, log(x), log1p(-x)) * _continued_fraction(a, b, x)


@lru_cache(maxsize=65_536)  # a walk over thresholds, and re-splits of one set, ask for the same few tails
def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """P(X <= `successes`) for X binomial with `trials` and `rate`; 1 where there are no trials.

    >>> binomial_cdf(0, 22, 0.1) < 0.1 < binomial_cdf(0, 21, 0.1)  # 22 right answers of 22 show 10 % at 90 %
    True
    """
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    return regularised_beta(trials - successes, successes + 1, 1 - rate)


@lru_cache(maxsize=65_536)
def clopper_pearson_upper(errors: int, trials: int, delta: float) -> float:
    """The rate that lies above the true one with probability at least 1 - `delta`, `errors` of `trials` seen.

    Clopper and Pearson, Biometrika 1934, one-sided. The end of the bisection that is returned is the safe one.

    >>> round(clopper_pearson_upper(0, 22, 0.1), 4), clopper_pearson_upper(3, 3, 0.1)
    (0.0994, 1.0)
    """
    if errors >= trials:
        return 1.0
    low, high = errors / trials, 1.0
    while low < (middle := (low + high) / 2) < high:
        if regularised_beta(trials - errors, errors + 1, 1 - middle) <= delta:
            high = middle
        else:
            low = middle
    return high


def _front(a: float, b: float, x: float, log_x: float, log_rest: float) -> float:
    return exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log_x + b * log_rest) / a


def _continued_fraction(a: float, b: float, x: float) -> float:
    """DLMF 8.17.22 by the modified Lentz method (Thompson and Barnett 1986)."""
    c, d = 1.0, 1.0 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) <= _CLOSE:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
