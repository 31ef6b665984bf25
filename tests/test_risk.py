"""Thresholds keep their promise where the true risk is known, and a naive choice does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.confidence.binomial import binomial_cdf
from edge_sdk.confidence.certificate import Certificate, Kind
from edge_sdk.confidence.risk import certify, compare_remote
from edge_sdk.errors import CalibrationError

KINDS: tuple[Kind, ...] = get_args(Kind)
MONOTONE: tuple[Kind, ...] = ("marginal", "marginal_hp", "regret", "regret_hp")
ALPHAS = (0.05, 0.1, 0.2)

# Few distinct scores, so that ties are the rule.
few_scores = st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
questions = st.lists(st.tuples(few_scores, st.booleans(), st.booleans()), max_size=80)


def certified(rows: Sequence[tuple[float, bool, bool]], kind: Kind, alpha: float) -> Certificate:
    scores, wrong, right = ([row[at] for row in rows] for at in range(3))
    return certify(scores, wrong, remote_right=right, kind=kind, alpha=alpha, date="2025-01-31")


def losses(rows: Sequence[tuple[float, bool, bool]], kind: Kind) -> list[tuple[float, bool]]:
    return [(score, wrong and (right or not kind.startswith("regret"))) for score, wrong, right in rows]


def shown(kind: Kind, errors: int, trials: int, alpha: float) -> bool:
    """Whether the counts show the target, written out a second time."""
    if kind in ("marginal", "regret"):
        return (errors + 1) / (trials + 1) <= alpha
    return binomial_cdf(errors, trials, alpha) <= 0.1


@given(questions, st.sampled_from(KINDS), st.floats(0.02, 0.9))
def test_counts_and_bound_are_those_of_the_threshold(
    rows: list[tuple[float, bool, bool]], kind: Kind, alpha: float
) -> None:
    found = certified(rows, kind, alpha)
    assert found.n == len(rows) and Certificate.from_json(found.to_json()) == found
    if found.threshold is None:
        assert not any(found.serves(score) for score, *_ in rows)
        return
    served = [loss for score, loss in losses(rows, kind) if score >= found.threshold]
    assert found.threshold in {score for score, *_ in rows}
    assert (found.served, found.errors) == (len(served), sum(served))
    assert found.bound is not None and found.bound <= alpha + 1e-12
    assert shown(kind, found.errors, found.served if kind == "selective" else found.n, alpha)


@given(questions, st.sampled_from(MONOTONE), st.floats(0.02, 0.9))
def test_no_laxer_threshold_would_do(rows: list[tuple[float, bool, bool]], kind: Kind, alpha: float) -> None:
    found = certified(rows, kind, alpha)
    limit = np.inf if found.threshold is None else found.threshold
    for laxer in {score for score, *_ in rows if score < limit}:
        errors = sum(loss for score, loss in losses(rows, kind) if score >= laxer)
        assert not shown(kind, errors, len(rows), alpha)


@given(questions, st.sampled_from(MONOTONE), st.floats(0.02, 0.9), st.floats(0.02, 0.9))
def test_a_stricter_target_never_serves_more(
    rows: list[tuple[float, bool, bool]], kind: Kind, one: float, other: float
) -> None:
    strict, lax = (certified(rows, kind, alpha) for alpha in sorted([one, other]))
    assert strict.served <= lax.served


@given(questions, st.floats(0.02, 0.9))
def test_confidence_and_regret_order_the_shares(rows: list[tuple[float, bool, bool]], alpha: float) -> None:
    served = {kind: certified(rows, kind, alpha).served for kind in MONOTONE}
    assert served["marginal"] <= served["regret"] and served["marginal_hp"] <= served["regret_hp"]


@given(questions, st.sampled_from(KINDS), st.floats(0.02, 0.9), st.randoms())
def test_the_order_of_the_questions_has_no_say(
    rows: list[tuple[float, bool, bool]], kind: Kind, alpha: float, random: np.random.Generator
) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[arg-type]
    assert certified(mixed, kind, alpha) == certified(rows, kind, alpha)


@given(questions, st.sampled_from(KINDS), st.floats(0.02, 0.9))
def test_only_the_order_of_the_scores_matters(
    rows: list[tuple[float, bool, bool]], kind: Kind, alpha: float
) -> None:
    logits = [(10 * score - 3, wrong, right) for score, wrong, right in rows]
    there, here = certified(rows, kind, alpha), certified(logits, kind, alpha)
    assert (there.served, there.errors, there.bound) == (here.served, here.errors, here.bound)


@given(questions, st.sampled_from(KINDS), st.floats(0.005, 0.5))
def test_what_could_be_certified_instead_can_be(
    rows: list[tuple[float, bool, bool]], kind: Kind, alpha: float
) -> None:
    found = certified(rows, kind, alpha)
    if found.smallest_alpha is not None:
        assert certified(rows, kind, found.smallest_alpha).threshold is not None
        if kind != "selective":  # there a stricter target starts the walk later, so it may pass where a laxer fails
            assert found.smallest_alpha > alpha
            assert certified(rows, kind, max(found.smallest_alpha - 2e-4, 1e-4)).threshold is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("rows", [[], [(0.5, False, True)], [(0.9, False, True), (0.8, False, True)]])
def test_the_missing_labels_are_enough(kind: Kind, alpha: float, rows: list[tuple[float, bool, bool]]) -> None:
    missing = certified(rows, kind, alpha).labels_missing
    assert missing is not None and missing > 0
    more = [*rows, *[(0.9, False, True)] * missing]
    assert certified(more, kind, alpha).threshold is not None
    assert certified(more[:-1], kind, alpha).threshold is None


def test_rates_above_the_target_need_no_number_of_labels() -> None:
    found = certify([0.5] * 40, [True, False] * 20, alpha=0.1)
    assert (found.threshold, found.labels_missing, found.bound) == (None, None, None)
    assert found.smallest_alpha == pytest.approx(21 / 41, abs=1e-4)
    assert certify([0.5] * 4, [True] * 4, alpha=0.1, kind="selective").smallest_alpha is None


def test_ties_are_served_together_or_not_at_all() -> None:
    scores, wrong = [0.9] * 30 + [0.5] * 30, [False] * 30 + [True] * 4 + [False] * 26
    strict = certify(scores, wrong, alpha=0.06)
    assert (strict.threshold, strict.served, strict.errors) == (0.9, 30, 0)
    assert certify(scores, wrong, alpha=0.09).served == 60


def test_regret_forgives_what_the_remote_gets_wrong_too() -> None:
    scores, wrong = [i / 50 for i in range(50)], [i < 25 for i in range(50)]
    hopeless = certify(scores, wrong, remote_right=[False] * 50, alpha=0.05, kind="regret")
    assert hopeless.local_share == 1.0
    assert certify(scores, wrong, alpha=0.05).local_share < 0.6


def test_the_selective_walk_starts_where_there_is_enough_to_show() -> None:
    """At the first decile one wrong answer of ten would end it; the least count skips that decile."""
    scores = [i / 100 for i in range(100)]
    wrong = [i in (3, 9, 95) for i in range(100)]
    found = certify(scores, wrong, alpha=0.2, kind="selective")
    assert found.served == 100 and found.errors == 3
    assert certify(scores, wrong, alpha=0.02, kind="selective").threshold is None


def test_the_selective_grid_may_come_from_other_questions() -> None:
    scores, wrong = [i / 200 for i in range(200)], [i < 60 for i in range(200)]
    found = certify(scores, wrong, alpha=0.2, kind="selective", grid=[i / 10 + 0.001 for i in range(10)])
    assert (found.threshold, found.served, found.errors) == (0.201, 159, 19)
    beyond = certify(scores, wrong, alpha=0.2, kind="selective", grid=[5.0, 7.0])
    assert beyond.threshold is None and beyond.served == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: certify([0.1, float("nan")], [True, False], alpha=0.1), "score 1 is nan"),
        (lambda: certify([float("inf")], [True], alpha=0.1), "score 0 is inf"),
        (lambda: certify([None], [True], alpha=0.1), "score 0 is None"),  # type: ignore[list-item]
        (lambda: certify([0.1], [True, False], alpha=0.1), "1 scores, but 2 labels in 'wrong'"),
        (lambda: certify([0.1], [0.3], alpha=0.1), "label 0 in 'wrong' must be true or false, not 0.3"),  # type: ignore[list-item]
        (lambda: certify([0.1], [True], alpha=0), "alpha must lie between 0 and 1, not 0"),
        (lambda: certify([0.1], [True], alpha=float("nan")), "alpha must lie between"),
        (lambda: certify([0.1], [True], alpha=0.1, delta=1.0), "delta must lie between"),
        (lambda: certify([0.1], [True], alpha=0.1, kind="exact"), "'exact' is not a risk; use one of marginal"),  # type: ignore[arg-type]
        (lambda: certify([0.1], [True], alpha=0.1, kind="regret"), "which questions the remote has right"),
        (lambda: certify([0.1], [True], alpha=0.1, kind="regret", remote_right=[]), "0 labels in 'remote_right'"),
        (lambda: certify([0.1], [True], alpha=0.1, kind="selective", grid=[]), "the grid has no score"),
        (lambda: compare_remote([0.1], [True], [True, True], 0.5), "2 labels in 'remote_right'"),
    ],
)
def test_what_cannot_be_calibrated_on_is_one_line(call: Callable[[], object], says: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        call()
    assert says in str(caught.value)


def test_arrays_are_taken_as_they_are() -> None:
    scores = np.linspace(0, 1, 50)
    assert certify(scores, scores < 0.5, alpha=0.1, date="2025-01-31") == certify(  # type: ignore[arg-type]
        scores.tolist(), (scores < 0.5).tolist(), alpha=0.1, date="2025-01-31"
    )


# --- is the remote better? --------------------------------------------------------------------------


def test_the_remote_is_judged_on_what_it_would_be_handed() -> None:
    scores = [0.1] * 20 + [0.9] * 20
    wrong, right = [True] * 20 + [False] * 20, [True] * 20 + [False] * 20
    found = compare_remote(scores, wrong, right, 0.5)
    assert (found.handed_off, found.gained, found.lost, found.better) == (20, 20, 0, True)
    everything = compare_remote(scores, wrong, right, None)
    assert (everything.handed_off, everything.gained, everything.lost, everything.better) == (40, 20, 20, False)


def test_a_remote_that_is_not_shown_to_be_better_is_not_routed_to() -> None:
    assert "Do not route" in compare_remote([0.1] * 8, [True, False] * 4, [False, True] * 4, None).sentence()
    assert compare_remote([], [], [], None).p_value == 1.0
    three = compare_remote([0.1] * 3, [True] * 3, [True] * 3, None)
    assert three.p_value == pytest.approx(0.125) and not three.better


# --- where the true risk is known -------------------------------------------------------------------

ERROR_AT_ZERO = 0.8  # of an answer with score 0; it falls linearly to 0 at score 1
REMOTE_RIGHT = 0.8
Chooser = Callable[[Kind, list[float], list[bool], list[bool], float], float]


def certified_threshold(
    kind: Kind, scores: list[float], wrong: list[bool], right: list[bool], alpha: float
) -> float:
    found = certify(scores, wrong, remote_right=right, kind=kind, alpha=alpha, date="2025-01-31").threshold
    return np.inf if found is None else found


def naive_threshold(kind: Kind, scores: list[float], wrong: list[bool], right: list[bool], alpha: float) -> float:
    """The sabotage: the largest share whose error on these very questions is within the target."""
    order = np.argsort(scores)[::-1]
    bad = np.array(wrong) & (np.array(right) if kind.startswith("regret") else True)
    served = np.arange(1, len(scores) + 1)
    seen = np.cumsum(bad[order]) / (served if kind == "selective" else len(scores))
    fine = np.flatnonzero(seen <= alpha)
    return float(np.array(scores)[order][fine[-1]]) if len(fine) else np.inf


def true_risk(kind: Kind, threshold: float) -> float:
    """Of scores uniform on [0, 1], served from `threshold` up: integrals of the error above."""
    above = max(0.0, 1 - threshold)
    if kind == "selective":
        return ERROR_AT_ZERO * above / 2
    return ERROR_AT_ZERO * above**2 / 2 * (REMOTE_RIGHT if kind.startswith("regret") else 1)


def simulated_risks(choose: Chooser, kind: Kind, alpha: float, labels: int, draws: int) -> np.ndarray:
    random, risks = np.random.default_rng(7), np.empty(draws)
    for draw in range(draws):
        scores = random.random(labels)
        wrong, right = random.random(labels) < ERROR_AT_ZERO * (1 - scores), random.random(labels) < REMOTE_RIGHT
        risks[draw] = true_risk(kind, choose(kind, scores.tolist(), wrong.tolist(), right.tolist(), alpha))
    return risks


def keeps_the_promise(kind: Kind, alpha: float, risks: np.ndarray) -> bool:
    """In expectation the mean is within the target; else at most one draw of ten is beyond it."""
    if kind in ("marginal", "regret"):
        return bool(risks.mean() <= alpha)
    return bool((risks > alpha).mean() <= 0.1)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_promise_is_kept_and_a_naive_threshold_breaks_it(kind: Kind, alpha: float) -> None:
    labels, draws = (40, 2_000) if kind in ("marginal", "regret") else (200, 300)
    assert keeps_the_promise(kind, alpha, simulated_risks(certified_threshold, kind, alpha, labels, draws))
    assert not keeps_the_promise(kind, alpha, simulated_risks(naive_threshold, kind, alpha, labels, draws))


def test_scores_that_say_nothing_are_rarely_certified() -> None:
    """The hardest case for a sequence of tests: the risk is just above the target at every threshold."""
    random, passed = np.random.default_rng(3), 0
    for _ in range(600):
        wrong = random.random(300) < 0.1001
        found = certify(random.random(300).tolist(), wrong.tolist(), alpha=0.1, kind="selective")
        passed += found.threshold is not None
    assert 0 < passed / 600 <= 0.1 + 0.025  # two standard errors


@pytest.mark.parametrize("kind", ["marginal", "marginal_hp"])
def test_the_promise_costs_little(kind: Kind) -> None:
    """A bound that serves next to nothing is kept by all; most of what could be served is."""
    shares = 1 - np.array([_threshold(kind, seed) for seed in range(200)])
    best = np.sqrt(2 * 0.1 / ERROR_AT_ZERO)  # the share at which the true risk is the target
    assert shares.mean() >= {"marginal": 0.95, "marginal_hp": 0.8}[kind] * best


def _threshold(kind: Kind, seed: int) -> float:
    random = np.random.default_rng(seed)
    scores = random.random(200)
    wrong = random.random(200) < ERROR_AT_ZERO * (1 - scores)
    return min(1.0, certified_threshold(kind, scores.tolist(), wrong.tolist(), [True] * 200, 0.1))


@pytest.mark.campaign
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_draws_keep_the_promise_and_a_naive_threshold_does_not(kind: Kind, alpha: float) -> None:
    assert keeps_the_promise(kind, alpha, simulated_risks(certified_threshold, kind, alpha, 200, 10_000))
    assert not keeps_the_promise(kind, alpha, simulated_risks(naive_threshold, kind, alpha, 200, 10_000))
