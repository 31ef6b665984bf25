"""Softmax regression: it finds the minimum, in few features and in many."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.students.softmax_regression import fit_softmax, softmax


def made(rows: int, features: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    owners = np.arange(rows) % labels
    centres = random.normal(size=(labels, features))
    return (centres[owners] + random.normal(size=(rows, features)) * 2).astype(np.float32), owners


def objective(rows: np.ndarray, owners: np.ndarray, found: tuple[np.ndarray, np.ndarray], penalty: float) -> float:
    weights, intercepts = (part.astype(np.float64) for part in found)
    centred = rows - rows.mean(axis=0)
    scale = (centred**2).sum(axis=1).mean()
    scores = rows @ weights + intercepts
    right = scores[np.arange(len(rows)), owners]
    loss = np.logaddexp.reduce(scores, axis=1) - right
    shares = 1 / np.bincount(owners)[owners]
    return float((loss * shares).sum() / shares.sum() + penalty * scale * (weights**2).sum() / 2)


@pytest.mark.parametrize(("rows", "features"), [(40, 6), (20, 60)])
def test_no_small_step_leads_lower(rows: int, features: int) -> None:
    points, owners = made(rows, features, 3)
    weights, intercepts = fit_softmax(points, owners, 3, penalty=0.01, steps=2000)
    best = objective(points, owners, (weights, intercepts), 0.01)
    random = np.random.default_rng(1)
    for _ in range(50):
        step, rise = random.normal(size=weights.shape) * 1e-3, random.normal(size=intercepts.shape) * 1e-3
        assert objective(points, owners, (weights + step, intercepts + rise), 0.01) > best - 1e-6


def test_labels_with_few_examples_count_as_much_as_others() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(110, 2)).astype(np.float32)
    owners = np.array([0] * 100 + [1] * 10)
    weights, intercepts = fit_softmax(rows, owners, 2)  # nothing tells them apart
    shares = softmax(rows @ weights + intercepts)
    assert shares[owners == 0, 0].mean() + shares[owners == 1, 0].mean() == pytest.approx(1, abs=0.15)
    assert shares[:, 1].mean() > 0.4


def test_rows_that_are_all_alike_give_no_weights() -> None:
    weights, intercepts = fit_softmax(np.ones((6, 4), np.float32), np.array([0, 1] * 3), 2)
    assert np.isfinite(weights).all() and abs(intercepts).max() < 1e-3
