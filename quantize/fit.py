"""Fits the runtime's logistic model: L2 regression, the penalty by cross-validation, then Platt or isotonic.

Numpy only. Rows are questions and columns signals; NaN is a signal that could not be measured and counts as its
mean. Knows nothing of what the signals mean beyond the sign that each may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.confidence.logistic import CLIP, Logistic, Steps, Term

Floats = NDArray[np.float64]

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 5
ISOTONIC_FROM = 1000
"""Labels from which isotonic calibration beats Platt's two parameters (Niculescu-Mizil and Caruana, ICML 2005)."""
_LEAST_OF_EACH = 5  # right and wrong answers, below which nothing can be learned


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model, and the probability that each row got from models that had not seen it."""

    model: Logistic
    held_out: Floats
    penalty: float


def fit(
    rows: Sequence[Mapping[str, float]], right: Sequence[bool], signs: Mapping[str, int], *, seed: int = 0
) -> Fit:
    """Fit P(right) on the signals named by `signs`.

    A signal with sign 1 or -1 whose weight would come out the other way round is left out: on so few labels that
    is chance, and would not hold on other questions. The log-odds that models of the other folds give to each row
    are fitted again (Platt; from `ISOTONIC_FROM` rows on isotonic), and that goes into the model. Raises
    `ValueError` for fewer than five right or wrong answers.
    """
    names = list(signs)
    matrix = np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float64)
    matrix = matrix.reshape(len(rows), len(names))
    labels, allowed = np.asarray(right, np.float64), np.array([signs[name] for name in names])
    few = int(min(labels.sum(), len(labels) - labels.sum()))
    if few < _LEAST_OF_EACH:
        raise ValueError(f"{few} right or wrong answers, at least {_LEAST_OF_EACH} of each are needed")
    folds = _folds(labels, np.random.default_rng(seed))
    losses = {
        penalty: _log_loss(_cross_fitted(matrix, labels, allowed, folds, penalty), labels) for penalty in PENALTIES
    }
    penalty = min(losses, key=lambda each: losses[each])
    log_odds = _cross_fitted(matrix, labels, allowed, folds, penalty)
    line = _Line.through(matrix, labels, allowed, penalty)
    slope, shift = platt(log_odds, labels)
    line = line.scaled(slope, shift)
    log_odds = slope * log_odds + shift
    steps = isotonic(log_odds, labels) if len(labels) >= ISOTONIC_FROM else None
    if steps is not None:
        log_odds = np.array([steps.apply(each) for each in log_odds])
    terms = {
        name: Term(float(line.means[at]), float(line.deviations[at]), float(line.weights[at]))
        for at, name in enumerate(names)
        if line.weights[at]
    }
    return Fit(Logistic(float(line.intercept), terms, steps), _sigmoid(log_odds), penalty)


def platt(log_odds: Floats, labels: Floats, *, prior: float = 1e-6) -> tuple[float, float]:
    """Slope and shift that calibrate log-odds (Platt 1999, with his targets against overconfidence).

    The slope stays positive, so that an order is never turned round; `prior` draws both to 1 and 0.
    """
    positive, negative = labels.sum(), len(labels) - labels.sum()
    targets = np.where(labels > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    columns = np.column_stack([np.ones_like(log_odds), log_odds])
    shift, slope = _newton(columns, targets, np.array([prior, prior]), start=np.array([0.0, 1.0]))
    if slope <= 0:
        return 1e-3, float(np.log((positive + 1) / (negative + 1)))  # a task may have answers of one kind only
    return float(slope), float(shift)


def isotonic(log_odds: Floats, labels: Floats) -> Steps:
    """The rising step function that fits best (pool adjacent violators).

    One right and one wrong answer are added to each step, so that none claims certainty.
    """
    order = np.argsort(log_odds, kind="stable")
    blocks: list[list[float]] = []  # lower bound, right answers, all answers
    for at, label in zip(log_odds[order].tolist(), labels[order].tolist(), strict=True):
        if blocks and blocks[-1][0] == at:
            blocks[-1][1] += label
            blocks[-1][2] += 1
        else:
            blocks.append([at, label, 1.0])
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]:
            _, good, every = blocks.pop()
            blocks[-1][1] += good
            blocks[-1][2] += every
    shares = np.maximum.accumulate([(good + 1) / (every + 2) for _, good, every in blocks])
    return Steps(tuple(block[0] for block in blocks), tuple(np.log(shares / (1 - shares)).tolist()))


# --- the arithmetic ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """Weights for standardised columns."""

    means: Floats
    deviations: Floats
    weights: Floats
    intercept: float

    @classmethod
    def through(cls, matrix: Floats, labels: Floats, allowed: NDArray[np.int_], penalty: float) -> _Line:
        with np.errstate(invalid="ignore"):
            known = np.isfinite(matrix)
            counts = np.maximum(known.sum(axis=0), 1)
            means = np.where(known, matrix, 0.0).sum(axis=0) / counts
            deviations = np.sqrt((np.where(known, matrix - means, 0.0) ** 2).sum(axis=0) / counts)
        kept = deviations > 1e-9
        deviations = np.where(kept, deviations, 1.0)
        line = cls(means, deviations, np.zeros(matrix.shape[1]), 0.0)
        columns = line.standardised(matrix)
        while True:
            used = np.flatnonzero(kept)
            design = np.column_stack([np.ones(len(labels)), columns[:, used]])
            penalties = np.array([1e-6, *[penalty] * len(used)])
            found = _newton(design, labels, penalties, start=np.zeros(len(penalties)))
            against = allowed[used] * found[1:]
            if not len(used) or against.min() >= 0:
                weights = np.zeros(matrix.shape[1])
                weights[used] = found[1:]
                return cls(means, deviations, weights, float(found[0]))
            kept[used[int(against.argmin())]] = False

    def standardised(self, matrix: Floats) -> Floats:
        values = np.where(np.isfinite(matrix), matrix, self.means)
        return np.clip((values - self.means) / self.deviations, -CLIP, CLIP)

    def log_odds(self, matrix: Floats) -> Floats:
        return np.asarray(self.intercept + self.standardised(matrix) @ self.weights)

    def scaled(self, slope: float, shift: float) -> _Line:
        return _Line(self.means, self.deviations, slope * self.weights, slope * self.intercept + shift)


def _newton(columns: Floats, targets: Floats, penalties: Floats, *, start: Floats) -> Floats:
    """Minimise the log-loss plus half the penalised squares of what differs from `start`."""
    weights = start.copy()
    objective: Callable[[Floats], float] = lambda w: float(  # noqa: E731
        np.logaddexp(0, columns @ w).sum() - targets @ (columns @ w) + penalties @ (w - start) ** 2 / 2
    )
    value = objective(weights)
    for _ in range(100):
        probabilities = _sigmoid(columns @ weights)
        gradient = columns.T @ (probabilities - targets) + penalties * (weights - start)
        curvature = (columns * (probabilities * (1 - probabilities))[:, None]).T @ columns + np.diag(penalties)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (next_value := objective(weights - size * step)) > value and size > 1e-6:
            size /= 2
        weights, gained, value = weights - size * step, value - next_value, next_value
        if abs(step).max() * size < 1e-9 or gained < 1e-12:
            break
    return weights


def _cross_fitted(
    matrix: Floats, labels: Floats, allowed: NDArray[np.int_], folds: NDArray[np.int_], penalty: float
) -> Floats:
    """The log-odds of each row under the model of the other folds."""
    log_odds = np.empty(len(labels))
    for fold in range(FOLDS):
        inside = folds == fold
        log_odds[inside] = _Line.through(matrix[~inside], labels[~inside], allowed, penalty).log_odds(
            matrix[inside]
        )
    return log_odds


def _folds(labels: Floats, random: np.random.Generator) -> NDArray[np.int_]:
    """A fold for each row, with right and wrong answers spread evenly."""
    folds = np.empty(len(labels), int)
    for label in (0, 1):
        rows = random.permutation(np.flatnonzero(labels == label))
        folds[rows] = np.arange(len(rows)) % FOLDS
    return folds


def _log_loss(log_odds: Floats, labels: Floats) -> float:
    return float((np.logaddexp(0, log_odds) - labels * log_odds).mean())


def _sigmoid(log_odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -500, 500))))
