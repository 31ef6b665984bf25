"""`edge calibrate`: from questions that were asked to probabilities, and to a threshold with a certificate.

Models are fitted on one part of the questions and the threshold is counted on the other; which part a question is
in follows from a hash of its text. Knows nothing of how questions are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_sdk.confidence.calibration import Calibration, Label, TaskScale
from edge_sdk.confidence.certificate import OF_REGRET, Certificate, Kind
from edge_sdk.confidence.logistic import Logistic, no_regret
from edge_sdk.confidence.neighbours import Neighbours, gather
from edge_sdk.confidence.risk import certify
from edge_sdk.confidence.setup import Setup
from edge_sdk.confidence.signals import SIGNALS, STAGES
from edge_sdk.errors import CalibrationError

from .asking import Asked
from .fit import fit, platt
from .metrics import contains, exact_match, token_f1

Labeller = Literal["contains", "exact", "f1"]
LABELLERS: dict[Labeller, tuple[Callable[[str, Sequence[str]], bool], str]] = {
    "contains": (lambda text, answers: contains(text, answers) > 0, "an accepted answer contained"),
    "exact": (lambda text, answers: exact_match(text, answers) > 0, "an accepted answer, exactly"),
    "f1": (lambda text, answers: token_f1(text, answers) >= 0.5, "token-F1 of at least 0.5"),
}
THRESHOLD_SHARE = 0.4
"""Of the questions, for the threshold. Fitting 20 weights wants more labels than counting errors does."""
TASK_PRIOR = 10.0
"""How strongly a task's scale is drawn towards that of all tasks."""
LEAST = 40
"""Questions to fit on; on fewer, nothing can be told from chance."""
_HOPELESS, _SEEN = 0.1, 20  # share of right answers, among at least so many, at which an answer is given up early
_SIGNS = {signal.name: signal.sign for signal in SIGNALS}


@dataclass(frozen=True, slots=True)
class Target:
    """The risk that is to be certified."""

    kind: Kind = "marginal"
    alpha: float = 0.1
    delta: float = 0.1


def check_enough(questions: Sequence[object]) -> None:
    """Raise `CalibrationError` for too few questions, before hours are spent on answering them."""
    fitting = len(questions) - round(THRESHOLD_SHARE * len(questions))
    if fitting < LEAST:
        raise CalibrationError(
            f"{len(questions)} questions are too few: {fitting} would be left to fit on",
            hint=f"give {ceil(LEAST / (1 - THRESHOLD_SHARE))} or more",
        )


def halves(target: Target) -> Target:
    """What reader and model may each spend of a risk, so that together they keep the promise.

    A question that the reader answers the model does not, so the wrong answers of both are at most the sum of what
    each would give by itself. Raises `CalibrationError` for `selective`, a share of what is served, which does not
    add up.
    """
    if target.kind == "selective":
        raise CalibrationError(
            "a reader cannot share the risk `selective`", hint="use --risk marginal_hp, or --reader none"
        )
    return replace(target, alpha=target.alpha / 2, delta=target.delta / 2)


def calibrate(
    asked: Sequence[Asked], setup: Setup, *, labeller: Labeller = "contains", target: Target | None = None
) -> Calibration:
    """Fit a model for each stage, scale it for each task, and certify a threshold on questions it never saw.

    Raises `CalibrationError` when there are too few questions, or nearly all answers are right or wrong.
    """
    fitting, holding = _parts(asked)
    calibration = replace(fitted(fitting, setup, labeller), n=len(asked))
    return certified(calibration, holding, labeller, target or Target())


def fitted(asked: Sequence[Asked], setup: Setup, labeller: Labeller) -> Calibration:
    """A calibration without a certificate, fitted on all these questions. Raises `CalibrationError`."""
    judge, labels = LABELLERS[labeller]
    if len(asked) < LEAST:
        raise CalibrationError(f"{len(asked)} questions are too few to fit on", hint=f"give {LEAST} or more")
    right = [judge(each.text, each.answers) for each in asked]
    vectors = np.array([each.vector for each in asked], np.float32)
    neighbours = gather([each.question for each in asked], right, vectors)
    known = [{**each.signals, **_near(neighbours, each, row)} for row, each in enumerate(asked)]
    try:
        fits = {stage: fit(known, right, {name: _SIGNS[name] for name in STAGES[stage]}) for stage in STAGES}
    except ValueError as error:
        raise CalibrationError(f"nothing can be fitted: {error}", hint="give more questions") from error
    return Calibration(
        setup=setup,
        created=datetime.now(UTC).date().isoformat(),
        labels=labels,
        n=len(asked),
        models={stage: each.model for stage, each in fits.items()},
        remote=_remote(asked, known, judge),
        tasks=_task_scales([each.task for each in asked], fits["after"].held_out, right),
        hand_off_before=_hopeless_below(fits["before"].held_out, right),
        hand_off_window=_hopeless_below([each.get("window_logprob", 0.0) for each in known], right),
        certificate=None,
        held_out=(),
        neighbours=neighbours,
    )


def certified(
    calibration: Calibration, held_out: Sequence[Asked], labeller: Labeller, target: Target
) -> Calibration:
    """The calibration with its threshold, counted on questions that had no part in fitting it."""
    judge, labels = LABELLERS[labeller]
    if target.kind in OF_REGRET:  # a hopeless answer may be no worse than the remote's
        calibration = replace(calibration, hand_off_before=None, hand_off_window=None)
    rows = tuple(
        Label(
            probability,
            judge(each.text, each.answers),
            None if each.remote is None else judge(each.remote, each.answers),
        )
        for each, probability in zip(held_out, serving_scores(calibration, held_out), strict=True)
    )
    remote = [row.remote_right for row in rows]
    if target.kind in OF_REGRET and None in remote:
        raise CalibrationError("regret needs the remote's answers", hint="give --remote and --remote-model")
    certificate: Certificate = certify(
        serving_scores(calibration, held_out, target.kind),
        [not row.right for row in rows],
        alpha=target.alpha,
        kind=target.kind,
        delta=target.delta,
        remote_right=None if None in remote else [bool(each) for each in remote],
        labels=labels,
        fingerprints=dict(calibration.setup.parts),
    )
    return replace(calibration, certificate=certificate, held_out=rows)


def probabilities(calibration: Calibration, asked: Iterable[Asked], kind: Kind = "marginal") -> list[float]:
    """What a certificate of this kind has its threshold on: P(the answer is right), or P(it loses nothing)."""
    found = []
    for each in asked:
        signals = {**each.signals, **_near(calibration.neighbours, each)}
        right = calibration.estimate("after", signals, each.task).probability
        remote = calibration.remote_estimate(kind, signals)
        found.append(right if remote is None else no_regret(right, remote.probability))
    return found


def serving_scores(calibration: Calibration, asked: Iterable[Asked], kind: Kind = "marginal") -> list[float]:
    """The `probabilities`, 0 for what is never served: a threshold counts what really is.

    That is an answer which would be given up early, a refusal, and a question without any passage.
    """
    found, asked = [], list(asked)
    for each, probability in zip(asked, probabilities(calibration, asked, kind), strict=True):
        signals = {**each.signals, **_near(calibration.neighbours, each)}
        early = calibration.estimate("before", signals, each.task).probability < (calibration.hand_off_before or 0)
        window, limit = signals.get("window_logprob"), calibration.hand_off_window
        early = early or (window is not None and limit is not None and window < limit)
        never = early or each.route != "local" or bool(signals.get("refusal"))
        found.append(0.0 if never else probability)
    return found


def _remote(
    asked: Sequence[Asked], known: Sequence[Mapping[str, float]], judge: Callable[[str, Sequence[str]], bool]
) -> Logistic | None:
    """A model of when the remote is right; None where its answers are not known, or too much alike."""
    if any(each.remote is None for each in asked):
        return None
    right = [judge(each.remote or "", each.answers) for each in asked]
    try:  # which way a signal speaks depends on the remote
        return fit(known, right, dict.fromkeys(STAGES["before"], 0)).model
    except ValueError:
        return None


def _near(neighbours: Neighbours, asked: Asked, without: int | None = None) -> Mapping[str, float]:
    return neighbours.signals(np.array(asked.vector, np.float32), without=without)


def _parts(asked: Sequence[Asked]) -> tuple[list[Asked], list[Asked]]:
    """Questions to fit on and questions to count the threshold on, by a hash of their text."""
    order = sorted(asked, key=lambda each: hashlib.sha256(each.question.encode()).digest())
    held = round(THRESHOLD_SHARE * len(order))
    return order[held:], order[:held]


def _task_scales(
    tasks: Sequence[str], probabilities: NDArray[np.float64], right: Sequence[bool]
) -> dict[str, TaskScale]:
    """For each named task, how its log-odds differ from those of all, drawn towards no difference at all."""
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    log_odds, labels = np.log(clipped / (1 - clipped)), np.asarray(right, np.float64)
    scales = {}
    for task in sorted(set(tasks) - {""}):
        rows = np.array([each == task for each in tasks])
        slope, shift = platt(log_odds[rows], labels[rows], prior=TASK_PRIOR)
        scales[task] = TaskScale(slope, shift, int(rows.sum()))
    return scales


def _hopeless_below(values: Iterable[float], right: Sequence[bool]) -> float | None:
    """The largest value below which at most a tenth of at least twenty answers were right; None without one."""
    pairs = sorted(zip(values, right, strict=True))
    best, good = None, 0
    for seen, (value, is_right) in enumerate(pairs):
        if seen >= _SEEN and good <= _HOPELESS * seen and value > pairs[seen - 1][0]:
            best = value
        good += is_right
    return best
