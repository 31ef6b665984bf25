"""How well a score tells right answers from wrong ones, and what that is worth to a router.

Each metric takes one entry a question and does not depend on their order; questions with equal scores are treated
alike. Every one raises `ValueError` for columns of unequal length, none at all, or values that are no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of all questions with the percentile interval that the bootstrap gives it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """Serving every answer with at least `threshold`: the share served, and the share of wrong ones among them."""

    threshold: float
    coverage: float
    risk: float


@dataclass(frozen=True, slots=True)
class QualityPoint:
    """Handing the share `remote_share` of the questions to the remote gives the mean `quality`."""

    remote_share: float
    quality: float


def auroc(scores: Sequence[float], right: Sequence[float]) -> float:
    """Probability that a right answer has a higher score than a wrong one, ties counting half.

    Hanley and McNeil, Radiology 1982. Raises `ValueError` where all answers are right or all wrong.

    >>> auroc([0.9, 0.8, 0.3, 0.8], [1, 1, 0, 0])
    0.875
    """
    score, label = _labelled(scores, right)
    positives = label > 0
    count = int(positives.sum())
    if count in (0, len(label)):
        raise ValueError(f"{count} of {len(label)} answers are right: AUROC needs right and wrong ones")
    above = _middle_ranks(score)[positives].sum() - count * (count + 1) / 2
    return float(above / (count * (len(label) - count)))


def brier(probabilities: Sequence[float], right: Sequence[float]) -> float:
    """Mean squared distance of the probability from what happened (Brier 1950).

    >>> brier([1.0, 0.5], [1, 0])
    0.125
    """
    probability, label = _labelled(probabilities, right)
    return float(np.mean((probability - label) ** 2))


def expected_calibration_error(probabilities: Sequence[float], right: Sequence[float], bins: int = 10) -> float:
    """Mean distance between probability and share of right answers over bins of equal numbers of questions.

    Bins of equal mass (Nguyen and O'Connor 2015, arXiv 1508.05154): those of equal width are mostly empty and
    flatter. Equal probabilities share a bin. Some of the error is noise: see `calibration_noise`.

    >>> round(expected_calibration_error([0.9] * 10, [1] * 8 + [0] * 2), 6)
    0.1
    """
    probability, label = _labelled(probabilities, right)
    if bins < 1:
        raise ValueError(f"{bins} bins")
    place = (bins * (_middle_ranks(probability) - 0.5) / len(label)).astype(np.int64)
    gaps = np.bincount(place, weights=probability - label)
    return float(np.abs(gaps).sum() / len(label))


def calibration_noise(
    probabilities: Sequence[float], bins: int = 10, *, resamples: int = 1_000, seed: int = 0
) -> Estimate:
    """The expected calibration error that these probabilities would show were they exactly right.

    Mean and 95 % interval over labels drawn from the probabilities themselves: an error within it is no evidence
    of bad calibration. For 250 questions in ten bins it is about 0.07, for 1,000 half of that.

    >>> calibration_noise([0.0, 1.0, 1.0])
    Estimate(value=0.0, low=0.0, high=0.0)
    """
    (probability,) = _columns(probabilities)
    random = np.random.default_rng(seed)
    found = [
        expected_calibration_error(probabilities, (random.random(len(probability)) < probability).tolist(), bins)
        for _ in range(resamples)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(float(np.mean(found)), float(low), float(high))


def risk_coverage(scores: Sequence[float], right: Sequence[float]) -> tuple[CoveragePoint, ...]:
    """What each threshold would serve and get wrong, the strictest first (El-Yaniv and Wiener 2010).

    >>> [(point.coverage, point.risk) for point in risk_coverage([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 1])]
    [(0.25, 0.0), (0.75, 0.3333333333333333), (1.0, 0.25)]
    """
    score, label = _labelled(scores, right)
    order, ends = _groups(-score)
    wrong = np.cumsum(1 - label[order])[ends - 1]
    return tuple(
        CoveragePoint(float(score[order[end - 1]]), float(end / len(label)), float(bad / end))
        for end, bad in zip(ends, wrong, strict=True)
    )


def cost_quality(
    order_scores: Sequence[float], local_quality: Sequence[float], remote_quality: Sequence[float]
) -> tuple[QualityPoint, ...]:
    """Mean quality as more questions are handed off, those with the lowest score first.

    From always local to always remote. Questions with equal scores are handed off together: on the line between two
    points lies handing off a random part of them.

    >>> [point.quality for point in cost_quality([0.1, 0.9], [0, 1], [1, 1])]
    [0.5, 1.0, 1.0]
    """
    score, local, remote = _columns(order_scores, local_quality, remote_quality)
    order, ends = _groups(score)
    gained = np.concatenate([[0.0], np.cumsum((remote - local)[order])[ends - 1]])
    shares = np.concatenate([[0.0], ends / len(score)])
    qualities = local.mean() + gained / len(score)
    return tuple(QualityPoint(float(x), float(y)) for x, y in zip(shares, qualities, strict=True))


def gain_captured(
    order_scores: Sequence[float], local_quality: Sequence[float], remote_quality: Sequence[float]
) -> float:
    """Share of an oracle router's gain over random routing that routing by the score captures.

    Areas between the cost-quality curves and the line from always local to always remote, which is what handing off
    at random gives; the oracle hands off by the true difference of the two qualities. 1 is the oracle, 0 random,
    below 0 worse than random. Raises `ValueError` where every question gains the same: nothing to route by.

    >>> gain_captured([0.2, 0.4, 0.9, 0.8], [0, 1, 1, 1], [1, 1, 1, 1])
    1.0
    """
    _, local, remote = _columns(order_scores, local_quality, remote_quality)
    best = _area_over_random(cost_quality((local - remote).tolist(), local_quality, remote_quality))
    if best <= 1e-12:
        raise ValueError("every question gains the same from the remote: there is nothing to route by")
    return _area_over_random(cost_quality(order_scores, local_quality, remote_quality)) / best


def bootstrap_statistic(
    statistic: Callable[..., float], *columns: Sequence[float], resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """`statistic(*columns)` and its 95 % percentile interval over questions drawn anew; equal seeds, equal results.

    A resample for which the statistic is not defined (it raises `ValueError`: no wrong answer was drawn) is left
    out; where all are, the interval is the value itself.

    >>> bootstrap_statistic(brier, [1.0, 0.0], [1, 0])
    Estimate(value=0.0, low=0.0, high=0.0)
    """
    arrays = _columns(*columns)
    value = statistic(*columns)
    random, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = random.integers(len(arrays[0]), size=len(arrays[0]))
        try:
            found.append(statistic(*(column[drawn] for column in arrays)))
        except ValueError:
            continue
    low, high = np.percentile(found or [value], [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _labelled(scores: Sequence[float], right: Sequence[float]) -> tuple[_Floats, _Floats]:
    score, label = _columns(scores, right)
    if odd := label[(label != 0) & (label != 1)].tolist():
        raise ValueError(f"an answer is right (1) or wrong (0), not {odd[0]}")
    return score, label


def _columns(*columns: Sequence[float]) -> tuple[_Floats, ...]:
    arrays = tuple(np.asarray(column, np.float64) for column in columns)
    sizes = [array.shape for array in arrays]
    if len(set(sizes)) != 1 or len(sizes[0]) != 1 or not sizes[0][0]:
        raise ValueError(f"columns of {', '.join(map(str, sizes))} entries: one number a question each")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("a value is not a finite number")
    return arrays


def _groups(keys: _Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of rising keys, and where in it each run of equal keys ends."""
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order], append=np.inf)) + 1
    return order, ends


def _middle_ranks(values: _Floats) -> _Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middles: _Floats = ends - (counts - 1) / 2
    return middles[inverse]


def _area_over_random(points: Sequence[QualityPoint]) -> float:
    shares = np.array([point.remote_share for point in points])
    qualities = np.array([point.quality for point in points])
    over = qualities - (qualities[0] + shares * (qualities[-1] - qualities[0]))
    return float(np.sum(np.diff(shares) * (over[1:] + over[:-1]) / 2))
