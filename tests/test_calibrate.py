"""From labelled questions to a calibration: parts that never mix, runs that resume, promises that hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_calibrations import SETUP, asked, noisy, with_a_remote_that_fails, with_remote

from edge_sdk.confidence.signals import STAGES
from edge_sdk.errors import CalibrationError
from edge_sdk.judge import Judge
from edge_sdk.route import Policy
from quantize import calibrate as module
from quantize.asking import Asked
from quantize.calibrate import (
    LEAST,
    THRESHOLD_SHARE,
    Target,
    calibrate,
    certified,
    check_enough,
    fitted,
    probabilities,
    serving_scores,
)
from quantize.route_metrics import auroc

# --- parts -----------------------------------------------------------------------------------------


def test_too_few_questions_are_refused_before_any_is_asked() -> None:
    least = next(n for n in range(1000) if n - round(THRESHOLD_SHARE * n) >= LEAST)
    check_enough(range(least))
    with pytest.raises(CalibrationError, match="too few"):
        check_enough(range(least - 1))


@given(st.sets(st.text(max_size=8), max_size=60), st.randoms())
def test_no_question_is_in_both_parts_and_the_order_has_no_say(
    texts: set[str], random: np.random.Generator
) -> None:
    (row,) = asked(1)
    rows = [replace(row, question=text) for text in sorted(texts)]
    fitting, holding = module._parts(rows)
    names = [{each.question for each in part} for part in (fitting, holding)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == texts
    assert len(holding) == round(THRESHOLD_SHARE * len(rows))
    random.shuffle(rows)
    assert module._parts(rows) == (fitting, holding)


def test_the_threshold_is_counted_on_questions_that_no_model_saw() -> None:
    rows = asked(300)
    found = calibrate(rows, SETUP)
    fitting, holding = module._parts(rows)
    assert set(found.neighbours.questions) == {each.question for each in fitting}
    assert [label.probability for label in found.held_out] == serving_scores(found, holding)
    assert found.certificate is not None
    assert (found.certificate.n, found.n) == (len(holding), 300)
    turned = [replace(each, text="no" if each.text == "yes" else "yes") for each in holding]
    assert calibrate([*fitting, *turned], SETUP).models == found.models


def test_a_calibration_tells_right_from_wrong_and_names_its_labels() -> None:
    found = calibrate(asked(300), SETUP, labeller="exact")
    more = asked(500, seed=1)
    assert auroc(probabilities(found, more), [each.text == "yes" for each in more]) > 0.8
    assert found.labels == found.certificate.labels == "an accepted answer, exactly"  # type: ignore[union-attr]
    assert found.certificate.fingerprints == dict(SETUP.parts)  # type: ignore[union-attr]
    assert {"evidence", "mean_logprob"} <= found.models["after"].terms.keys()
    assert "evidence" not in found.models["before"].terms


def test_a_question_is_not_its_own_neighbour_while_fitting() -> None:
    familiarity = fitted(asked(120), SETUP, "contains").models["after"].terms["familiarity"]
    assert familiarity.mean < 0.95
    assert familiarity.deviation > 0.01


def test_too_few_or_all_alike_are_one_line() -> None:
    with pytest.raises(CalibrationError, match="too few"):
        fitted(asked(LEAST - 1), SETUP, "contains")
    with pytest.raises(CalibrationError, match="nothing can be fitted: 0 right or wrong"):
        fitted([replace(each, text="no") for each in asked(80)], SETUP, "contains")


def test_regret_needs_the_remotes_answers() -> None:
    rows = asked(250)
    with pytest.raises(CalibrationError, match="regret needs"):
        calibrate(rows, SETUP, target=Target("regret"))
    hard = calibrate(with_remote(rows, right=False), SETUP, target=Target("regret"))
    assert hard.certificate is not None
    assert (hard.certificate.errors, hard.certificate.local_share) == (0, 1.0)  # the remote never helps


def test_a_question_that_the_remote_gets_wrong_too_is_kept_where_regret_is_bounded() -> None:
    found = calibrate(with_a_remote_that_fails(asked(400)), SETUP, target=Target("regret"))
    other = with_a_remote_that_fails(asked(400, seed=3))
    regretted = [each.text != "yes" and each.remote == "yes" for each in other]
    by_regret, by_probability = (probabilities(found, other, kind) for kind in ("regret", "marginal"))
    areas = [auroc([-score for score in scores], regretted) for scores in (by_regret, by_probability)]
    assert areas[0] > areas[1] + 0.1
    threshold = found.certificate.threshold  # type: ignore[union-attr]
    assert threshold is not None
    kept = [score >= threshold for score in serving_scores(found, other, "regret")]
    assert fmean(bad and stays for bad, stays in zip(regretted, kept, strict=True)) < 0.15
    assert fmean(kept) > calibrate(asked(400), SETUP).certificate.local_share  # type: ignore[union-attr]


def test_what_a_judge_decides_on_is_what_was_counted() -> None:
    rows = with_a_remote_that_fails(asked(200))
    found = calibrate(rows, SETUP, target=Target("regret"))
    assert found.remote is not None and set(found.remote.terms) <= set(STAGES["before"])
    for row, score in zip(rows, probabilities(found, rows, "regret"), strict=True):
        near = found.neighbours.signals(np.array(row.vector, np.float32))
        judge = Judge(row.question, [], Policy("local"), calibration=found, vector=np.array(row.vector, np.float32))
        judge.signals = {**row.signals, **near}
        why = judge._explain("after")
        assert why.no_regret == pytest.approx(score)


def test_without_the_remotes_answers_nothing_is_known_of_it() -> None:
    assert fitted(asked(120), SETUP, "contains").remote is None
    assert fitted(with_remote(asked(120), right=False), SETUP, "contains").remote is None


# --- what is given up early ------------------------------------------------------------------------


def test_hopeless_is_the_largest_value_with_a_tenth_right_below_it() -> None:
    hopeless = module._hopeless_below
    values = [at / 100 for at in range(100)]
    assert hopeless(values, [at >= 50 for at in range(100)]) == 0.55  # 5 of 55 are right; 6 of 56 are too many
    assert hopeless(values, [at >= 10 for at in range(100)]) is None  # ten below are too few to see it
    assert hopeless(values[:21], [at in (3, 7) for at in range(21)]) == 0.2  # just a tenth, of just twenty
    assert hopeless(values, [True] * 100) is None
    assert hopeless(values, [False] * 100) == 0.99
    assert hopeless([0.5] * 100, [False] * 100) is None  # nothing lies below
    assert hopeless([], []) is None


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), st.booleans()), max_size=90))
def test_hopeless_is_that_of_a_naive_search(pairs: list[tuple[float, bool]]) -> None:
    def gives_up(limit: float) -> bool:
        below = [right for value, right in pairs if value < limit]
        return len(below) >= 20 and sum(below) <= 0.1 * len(below)

    naive = max((value for value, _ in pairs if gives_up(value)), default=None)
    assert module._hopeless_below([value for value, _ in pairs], [right for _, right in pairs]) == naive


def test_what_is_never_served_has_the_score_0() -> None:
    rows = asked(120)
    found = replace(fitted(rows, SETUP, "contains"), hand_off_before=None, hand_off_window=None)
    row = rows[0]
    assert serving_scores(found, [row]) == probabilities(found, [row]) != [0.0]
    assert serving_scores(found, [replace(row, route="abstain")]) == [0.0]
    assert serving_scores(found, [replace(row, signals={**row.signals, "refusal": 1.0})]) == [0.0]
    assert serving_scores(replace(found, hand_off_before=1.0), [row]) == [0.0]
    window = row.signals["window_logprob"]
    assert serving_scores(replace(found, hand_off_window=window), [row]) != [0.0]
    assert serving_scores(replace(found, hand_off_window=window + 0.01), [row]) == [0.0]


# --- tasks -----------------------------------------------------------------------------------------


def test_a_task_that_goes_worse_is_drawn_down_and_a_small_one_hardly() -> None:
    rows = asked(200)
    hard = [replace(each, question=f"hard {each.question}", task="hard", text="no") for each in asked(60, seed=4)]
    few = [replace(each, question=f"few {each.question}", task="few", text="no") for each in asked(3, seed=5)]
    found = fitted([*rows, *hard, *few], SETUP, "contains")
    assert found.tasks.keys() == {"hard", "few"}
    assert (found.tasks["hard"].n, found.tasks["few"].n) == (60, 3)
    assert found.tasks["hard"].shift < found.tasks["few"].shift < 0.1
    assert all(scale.slope > 0 and np.isfinite([scale.slope, scale.shift]).all() for scale in found.tasks.values())
    signals = rows[0].signals
    assert (
        found.estimate("after", signals, "hard").probability < found.estimate("after", signals, "few").probability
    )


# --- promises --------------------------------------------------------------------------------------


def risk(scores: Sequence[float], rows: Sequence[Asked], threshold: float | None) -> float:
    return fmean(
        threshold is not None and score >= threshold and each.text != "yes"
        for score, each in zip(scores, rows, strict=True)
    )


def test_the_marginal_promise_holds_on_average_and_the_naive_twin_breaks_it() -> None:
    """Twenty noise signals are fitted on eighty questions: on these the model looks far better than it is."""
    alpha, honest, naive = 0.1, [], []
    test = noisy(1500, seed=999)
    for seed in range(25):
        rows = noisy(140, seed=seed)
        fitting, holding = module._parts(rows)
        model = fitted(fitting, SETUP, "contains")
        model = replace(model, hand_off_before=None, hand_off_window=None)
        found = certified(model, holding, "contains", Target("marginal", alpha))
        assert found.certificate is not None
        scores = serving_scores(found, test)
        honest.append(risk(scores, test, found.certificate.threshold))
        seen = serving_scores(found, fitting)
        passing = [each for each in sorted(seen) if risk(seen, fitting, each) <= alpha]
        naive.append(risk(scores, test, min(passing, default=None)))
    spread = float(np.std(honest)) / 5  # of the mean of 25
    assert fmean(honest) <= alpha + 2 * spread
    assert fmean(naive) > alpha + 2 * spread
