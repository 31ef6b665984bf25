"""The first routing rule: what counts as support, what each policy does without it, and reasons with numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.records import Hit, Passage
from edge_sdk.route import (
    SUPPORT_FLOOR,
    WORD_WEIGHT,
    WORDS_FLOOR,
    Decision,
    Policy,
    WhenUnsure,
    decide_after,
    decide_before,
    support,
)

QUESTION = "How long does green tea steep?"  # long, green, tea, steep


def hit(text: str, similarity: float | None, *, heading: str = "", bm25: float | None = None) -> Hit:
    return Hit(Passage(1, "tea.md", "Tea", heading, text, 0, len(text)), 0.1, similarity=similarity, bm25=bm25)


CLOSE = hit("Green tea rests for two minutes.", 0.61, bm25=7.5)
FAR = hit("The harbour froze in winter.", 0.12)


def test_a_close_passage_with_the_words_is_support() -> None:
    found = support(QUESTION, [FAR, CLOSE])
    assert found.supported
    assert (found.top_similarity, found.best_bm25, found.words_found, found.words) == (0.61, 7.5, 2, 4)
    assert found.reason == (
        "the passages support an answer "
        "(best similarity 0.61, 2 of 4 words of the question: support 0.86, floor 0.58)"
    )


def test_a_far_passage_is_not() -> None:
    found = support(QUESTION, [FAR])
    assert not found.supported
    assert found.reason == (
        "no passage supports an answer "
        "(best similarity 0.12, 0 of 4 words of the question: support 0.12, floor 0.58)"
    )


def test_no_passage_is_not() -> None:
    found = support(QUESTION, [])
    assert not found.supported and found.top_similarity is None and found.reason == "no passage found"


def test_words_make_up_for_a_distant_cosine_and_the_other_way_round() -> None:
    all_words = hit("Steeping green tea: how long", 0.1)
    assert support(QUESTION, [all_words]).supported
    paraphrase = hit("Leaves rest in the pot for three minutes.", 0.60)
    assert support(QUESTION, [paraphrase]).supported


def test_words_are_counted_in_one_passage_and_not_across_passages() -> None:
    scattered = [hit("green paint", 0.2), hit("tea cups", 0.2), hit("a steep hill", 0.2), hit("a long day", 0.2)]
    assert support(QUESTION, scattered).words_found == 1


def test_headings_count_and_so_do_forms_of_a_word() -> None:
    assert (
        support("Who invented the kettle?", [hit("It was an invention.", 0.0, heading="Kettles")]).words_found == 2
    )


def test_stop_words_do_not_count() -> None:
    assert support("What is the tea that you have?", [hit("what is the that you have", 0.2)]).words_found == 0


@pytest.mark.parametrize(("similarity", "supported"), [(SUPPORT_FLOOR - 0.01, False), (SUPPORT_FLOOR, True)])
def test_the_floor_itself_is_support(similarity: float, supported: bool) -> None:
    assert support(QUESTION, [hit("nothing alike", similarity)]).supported is supported


def test_without_an_encoder_the_words_decide() -> None:
    found = support(QUESTION, [hit("Green tea", None, bm25=3.0)])
    assert found.supported and "50%" in found.reason and "no encoder" in found.reason
    assert not support(QUESTION, [hit("tea", None, bm25=3.0)]).supported  # a quarter of the words


@pytest.mark.parametrize(
    ("when_unsure", "before", "after"),
    [("abstain", "abstain", "abstain"), ("local", "local", "local"), ("remote", "remote", "remote")],
)
def test_each_policy_without_support_and_after_a_refusal(when_unsure: WhenUnsure, before: str, after: str) -> None:
    policy = Policy(when_unsure)
    assert decide_before(QUESTION, [FAR], policy).route == before
    answered = decide_before(QUESTION, [CLOSE], policy)
    assert answered.route == "local"
    assert decide_after(answered, refused=False, policy=policy) is answered
    assert decide_after(answered, refused=True, policy=policy).route == after


def test_the_default_is_to_abstain() -> None:
    assert decide_before(QUESTION, [FAR], Policy()).route == "abstain"


def test_nothing_is_answered_from_no_passages() -> None:
    assert decide_before(QUESTION, [], Policy("local")).route == "abstain"
    assert decide_before(QUESTION, [], Policy("remote")).route == "remote"


def test_a_later_decision_keeps_the_earlier_reasons() -> None:
    first = decide_before(QUESTION, [CLOSE], Policy("remote"))
    second = decide_after(first, refused=True, policy=Policy("remote"))
    assert second == Decision("remote", (*first.reasons, "the local model found no answer in the passages"))


SIMILARITIES = st.none() | st.floats(-1, 1)
HITS = st.lists(st.builds(hit, st.text(max_size=30), SIMILARITIES, heading=st.text(max_size=9)), max_size=5)


@given(question=st.text(max_size=60), hits=HITS)
def test_any_input_gives_a_decision_whose_reason_agrees_with_its_numbers(question: str, hits: list[Hit]) -> None:
    found = support(question, hits)
    assert 0 <= found.words_found <= found.words
    share = found.words_found / found.words if found.words else 0.0
    if found.top_similarity is not None:
        assert found.supported == (round(found.top_similarity + WORD_WEIGHT * share, 2) >= SUPPORT_FLOOR)
        printed = float(re.findall(r"support (-?[\d.]+),", found.reason)[0])
        assert found.supported == (printed >= SUPPORT_FLOOR)
    else:
        assert found.supported == (bool(hits) and share >= WORDS_FLOOR)
    decision = decide_before(question, hits, Policy())
    assert decision.route == ("local" if found.supported else "abstain") and decision.reasons == (found.reason,)


@given(question=st.text(max_size=60), hits=HITS, extra=st.floats(-1, 1))
def test_another_passage_never_takes_support_away(question: str, hits: list[Hit], extra: float) -> None:
    if support(question, hits).supported and any(one.similarity is not None for one in hits):
        assert support(question, [*hits, hit("more", extra)]).supported
