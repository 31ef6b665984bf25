"""From signals to a probability, in plain arithmetic: an additive model whose parts add up to the log-odds.

Knows nothing of how it was fitted or of what the signals mean.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

CLIP = 3.0
"""Standard deviations from the mean beyond which a signal says no more: new data may lie anywhere."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A probability and what it is made of: `intercept` and `contributions` add up to its log-odds."""

    probability: float
    intercept: float
    contributions: Mapping[str, float]

    @classmethod
    def of(cls, intercept: float, contributions: Mapping[str, float]) -> Estimate:
        """The estimate with these parts."""
        return cls(sigmoid(math.fsum([intercept, *contributions.values()])), intercept, contributions)

    @property
    def log_odds(self) -> float:
        """The sum of all parts."""
        return math.fsum([self.intercept, *self.contributions.values()])


@dataclass(frozen=True, slots=True)
class Term:
    """One signal in the model: log-odds for each standard deviation above the mean of the calibration set."""

    mean: float
    deviation: float
    weight: float

    def contribution(self, value: float | None) -> float:
        """Its part of the log-odds; 0 for a signal that could not be measured."""
        if value is None or not math.isfinite(value):
            return 0.0
        return self.weight * max(-CLIP, min(CLIP, (value - self.mean) / self.deviation))


@dataclass(frozen=True, slots=True)
class Steps:
    """A rising step function of the log-odds (isotonic calibration): above `bounds[i]` they become `values[i]`."""

    bounds: tuple[float, ...]
    values: tuple[float, ...]

    def apply(self, log_odds: float) -> float:
        """The calibrated log-odds."""
        return self.values[max(0, bisect_right(self.bounds, log_odds) - 1)]


@dataclass(frozen=True, slots=True)
class Logistic:
    """Logistic regression over standardised signals, with `steps` after it where isotonic calibration was fitted.

    >>> model = Logistic(-0.5, {"evidence": Term(0.5, 0.25, 1.2)})
    >>> estimate = model.estimate({"evidence": 1.0})
    >>> round(estimate.probability, 3), dict(estimate.contributions)
    (0.87, {'evidence': 2.4})
    """

    intercept: float
    terms: Mapping[str, Term]
    steps: Steps | None = None

    def estimate(self, signals: Mapping[str, float]) -> Estimate:
        """The probability with its parts; what the steps change is a part of its own, `calibration`."""
        parts = {name: term.contribution(signals.get(name)) for name, term in self.terms.items()}
        if self.steps is not None:
            log_odds = math.fsum([self.intercept, *parts.values()])
            parts["calibration"] = self.steps.apply(log_odds) - log_odds
        return Estimate.of(self.intercept, parts)


def sigmoid(log_odds: float) -> float:
    """The probability with these log-odds, without overflow.

    >>> sigmoid(0.0), sigmoid(-1000.0), sigmoid(1000.0)
    (0.5, 0.0, 1.0)
    """
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    grown = math.exp(log_odds)
    return grown / (1 + grown)


def no_regret(right: float, remote_right: float) -> float:
    """The probability that serving a local answer loses nothing: it is right, or the remote is wrong as well.

    A risk of being wrong is certified on the probability of being right, one of regret on this: a question that the
    remote gets wrong, too, is not worth a call. Beyond what the signals tell of each, the two are taken for
    independent. One model of both together is worse: on 250 questions it cannot learn what each of them says alone.

    >>> no_regret(0.5, 0.8), no_regret(0.5, 0.0), no_regret(1.0, 1.0)
    (0.6, 1.0, 1.0)
    """
    return 1.0 - (1.0 - right) * remote_right
