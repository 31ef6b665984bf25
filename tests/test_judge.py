"""Decisions before, during and after: a calibration hands off more, never less, and every one explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_calibrations import DIMENSION, SETUP, calibration, certificate, hit, token, vectors

from edge_sdk.confidence.calibration import Calibration, TaskScale
from edge_sdk.confidence.logistic import Logistic, Steps, Term, sigmoid
from edge_sdk.confidence.signals import STAGES, WINDOW
from edge_sdk.drafting import Draft, local_answer
from edge_sdk.judge import Judge
from edge_sdk.records import Explanation, FinishReason, Hit, Token
from edge_sdk.route import Policy

QUESTION = "Who built the tower?"
HITS = [hit("Gustave Eiffel built the tower."), hit("It rained.", 0.2, rank=2)]
REMOTE = Policy(when_unsure="remote")
ALWAYS = {"evidence": Term(0.0, 1.0, 5.0)}
NEVER = {"evidence": Term(0.0, 1.0, -5.0)}


def judge(
    found: Calibration | None = None,
    policy: Policy = REMOTE,
    *,
    question: str = QUESTION,
    hits: Sequence[Hit] = HITS,
    note: str = "",
    task: str = "",
    vector: np.ndarray | None = None,
) -> Judge:
    return Judge(question, hits, policy, calibration=found, note=note, vector=vector, task=task)


def end(
    it: Judge,
    answer: str = "Gustave Eiffel built the tower.",
    *,
    reason: FinishReason = "stop",
    refusal: bool = False,
    tokens: Sequence[Token] = (),
) -> str:
    """The route after a whole answer, or after it was given up."""
    if it.decision.route == "local" and not any(it.sees(each) for each in tokens):
        it.ends(answer, HITS, finish_reason=reason, refusal=refusal)
    return it.decision.route


def adds_up(why: Explanation) -> bool:
    assert why.probability is not None
    total = why.intercept + sum(part.log_odds for part in why.contributions)
    return why.probability == pytest.approx(sigmoid(total))


def test_without_a_calibration_there_is_no_probability_and_the_old_rules_decide() -> None:
    it = judge(note="no calibration")
    assert end(it, tokens=[token("a")] * 20) == "local"
    why = it.explanation
    assert (why.probability, why.note, why.stage) == (None, "no calibration", "after")
    assert end(judge(), refusal=True) == "remote"
    assert end(judge(hits=[])) == "remote"
    assert end(judge(policy=Policy()), refusal=True) == "abstain"


def test_an_answer_is_served_from_the_threshold_on() -> None:
    assert end(judge(calibration(after=ALWAYS, certified=certificate(0.6)))) == "local"
    it = judge(calibration(after=NEVER, certified=certificate(0.6)))
    assert end(it) == "remote"
    assert it.decision.reasons[-1].endswith("only, threshold 0.60")
    assert end(judge(calibration(after=NEVER))) == "local"  # no certificate, no promise to keep


def test_where_nothing_is_certified_nothing_is_served() -> None:
    it = judge(calibration(after=ALWAYS, certified=certificate(None)))
    assert end(it) == "remote"
    assert "nothing is certified to be served" in it.decision.reasons[-1]


def test_before_generating_below_the_limit_it_is_handed_off() -> None:
    bad = {"words_found": Term(0.0, 0.1, -2.0)}
    it = judge(calibration(before=bad, hand_off_before=0.3))
    assert it.decision.route == "remote"
    assert "before generating" in it.decision.reasons[-1]
    assert it.explanation.stage == "before"
    assert adds_up(it.explanation)
    assert judge(calibration(before=bad)).decision.route == "local"


def test_eight_bad_tokens_in_a_row_end_it_once() -> None:
    it = judge(calibration(hand_off_window=-2.0))
    stops = [it.sees(token("x", -3.0)) for _ in range(12)]
    assert stops == [False] * (WINDOW - 1) + [True] + [False] * (12 - WINDOW)
    assert it.decision.route == "remote"
    assert (it.explanation.stage, adds_up(it.explanation)) == ("during", True)
    assert sum("given up while generating" in reason for reason in it.decision.reasons) == 1


def test_when_asked_to_answer_all_the_same_a_bad_run_is_one_reason_and_no_end() -> None:
    it = judge(calibration(after=NEVER, certified=certificate(0.6), hand_off_window=-2.0), Policy("local"))
    assert not any(it.sees(token("x", -3.0)) for _ in range(50))
    assert end(it) == "local"
    assert sum("given up" in reason for reason in it.decision.reasons) <= 1
    assert len(it.decision.reasons) < 8


def test_a_cancelled_answer_is_left_where_it_was_without_a_probability() -> None:
    it = judge(calibration(after=NEVER, certified=certificate(0.6)))
    assert end(it, reason="cancelled") == "local"
    assert (it.explanation.probability, it.explanation.note) == (None, "the answer was cancelled")


def test_a_question_without_support_is_explained_too() -> None:
    found = calibration(certified=certificate())
    it = judge(replace(found, hand_off_before=1.0), hits=[hit("Rain.", similarity=0.0)])
    assert (it.decision.route, len(it.decision.reasons)) == ("remote", 1)
    assert adds_up(it.explanation)
    assert judge(found, hits=[], note="no passage").decision.route == "remote"


terms = st.builds(Term, st.floats(-2, 2), st.floats(0.1, 2), st.floats(-4, 4))
made = st.builds(
    calibration,
    after=st.dictionaries(st.sampled_from(STAGES["after"]), terms, min_size=1, max_size=6),
    before=st.dictionaries(st.sampled_from(STAGES["before"]), terms, min_size=1, max_size=4),
    steps=st.none() | st.just(Steps((-1.0, 0.0, 1.0), (-2.0, 0.3, 1.5))),
    tasks=st.just({"facts": TaskScale(0.7, 0.4, 30)}),
    hand_off_before=st.none() | st.floats(0, 1),
    hand_off_window=st.none() | st.floats(-4, 0),
    certified=st.none() | st.sampled_from([certificate(0.3), certificate(0.7), certificate(None)]),
)
logprobs = st.lists(st.floats(-6, 0), min_size=1, max_size=20)


@given(made, logprobs, st.sampled_from(["Gustave Eiffel", "nobody", ""]), st.booleans())
def test_early_decisions_only_hand_off_more_and_so_does_a_calibration(
    found: Calibration, run: list[float], answer: str, refusal: bool
) -> None:
    def served(it: Calibration | None) -> bool:
        return end(judge(it), answer, refusal=refusal, tokens=[token("x", each) for each in run]) == "local"

    late_only = replace(found, hand_off_before=None, hand_off_window=None)
    assert served(found) <= served(late_only) <= served(late_only.with_certificate(None)) <= served(None)
    assert served(found) <= served(found.with_certificate(None))


@given(made, logprobs, st.sampled_from(["", "facts"]), st.booleans())
def test_every_explanation_adds_up_and_serves_as_it_says(
    found: Calibration, run: list[float], task: str, near: bool
) -> None:
    it = judge(found, task=task, vector=vectors(1)[0] if near else None)
    route = end(it, tokens=[token("x", each) for each in run])
    why = it.explanation
    assert adds_up(why)
    sizes = [abs(part.log_odds) for part in why.contributions]
    assert sizes == sorted(sizes, reverse=True)
    assert all(part.what for part in why.contributions)
    for part in why.contributions:
        assert part.value == it.signals.get(part.signal)
    if why.stage == "after" and found.certificate is not None:
        assert (route == "local") == (why.threshold is not None and why.probability >= why.threshold)  # type: ignore[operator]
    assert len(why.nearest) == (3 if near else 0)


def test_where_the_promise_is_on_regret_a_call_that_gains_nothing_is_not_made() -> None:
    hopeless = {"evidence": Term(0.0, 1.0, -50.0)}  # it is wrong
    helps = calibration(after=hopeless, remote={}, certified=certificate(kind="regret"))
    fails = replace(helps, remote=Logistic(-4.0, {}))
    assert end(judge(fails)) == "local"
    it = judge(helps)
    assert end(it) == "remote"
    assert it.decision.reasons[-1] == "no worse than the remote's with probability 0.40 only, threshold 0.60"
    assert end(judge(replace(fails, certificate=certificate()))) == "remote"  # that promise is on wrong answers


@given(made, logprobs)
def test_the_probability_of_no_regret_is_explained_and_its_parts_add_up(
    found: Calibration, run: list[float]
) -> None:
    found = replace(found, remote=found.models["before"], certificate=certificate(kind="regret_hp"))
    it = judge(found)
    end(it, tokens=[token("x", each) for each in run])
    why = it.explanation
    assert (why.remote is not None) == (why.no_regret is not None) == (why.stage == "after")
    if why.remote is not None and why.probability is not None:
        total = why.remote.intercept + sum(part.log_odds for part in why.remote.contributions)
        assert why.remote.probability == pytest.approx(sigmoid(total))
        assert why.no_regret == pytest.approx(1 - (1 - why.probability) * why.remote.probability)
        text = replace(local_answer(it, Draft(usable=True)), explanation=why).explain()
        assert f"the remote's answer is right: {why.remote.probability:.3f}" in text
        assert f"would do no better, which decides: {why.no_regret:.3f}" in text


def test_the_question_vector_brings_neighbours() -> None:
    it = judge(calibration(), vector=vectors(3)[1])
    end(it)
    assert it.explanation.nearest[0].question == "When was it built?"
    assert it.signals["familiarity"] == pytest.approx(1.0, abs=0.02)


def test_a_calibration_for_vectors_of_another_length_is_not_used() -> None:
    """Only a changed file can hold such: the set-up names the encoder."""
    it = judge(calibration(dimension=DIMENSION + 1, certified=certificate(None)), vector=vectors(1)[0])
    assert end(it) == "local"
    assert it.explanation.probability is None
    assert "17" in it.explanation.note


def test_the_note_says_what_right_is_relative_to() -> None:
    it = judge(calibration(setup=SETUP))
    end(it)
    assert it.explanation.note == "relative to made up, 3 questions of 2026-01-02"
