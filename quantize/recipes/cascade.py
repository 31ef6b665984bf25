"""What a cascade is worth: local models in turn, the cheapest first, and a remote for what none of them knows.

Every model has answered every question beforehand; all here is arithmetic on that. Confidences become probabilities
by cross-fitting (`fit`), so one threshold serves all tiers. Knows nothing of models or of money.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import CalibrationError, ConfigError

from ..fit import fit
from ..metrics import token_f1
from ..route_metrics import auroc, bootstrap_statistic, expected_calibration_error

RIGHT = 0.5
"""Quality from which an answer counts as right when probabilities are fitted."""
SURE = 0.9
"""Probability from which a tier's answer is served without asking the next tier."""
ENOUGH, LEAVING = 0.97, 0.30
"""Of the quality of always asking the remote; of the questions."""
_SHOWN = 41  # points of the curve that are kept
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tier:
    """The answers of one local model, one entry a question; the cheapest tier comes first.

    `quality` is from 0 to 1, `confidences` any signals, by name, that are larger for better. `texts` tell which
    tiers say the same. `milliseconds` is what an answer took.
    """

    name: str
    quality: Sequence[float]
    confidences: Mapping[str, Sequence[float]]
    texts: Sequence[str] = ()
    milliseconds: Sequence[float] = ()


@dataclass(frozen=True)
class Beliefs:
    """For each tier, how likely each of its answers is to be right.

    `at_once` [tier][question] when it has answered, knowing the tiers before it; `at_end` when all have.
    """

    at_once: tuple[tuple[float, ...], ...]
    at_end: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class CascadePoint:
    """What one threshold leads to. `served` has the share that each tier answers, the remote's share last.

    `milliseconds` are those of the tiers that were asked, without the remote's own.
    """

    threshold: float
    remote_share: float
    quality: float
    served: tuple[float, ...]
    milliseconds: float | None


def beliefs(tiers: Sequence[Tier], *, seed: int = 0) -> Beliefs:
    """Fit them, each question's by models that had not seen it, from all signals and from who says the same.

    Raises `CalibrationError` where a tier has too few right or wrong answers to learn from.
    """
    for tier in tiers:
        _check(tier, len(tiers[0].quality))
    return Beliefs(
        tuple(_belief(tiers[: at + 1], at, seed) for at in range(len(tiers))),
        tuple(_belief(tiers, at, seed) for at in range(len(tiers))),
    )


def _belief(known: Sequence[Tier], at: int, seed: int) -> tuple[float, ...]:
    """For tier `at`. What speaks for another answer may speak against this: only its own signals have a sign."""
    tier, signs = known[at], dict[str, int]()
    rows = [dict[str, float]() for _ in tier.quality]
    for other in known:
        columns = {f"{other.name} {name}": values for name, values in other.confidences.items()}
        signs |= dict.fromkeys(columns, int(other is tier))
        if other is not tier and tier.texts and other.texts:
            same = [token_f1(mine, [theirs]) if mine and theirs else 0.0
                    for mine, theirs in zip(tier.texts, other.texts, strict=True)]  # fmt: skip
            columns[f"{other.name} agrees"], signs[f"{other.name} agrees"] = same, 1
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value
    try:
        found = fit(rows, [value >= RIGHT for value in tier.quality], signs, seed=seed)
    except ValueError as error:
        raise CalibrationError(f"{tier.name} has {error}", hint="give more questions") from error
    return tuple(found.held_out.tolist())


def cascade_curve(
    tiers: Sequence[Tier], found: Beliefs, remote_quality: Sequence[float]
) -> tuple[CascadePoint, ...]:
    """Every threshold that makes a difference, from nothing leaving the device to everything.

    >>> reader, sure = Tier("reader", [1, 0], {}), ((0.9, 0.2),)
    >>> [(p.remote_share, p.quality) for p in cascade_curve([reader], Beliefs(sure, sure), [1, 1])]
    [(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]
    """
    walk = _Walk(tiers, found, remote_quality)
    return tuple(walk.point(threshold) for threshold in walk.thresholds())


def evaluate_cascade(tiers: Sequence[Tier], remote_quality: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """The JSON document: the curve, and what it says of quality near the remote's with few questions leaving.

    `enough` is the point with the fewest questions leaving that has `ENOUGH` of the quality of always asking the
    remote; `few_leaving` the best with at most `LEAVING` leaving, with the ratio to always remote and its bootstrap
    interval at that threshold. `alone` has the same best ratio for each tier without the others.
    """
    if not tiers or not len(remote_quality):
        raise ConfigError("a cascade needs a local model, a remote and questions")
    found = beliefs(tiers, seed=seed)
    curve, always = cascade_curve(tiers, found, remote_quality), float(np.mean(remote_quality))
    enough = min(
        (point for point in curve if point.quality >= ENOUGH * always),
        key=lambda point: (point.remote_share, -point.quality),
    )
    best = _best(curve)
    ratio = bootstrap_statistic(
        lambda local, far: float(np.mean(local)) / max(float(np.mean(far)), 1e-9),
        _Walk(tiers, found, remote_quality).quality(best.threshold).tolist(),
        list(remote_quality),
    )
    return {
        "n": len(remote_quality),
        "tiers": [_tier_report(tier, scores) for tier, scores in zip(tiers, found.at_once, strict=True)],
        "always_remote": always,
        "enough": asdict(enough) | {"ratio": enough.quality / max(always, 1e-9)},
        "few_leaving": asdict(best) | {"ratio": ratio.value, "interval": [ratio.low, ratio.high]},
        "passes": best.quality >= ENOUGH * always,
        "alone": {
            tier.name: _best(cascade_curve([tier], Beliefs((scores,), (scores,)), remote_quality)).quality
            / max(always, 1e-9)
            for tier, scores in zip(tiers, found.at_once, strict=True)
        },
        "curve": [asdict(point) for point in _thinned(curve)],
    }


class _Walk:
    """Every question's way through the tiers, at any threshold."""

    def __init__(self, tiers: Sequence[Tier], found: Beliefs, remote_quality: Sequence[float]) -> None:
        self._at_once, self._at_end = np.array(found.at_once, np.float64), np.array(found.at_end, np.float64)
        self._qualities = np.array([*(tier.quality for tier in tiers), remote_quality], np.float64)
        self._questions = np.arange(self._qualities.shape[1])
        self._times: _Floats | None = None
        if all(len(tier.milliseconds) for tier in tiers):
            self._times = np.cumsum(np.array([tier.milliseconds for tier in tiers], np.float64), axis=0)

    def thresholds(self) -> list[float]:
        steps = np.unique(np.concatenate([self._at_once.ravel(), self._at_end.ravel()]))
        every = [0.0, *np.nextafter(steps, np.inf).tolist()]
        served = [self._ways(threshold)[0].tobytes() for threshold in every]
        return [each for at, each in enumerate(every) if not at or served[at] != served[at - 1]]

    def quality(self, threshold: float) -> _Floats:
        """Of the answer that each question gets."""
        who, _ = self._ways(threshold)
        found: _Floats = self._qualities[who, self._questions]
        return found

    def point(self, threshold: float) -> CascadePoint:
        who, asked = self._ways(threshold)
        shares = np.bincount(who, minlength=len(self._qualities)) / len(who)
        spent = None if self._times is None else float(self._times[asked - 1, self._questions].mean())
        quality = float(self._qualities[who, self._questions].mean())
        return CascadePoint(threshold, float(shares[-1]), quality, tuple(shares.tolist()), spent)

    def _ways(self, threshold: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For each question who answers (the number of tiers: the remote), and how many tiers were asked."""
        last = len(self._at_once) - 1
        at_once = self._at_once[:last] >= max(threshold, SURE)  # the last tier has nobody behind it to spare
        early = at_once.any(axis=0)
        end = np.where(self._at_end.max(axis=0) >= threshold, self._at_end.argmax(axis=0), last + 1)
        first = at_once.argmax(axis=0) if last else np.zeros(len(self._questions), np.intp)
        return np.where(early, first, end), np.where(early, first + 1, last + 1)


def _best(curve: Sequence[CascadePoint]) -> CascadePoint:
    return max(
        (point for point in curve if point.remote_share <= LEAVING),
        key=lambda point: (point.quality, -point.remote_share),
    )


def _tier_report(tier: Tier, scores: Sequence[float]) -> dict[str, Any]:
    right = [float(value >= RIGHT) for value in tier.quality]
    return {
        "name": tier.name,
        "quality": float(np.mean(tier.quality)),
        "auroc": auroc(scores, right),
        "ece": expected_calibration_error(scores, right),
        "milliseconds": float(np.mean(tier.milliseconds)) if len(tier.milliseconds) else None,
    }


def _thinned(curve: Sequence[CascadePoint]) -> list[CascadePoint]:
    if len(curve) <= _SHOWN:
        return list(curve)
    return [curve[round(at * (len(curve) - 1) / (_SHOWN - 1))] for at in range(_SHOWN)]


def _check(tier: Tier, questions: int) -> None:
    columns = {"quality": tier.quality, **tier.confidences}
    columns |= {name: getattr(tier, name) for name in ("texts", "milliseconds") if len(getattr(tier, name))}
    for name, values in columns.items():
        if len(values) != questions:
            raise ConfigError(f"the {name} of {tier.name} has {len(values)} entries for {questions} questions")
