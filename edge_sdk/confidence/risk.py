"""From labelled scores to a threshold whose share of wrong local answers is bounded, with a certificate.

Thresholds are tried from strict to lax and the walk ends at the first that fails, so one confidence level serves
them all. Knows nothing of signals, models or what a score is made of: higher is surer, and that is all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, inf, isfinite, log, log1p, nan
from typing import get_args

from ..errors import CalibrationError
from .binomial import binomial_cdf
from .certificate import IN_EXPECTATION, OF_REGRET, Certificate, Kind, bound

_DECILES = 10  # a finer sequence starts where too few answers are served to show anything, and ends there
_START = 2.2  # times the least number of right answers that could pass: below it one wrong answer ends the walk
_MOST_LABELS = 100_000  # more are as good as none


@dataclass(frozen=True, slots=True)
class _Step:
    """A threshold with what it would have served of the calibration questions."""

    threshold: float
    served: int
    errors: int


@dataclass(frozen=True, slots=True)
class _Promise:
    """A target: `alpha` at confidence 1 - `delta`, the latter without meaning for kinds in expectation."""

    kind: Kind
    alpha: float
    delta: float

    def keeps(self, step: _Step, n: int) -> bool:
        """Whether the counts show the target; the same as `bound(...) <= alpha`, without inverting the tail."""
        trials = step.served if self.kind == "selective" else n
        if self.kind in IN_EXPECTATION:
            return bound(self.kind, step.errors, trials, self.delta) <= self.alpha
        return binomial_cdf(step.errors, trials, self.alpha) <= self.delta

    def walk(self, steps: Sequence[_Step], n: int) -> Iterator[_Step]:
        """The steps that keep the promise, from strict to lax, until one does not."""
        for step in steps:
            if self.kind == "selective" and step.served < _START * log(self.delta) / log1p(-self.alpha):
                continue
            if not self.keeps(step, n):
                return
            yield step


def certify(
    scores: Sequence[float],
    wrong: Sequence[bool],
    *,
    alpha: float,
    kind: Kind = "marginal",
    delta: float = 0.1,
    remote_right: Sequence[bool] | None = None,
    grid: Sequence[float] | None = None,
    labels: str = "",
    fingerprints: Mapping[str, str] | None = None,
    date: str = "",
) -> Certificate:
    """The laxest threshold for which the labels show that the risk is at most `alpha`.

    `scores` (higher is surer) and `wrong` (the local answer) have one entry a question, and the scores must come
    from something that was not fitted on these questions. What is bounded is the share

    - `marginal`: of all questions that get a wrong local answer, in expectation over calibrations (conformal risk
      control, arXiv 2208.02814); `marginal_hp`: with probability 1 - `delta` (exact binomial bound along a
      monotone risk, arXiv 2101.02703);
    - `regret`, `regret_hp`: the same for local answers that are wrong where `remote_right` says the remote is not;
    - `selective`: of wrong answers among those served locally, with probability 1 - `delta` (learn then test, arXiv
      2110.01052, fixed sequence over deciles of `grid`: scores of questions without labels, else `scores`).

    The threshold is one of the scores (of the grid's, for `selective`), so what is less sure than anything seen is
    not served; ties are served together. A target that cannot be shown gives a certificate without a threshold, and
    to choose another after seeing it is exact only on fresh labels. Raises `CalibrationError` for input that is no
    such data.

    >>> scores = [i / 100 for i in range(99)]
    >>> found = certify(scores, [score < 0.5 for score in scores], alpha=0.05)
    >>> found.threshold, found.served, found.errors, found.bound
    (0.46, 53, 4, 0.05)
    >>> certify(scores[:9], [False] * 9, alpha=0.05).labels_missing
    10
    """
    check_target(kind, alpha, delta)
    answers = _checked(scores, wrong, "wrong")
    if kind in OF_REGRET:
        if remote_right is None:
            raise CalibrationError(f"kind {kind} needs to know which questions the remote has right")
        remote = _checked(scores, remote_right, "remote_right")
        answers = [(score, bad and right) for (score, bad), (_, right) in zip(answers, remote, strict=True)]
    steps = _distinct(answers)
    if kind == "selective":
        if grid is not None and not len(grid):
            raise CalibrationError("the grid has no score to take a threshold from")
        steps = _deciles(steps, sorted(_finite(scores if grid is None else grid), reverse=True))
    n, promise = len(answers), _Promise(kind, alpha, delta)
    kept = list(promise.walk(steps, n))
    found = kept[-1] if kept else None
    return Certificate(
        kind=kind,
        alpha=alpha,
        delta=None if kind in IN_EXPECTATION else delta,
        n=n,
        served=found.served if found else 0,
        errors=found.errors if found else 0,
        bound=_bound(promise, found, n) if found else None,
        threshold=found.threshold if found else None,
        smallest_alpha=None if found else _smallest_alpha(promise, steps, n),
        labels_missing=None if found else _labels_missing(promise, steps, n),
        labels=labels,
        fingerprints=dict(fingerprints or {}),
        date=date or datetime.now(UTC).date().isoformat(),
    )


def check_target(kind: Kind, alpha: float, delta: float) -> None:
    """Raise `CalibrationError` for a target that `certify` would refuse, before labels are paid for."""
    if kind not in get_args(Kind):
        raise CalibrationError(f"{str(kind)[:40]!r} is not a risk", hint=f"use one of {', '.join(get_args(Kind))}")
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise CalibrationError(f"{name} must lie between 0 and 1, not {value}")


@dataclass(frozen=True, slots=True)
class RemoteComparison:
    """Whether the remote is better on the questions handed to it; `p_value` is that of an exact sign test.

    Of `handed_off` questions only those count on which one was right: `gained` by the remote, `lost` by it.
    """

    handed_off: int
    gained: int
    lost: int
    p_value: float
    level: float

    @property
    def better(self) -> bool:
        """Whether handing off is worth it; without this the advice is not to route."""
        return self.p_value <= self.level

    def sentence(self) -> str:
        """The finding as a line for people."""
        advice = "The remote is better" if self.better else "Do not route: the remote is not shown to be better"
        counts = f"{self.gained} gained and {self.lost} lost of {self.handed_off} handed off"
        return f"{advice} on what it would be handed ({counts}, p = {self.p_value:.2g})."


def compare_remote(
    scores: Sequence[float],
    wrong: Sequence[bool],
    remote_right: Sequence[bool],
    threshold: float | None,
    *,
    level: float = 0.05,
) -> RemoteComparison:
    """Compare local and remote answers to the questions below `threshold` (None: all are handed off).

    One-sided exact sign test on the pairs that differ (McNemar 1947): no pairs, no evidence, p = 1. Raises
    `CalibrationError` for input that is no such data.

    >>> compare_remote([0.1] * 9, [True] * 9, [True] * 8 + [False], 0.5).sentence()
    'The remote is better on what it would be handed (8 gained and 0 lost of 9 handed off, p = 0.0039).'
    """
    local, remote = _checked(scores, wrong, "wrong"), _checked(scores, remote_right, "remote_right")
    limit = inf if threshold is None else threshold
    handed = [(bad, right) for (score, bad), (_, right) in zip(local, remote, strict=True) if score < limit]
    gained, lost = handed.count((True, True)), handed.count((False, False))
    return RemoteComparison(len(handed), gained, lost, binomial_cdf(lost, gained + lost, 0.5), level)


def _distinct(answers: Sequence[tuple[float, bool]]) -> list[_Step]:
    """A step for every distinct score, the strictest first."""
    steps: list[_Step] = []
    served = errors = 0
    for score, bad in sorted(answers, reverse=True):
        served, errors = served + 1, errors + bad
        if steps and steps[-1].threshold == score:
            steps.pop()
        steps.append(_Step(score, served, errors))
    return steps


def _deciles(steps: Sequence[_Step], grid: Sequence[float]) -> list[_Step]:
    """The steps at the deciles of a falling `grid`; labels have no say in where they lie."""
    ranks = [ceil(len(grid) * part / _DECILES) - 1 for part in range(1, _DECILES + 1)] if grid else []
    found = []
    for threshold in dict.fromkeys(grid[rank] for rank in ranks):
        reached = bisect_right(steps, -threshold, key=lambda step: -step.threshold)
        found.append(
            _Step(threshold, steps[reached - 1].served, steps[reached - 1].errors)
            if reached
            else _Step(threshold, 0, 0)
        )
    return found


def _bound(promise: _Promise, step: _Step, n: int) -> float:
    return bound(promise.kind, step.errors, step.served if promise.kind == "selective" else n, promise.delta)


def _smallest_alpha(promise: _Promise, steps: Sequence[_Step], n: int) -> float | None:
    """The least target, up to the fourth decimal, for which the same walk has a first step."""
    shown = {_bound(promise, step, n) for step in steps}
    if promise.kind == "selective":  # a laxer target also lets the walk start earlier
        shown |= {1 - promise.delta ** (_START / step.served) for step in steps if step.served}
    else:
        shown = {min(shown, default=1.0)}
    targets = sorted({ceil(10_000 * least + 1e-6) / 10_000 for least in shown})
    for target in targets:
        if target < 1 and any(_Promise(promise.kind, target, promise.delta).walk(steps, n)):
            return target
    return None


def _labels_missing(promise: _Promise, steps: Sequence[_Step], n: int) -> int | None:
    """How many labels more the walk needs for a first step, were the rates to stay as they were seen."""
    rates = steps if steps else [_Step(1.0, 1, 0)]  # nothing seen: the best case
    if promise.kind != "selective":
        rates = rates[:1]

    def enough(labels: int) -> bool:
        scaled = (
            _Step(step.threshold, step.served * labels // max(n, 1), ceil(step.errors * labels / max(n, 1)))
            for step in rates
        )
        return any(promise.walk(list(scaled), labels))

    low, high = n, n + 1
    while not enough(high):
        if high > _MOST_LABELS:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - n


def _checked(scores: Sequence[float], labels: Sequence[bool], name: str) -> list[tuple[float, bool]]:
    """Scores beside labels, as plain Python values."""
    if len(scores) != len(labels):
        raise CalibrationError(f"{len(scores)} scores, but {len(labels)} labels in {name!r}")
    for row, label in enumerate(labels):
        if label not in (0, 1):
            raise CalibrationError(f"label {row} in {name!r} must be true or false, not {label!r}")
    return list(zip(_finite(scores), map(bool, labels), strict=True))


def _finite(scores: Sequence[float]) -> list[float]:
    values = []
    for row, score in enumerate(scores):
        try:
            values.append(float(score))
        except (TypeError, ValueError):
            values.append(nan)
        if not isfinite(values[-1]):
            raise CalibrationError(f"score {row} is {str(score)[:40]}, not a finite number")
    return values
