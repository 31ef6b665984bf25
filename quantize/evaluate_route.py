"""`edge eval route`: what the probability is worth, which promises hold on real questions, and what routing gains.

Every question is answered locally once, with all signals, and by the remote where there is one. All else is
arithmetic over random halves of the questions: a calibration is made on one half and judged on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from threading import Event as Flag
from typing import Any

import numpy as np

from edge_sdk.confidence.binomial import binomial_cdf
from edge_sdk.confidence.certificate import Kind
from edge_sdk.confidence.risk import certify
from edge_sdk.confidence.setup import Setup
from edge_sdk.confidence.signals import SIGNALS
from edge_sdk.config import Settings
from edge_sdk.edge import Edge
from edge_sdk.errors import CalibrationError, ConfigError
from edge_sdk.route import Policy

from .asking import Asked, ask_all, read_all
from .calibrate import (
    LABELLERS,
    LEAST,
    THRESHOLD_SHARE,
    Labeller,
    fitted,
    probabilities,
    serving_scores,
)
from .collection import Update, fill_store, read_answerable, store_path
from .route_metrics import (
    auroc,
    bootstrap_statistic,
    brier,
    calibration_noise,
    cost_quality,
    expected_calibration_error,
    gain_captured,
)

ALPHAS = (0.05, 0.1, 0.2)
KINDS: tuple[Kind, ...] = ("marginal", "marginal_hp", "selective")
DELTA = 0.1
_HALVES = 20  # for AUROC and calibration error
_CURVE = 20  # pieces of the cost-quality curve
_LEAST_QUESTIONS = ceil(2 * LEAST / (1 - THRESHOLD_SHARE))  # so that a part of a half can be fitted on
_LEAST_OF_EACH = 20  # with fewer, such a part would often lack one kind
_SETUP = Setup({})  # nothing here is kept


@dataclass(frozen=True, slots=True)
class Collected:
    """The local model's name and its answers, and those of a reader, where there is one, to the same questions."""

    model: str
    asked: list[Asked]
    read: list[Asked]


def collect(
    data: Path,
    settings: Settings,
    *,
    out: Path | None = None,
    limit: int | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> Collected:
    """The local answers to the questions of a folder, from a store of its passages alone.

    Where the settings name a remote and a privacy mode that allows it, the remote's answers too.
    """
    file, documents, questions = read_answerable(data)
    own = replace(settings, store=store_path(settings, file, Path(settings.encoder).name), prefix_cache=0)
    with Edge.open(settings=own, policy=Policy(when_unsure="local")) as edge:
        edge.calibrations = None  # one that exists must not decide what is measured
        edge.learned = None  # every question is to be asked
        if edge.handoff is not None:
            edge.handoff.queues = False
        fill_store(edge.store, edge.encoder, documents, progress, cancel)
        asked = ask_all(
            edge, questions[:limit], out=out, style="brief", max_tokens=48, progress=progress, cancel=cancel
        )
        read = read_all(edge, questions[:limit], progress=progress, cancel=cancel) if edge.extractor else []
        return Collected(edge.engine.name, asked, read)


def evaluate_route(
    asked: Sequence[Asked],
    *,
    read: Sequence[Asked] = (),
    labeller: Labeller = "contains",
    fit_on: Sequence[Asked] = (),
    perfect_remote: bool = False,
    resplits: int = 200,
    seed: int = 0,
    progress: Update = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Every figure of the report, for one kind of label.

    `read` are a reader's answers to the same questions. `fit_on` are answers to another set of questions, for a
    calibration that is judged on all of `asked`. Without remote answers there is no curve, unless `perfect_remote`
    takes the accepted answers in their place.
    """
    judge, labels = LABELLERS[labeller]
    right = [judge(each.text, each.answers) for each in asked]
    if len(asked) < _LEAST_QUESTIONS or min(sum(right), len(right) - sum(right)) < _LEAST_OF_EACH:
        raise ConfigError(
            f"{sum(right)} of {len(asked)} answers are right, which is too few to tell",
            hint=f"give {_LEAST_QUESTIONS} questions or more, with {_LEAST_OF_EACH} answers of each kind",
        )
    asked, remote = list(asked), None
    if perfect_remote:  # what a remote said that was asked has no part in it
        asked = [replace(each, remote=None) for each in asked]
    elif all(each.remote is not None for each in asked):
        remote = [judge(each.remote or "", each.answers) for each in asked]
    halves = list(_halves(asked, right, labeller, seed, progress))
    report: dict[str, Any] = {
        "n": len(asked),
        "labels": labels,
        "always_local": fmean(right),
        "auroc": {"probability": fmean([auroc(half.probabilities, half.right) for half in halves])}
        | _single_signals(asked, right),
        "auroc_spread": stdev([auroc(half.probabilities, half.right) for half in halves]),
        "auroc_gain": fmean([_gain_over_logprob(half) for half in halves]),
        "ece": fmean([expected_calibration_error(half.probabilities, half.right) for half in halves]),
        "ece_if_exact": fmean([calibration_noise(half.probabilities, resamples=100).value for half in halves]),
        "brier": fmean([brier(half.probabilities, half.right) for half in halves]),
        "one_half": _interval_report(halves[0].probabilities, halves[0].right),
        "guarantee": _guarantees(asked, right, remote, labeller, resplits, seed, progress),
    }
    if fit_on:
        calibration = fitted(fit_on, _SETUP, labeller)
        moved = probabilities(calibration, asked)
        report["transfer"] = {"n": len(fit_on)} | _interval_report(moved, right)
    if perfect_remote or remote is not None:
        known = remote or [True] * len(asked)
        report["remote"] = "the accepted answers themselves" if perfect_remote else "as asked"
        own = _Scores.of(asked, labeller, seed)
        report |= _routing(own.regret, right, known)
        report["gain_by_probability"] = _gain(own.probability, right, known)
        if read:
            of_reader = [replace(each, remote=other.remote) for each, other in zip(read, asked, strict=True)]
            read_right = [judge(each.text, each.answers) for each in read]
            tiers = [(own, right), (_Scores.of(of_reader, labeller, seed), read_right)]
            report["with_reader"] = _with_reader(tiers, known)
    return report


# --- probabilities on questions that the calibration has not seen -----------------------------------


@dataclass(frozen=True, slots=True)
class _Half:
    """Questions with the probabilities of a calibration made on others."""

    asked: list[Asked]
    probabilities: list[float]
    right: list[bool]


def _halves(
    asked: Sequence[Asked], right: Sequence[bool], labeller: Labeller, seed: int, progress: Update
) -> Iterator[_Half]:
    random = np.random.default_rng(seed)
    for number in range(_HALVES):
        progress(number, _HALVES, "halves")
        order = random.permutation(len(asked)).tolist()
        learned, tested = order[: len(order) // 2], order[len(order) // 2 :]
        try:
            calibration = fitted([asked[at] for at in learned], _SETUP, labeller)
        except CalibrationError:  # too few answers of a kind are in this half
            continue
        test = [asked[at] for at in tested]
        yield _Half(test, probabilities(calibration, test), [right[at] for at in tested])


def _cross_fitted(asked: Sequence[Asked], labeller: Labeller, seed: int, kind: Kind) -> list[float]:
    """For each question, the mean of the scores from calibrations on the halves that it is not in."""
    sums, counts = np.zeros(len(asked)), np.zeros(len(asked))
    random = np.random.default_rng(seed)
    for _ in range(_HALVES // 2):
        order = random.permutation(len(asked)).tolist()
        for learned, tested in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            try:
                calibration = fitted([asked[at] for at in learned], _SETUP, labeller)
            except CalibrationError:
                continue
            sums[tested] += probabilities(calibration, [asked[at] for at in tested], kind)
            counts[tested] += 1
    means: list[float] = (sums / np.maximum(counts, 1)).tolist()
    return means


@dataclass(frozen=True, slots=True)
class _Scores:
    """Of each question, by calibrations that have not seen it."""

    probability: list[float]
    regret: list[float]

    @classmethod
    def of(cls, asked: Sequence[Asked], labeller: Labeller, seed: int) -> _Scores:
        return cls(*(_cross_fitted(asked, labeller, seed, kind) for kind in ("marginal", "regret")))


def _with_reader(tiers: Sequence[tuple[_Scores, list[bool]]], remote: Sequence[bool]) -> dict[str, Any]:
    """What routing gains where the local answer is the model's or the reader's, whichever is likelier right.

    `Edge` looks at the reader's first and takes it where it is sure enough, which saves asking the model.
    """
    chosen = np.argmax([scores.probability for scores, _ in tiers], axis=0).tolist()
    right = [tiers[tier][1][at] for at, tier in enumerate(chosen)]
    likely = [tiers[tier][0].probability[at] for at, tier in enumerate(chosen)]
    by_regret = [tiers[tier][0].regret[at] for at, tier in enumerate(chosen)]
    return {
        "share_of_reader": fmean(chosen),
        "always_local": fmean(right),
        **_interval_report(likely, right),
        **_routing(by_regret, right, remote),
        "gain_by_probability": _gain(likely, right, remote),
    }


def _single_signals(asked: Sequence[Asked], right: Sequence[bool]) -> dict[str, float]:
    """AUROC of each signal alone, over all questions; what speaks against an answer counts with its sign turned."""
    found = {}
    for signal in SIGNALS:
        values = [each.signals.get(signal.name) for each in asked]
        known = [
            (value * (signal.sign or 1), label)
            for value, label in zip(values, right, strict=True)
            if value is not None
        ]
        if len(known) == len(asked):
            found[signal.name] = auroc([value for value, _ in known], [label for _, label in known])
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _gain_over_logprob(half: _Half) -> float:
    mean_logprob = [each.signals.get("mean_logprob", 0.0) for each in half.asked]
    return auroc(half.probabilities, half.right) - auroc(mean_logprob, half.right)


def _interval_report(scores: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    area = bootstrap_statistic(auroc, scores, right, resamples=500)
    return {
        "auroc": area.value,
        "auroc_interval": [area.low, area.high],
        "ece": expected_calibration_error(scores, right),
        "ece_if_exact": calibration_noise(scores, resamples=200).value,
    }


# --- promises ---------------------------------------------------------------------------------------


def _guarantees(
    asked: Sequence[Asked],
    right: Sequence[bool],
    remote: Sequence[bool] | None,
    labeller: Labeller,
    resplits: int,
    seed: int,
    progress: Update,
) -> list[dict[str, Any]]:
    """Risks on the second half of the questions, with thresholds certified on the first, over random halves.

    That of regret only where it is known what the `remote` has right.

    The naive threshold is the laxest at which the share of errors among the questions that the model was fitted on
    looks good enough: what one would pick without any theory.
    """
    kinds = KINDS if remote is None else (*KINDS, "regret")
    far = remote or [True] * len(asked)
    risks: dict[tuple[Kind, float], list[_Outcome]] = {(kind, alpha): [] for kind in kinds for alpha in ALPHAS}
    random = np.random.default_rng(seed + 1)
    for number in range(resplits):
        progress(number, resplits, "promises")
        order = random.permutation(len(asked)).tolist()
        half = len(order) // 2
        cut = round((1 - THRESHOLD_SHARE) * half)
        rows = (order[:cut], order[cut:half], order[half:])
        try:
            calibration = fitted([asked[at] for at in rows[0]], _SETUP, labeller)
        except CalibrationError:  # too few answers of a kind are in this part; `resplits` tells how many were used
            continue
        of_kind = {
            kind: (
                [serving_scores(calibration, [asked[at] for at in part], kind) for part in rows],
                [[not right[at] and (kind != "regret" or far[at]) for at in part] for part in rows],
            )
            for kind in kinds
        }
        for (kind, alpha), outcomes in risks.items():
            scores, wrong = of_kind[kind]
            reached = [far[at] for at in rows[1]]
            promised = certify(
                scores[1], wrong[1], alpha=alpha, kind=kind, delta=DELTA, remote_right=reached
            ).threshold
            naive = _naive_threshold(scores[0], wrong[0], alpha, kind)
            outcomes.append(
                _Outcome(_risk(scores[2], wrong[2], promised, kind), _risk(scores[2], wrong[2], naive, kind))
            )
    return [_promise(kind, alpha, rows, len(asked) - len(asked) // 2) for (kind, alpha), rows in risks.items()]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a certified and a naive threshold led to: the risk, and the share that was served."""

    certified: tuple[float, float]
    naive: tuple[float, float]


def _promise(kind: Kind, alpha: float, rows: Sequence[_Outcome], tested: int) -> dict[str, Any]:
    found, naive = [row.certified for row in rows], [row.naive for row in rows]

    def clearly(outcomes: Sequence[tuple[float, float]]) -> float:
        """Of violations, the share that the finite test half does not explain at one in twenty."""
        trials = [max(1, round(share * tested)) if kind == "selective" else tested for _, share in outcomes]
        return fmean(_clearly_above(risk, n, alpha) for (risk, _), n in zip(outcomes, trials, strict=True))

    return {
        "kind": kind,
        "alpha": alpha,
        "delta": None if kind == "marginal" else DELTA,
        "resplits": len(rows),
        "mean_risk": fmean(risk for risk, _ in found),
        "naive_mean_risk": fmean(risk for risk, _ in naive),
        "violations": fmean(risk > alpha for risk, _ in found),
        "naive_violations": fmean(risk > alpha for risk, _ in naive),
        "clear_violations": clearly(found),
        "naive_clear_violations": clearly(naive),
        "local_share": fmean(share for _, share in found),
    }


def _risk(
    scores: Sequence[float], wrong: Sequence[bool], threshold: float | None, kind: Kind
) -> tuple[float, float]:
    """The risk of serving from a threshold on, and the share that is served."""
    served = [bad for score, bad in zip(scores, wrong, strict=True) if threshold is not None and score >= threshold]
    total = len(served) if kind == "selective" else len(scores)
    return (sum(served) / total if total else 0.0), len(served) / len(scores)


def _naive_threshold(scores: Sequence[float], wrong: Sequence[bool], alpha: float, kind: Kind) -> float | None:
    passing = [score for score in sorted(set(scores)) if _risk(scores, wrong, score, kind)[0] <= alpha]
    return min(passing, default=None)


def _clearly_above(risk: float, trials: int, alpha: float) -> bool:
    errors = round(risk * trials)
    return errors > 0 and binomial_cdf(errors - 1, trials, alpha) >= 0.95


# --- what routing gains -----------------------------------------------------------------------------


def _gain(scores: Sequence[float], right: Sequence[bool], remote: Sequence[bool]) -> dict[str, Any]:
    local, far = [float(each) for each in right], [float(each) for each in remote]
    gain = bootstrap_statistic(gain_captured, scores, local, far, resamples=500)
    return {"gain_captured": gain.value, "gain_captured_interval": [gain.low, gain.high]}


def _routing(scores: Sequence[float], right: Sequence[bool], remote: Sequence[bool]) -> dict[str, Any]:
    local, far = [float(each) for each in right], [float(each) for each in remote]
    points = cost_quality(scores, local, far)
    wanted = [points[round(at * (len(points) - 1) / _CURVE)] for at in range(_CURVE + 1)]
    return {
        "always_remote": fmean(far),
        **_gain(scores, right, remote),
        # A remote that is wrong too is wasted, and what is known of the local answer does not tell.
        "gain_if_local_were_known": gain_captured(local, local, far),
        "curve": [{"remote_share": each.remote_share, "quality": each.quality} for each in wanted],
        "oracle": [
            {"remote_share": each.remote_share, "quality": each.quality}
            for each in cost_quality([one - other for one, other in zip(local, far, strict=True)], local, far)
        ],
        "only_local_right": fmean(one > other for one, other in zip(local, far, strict=True)),
        "only_remote_right": fmean(one < other for one, other in zip(local, far, strict=True)),
    }
