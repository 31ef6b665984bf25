"""Multinomial logistic regression in numpy: rows of features and their labels to linear scores.

Nesterov's accelerated gradient on all rows at once. With more features than rows it works in the space that the
rows span, for there the solution lies. Knows nothing of texts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

PENALTY = 3e-5
STEPS = 100


def fit_softmax(
    rows: Floats, labels: Integers, count: int, *, penalty: float = PENALTY, steps: int = STEPS
) -> tuple[Floats, Floats]:
    """Weights [features, count] and intercepts [count]: `rows @ weights + intercepts` are the scores of each label.

    Minimises the mean log-loss plus half of `penalty` times the squared weights, for rows scaled so that their
    squared distance from their mean averages to 1. Labels weigh alike, however many rows each has.
    """
    mean = rows.mean(axis=0)
    centred = rows - mean
    scale = np.sqrt(max(float((centred**2).sum(axis=1).mean()), 1e-12))
    points, axes = _spanned(centred / np.float32(scale))
    weights = np.zeros((points.shape[1], count), np.float32)
    intercepts = np.zeros(count, np.float32)
    ahead, raised, momentum = weights, intercepts, 1.0
    targets = np.eye(count, dtype=np.float32)[labels]
    shares = (1 / np.maximum(np.bincount(labels, minlength=count), 1)).astype(np.float32)[labels]
    shares /= shares.sum()
    # The curvature of the loss is at most half that of the squares (Boehning, Ann. Inst. Statist. Math. 1992).
    curvature = np.float32(0.5 * np.linalg.norm(points * np.sqrt(shares)[:, None], 2) ** 2 + penalty)
    for _ in range(steps):
        wrong = (softmax(points @ ahead + raised) - targets) * shares[:, None]
        new = ahead - (points.T @ wrong + np.float32(penalty) * ahead) / curvature
        higher = raised - 2 * wrong.sum(axis=0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        carried = np.float32((momentum - 1) / following)
        ahead, raised = new + carried * (new - weights), higher + carried * (higher - intercepts)
        weights, intercepts, momentum = new, higher, following
    weights = axes @ weights / np.float32(scale)
    return weights, intercepts - mean @ weights


def softmax(scores: Floats) -> Floats:
    """Scores [rows, labels] as shares that sum to 1."""
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def _spanned(rows: Floats) -> tuple[Floats, Floats]:
    """The rows in coordinates of the space that they span, and the axes [features, coordinates] of these."""
    if rows.shape[1] <= rows.shape[0]:
        return rows, np.eye(rows.shape[1], dtype=np.float32)
    squares, turned = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    kept = squares > 1e-6 * squares[-1]
    lengths = np.sqrt(squares[kept])
    points = (turned[:, kept] * lengths).astype(np.float32)
    return points, rows.T @ (turned[:, kept] / lengths).astype(np.float32)
