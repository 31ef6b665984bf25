"""Fits what a reader's description holds beside limits: the weight of passages, and the probability of an answer.

On questions that the reader was not trained on, each with passages that hold the answer and with passages that do
not. Knows nothing of how a reader computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError
from edge_sdk.readers.description import Answerability, Description
from edge_sdk.readers.reader import Extract, Reader

from ..metrics import token_f1

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Weights of a passage's own score that are tried."""
_LEAST = 20  # questions of each kind for a fit
_STEPS, _DECAY = 50, 1.0  # of Newton's method; the prior that keeps separable data finite


@dataclass(frozen=True, slots=True)
class Case:
    """A question and passages; no `answers` where the passages hold none."""

    question: str
    passages: tuple[str, ...]
    answers: tuple[str, ...] = ()


def fit_description(reader: Reader, cases: Sequence[Case]) -> Description:
    """The reader's description with the weight that gives the best token-F1, and the fitted probability.

    Raises `ConfigError` for fewer than 20 answerable or unanswerable cases.
    """
    answerable = [case for case in cases if case.answers]
    if min(len(answerable), len(cases) - len(answerable)) < _LEAST:
        raise ConfigError(
            f"{len(answerable)} of {len(cases)} cases have an answer", hint=f"a fit needs {_LEAST} with and without"
        )
    longest = reader.description.limits.answer
    scores = [reader.score(case.question, case.passages) for case in cases]

    def quality(weight: float) -> float:
        pairs = zip(cases, scores, strict=True)
        return fmean(
            token_f1(_said(each.extract(longest, weight)), case.answers) for case, each in pairs if case.answers
        )

    weight = max(WEIGHTS, key=lambda each: (quality(each), -each))
    extracts = [each.extract(longest, weight) for each in scores]
    odds = fit_answerability(extracts, [bool(case.answers) for case in cases])
    return replace(reader.description, passage_weight=weight, answerability=odds)


def fit_answerability(extracts: Sequence[Extract], present: Sequence[bool]) -> Answerability:
    """Logistic regression on `support` and the best of `passages`, by Newton's method with a weak prior."""
    rows = np.array([[1.0, each.support, max(each.passages)] for each in extracts if each.best is not None])
    labels = np.array(
        [label for each, label in zip(extracts, present, strict=True) if each.best is not None], float
    )
    weights: NDArray[np.float64] = np.zeros(3)
    prior = np.diag([0.0, _DECAY, _DECAY])
    for _ in range(_STEPS):
        chance = 0.5 * (1 + np.tanh(rows @ weights / 2))
        slope = rows.T @ (labels - chance) - prior @ weights
        curve = (rows.T * (chance * (1 - chance) + 1e-9)) @ rows + prior
        weights = weights + np.linalg.solve(curve, slope)
    return Answerability(*(round(float(each), 6) for each in weights))


def _said(extract: Extract) -> str:
    return extract.best.text if extract.best is not None else ""
