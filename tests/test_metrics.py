"""Reference metrics, against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.metrics import contains, exact_match, recall_at, token_f1


@pytest.mark.parametrize(
    ("prediction", "exact", "contained", "f1"),
    [
        ("The Denver Broncos.", 1.0, 1.0, 1.0),
        ("Denver", 0.0, 0.0, 2 / 3),
        ("It was the Denver Broncos who won", 0.0, 1.0, 4 / 8),
        ("Carolina", 0.0, 0.0, 0.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_answers_are_scored_as_squad_does(prediction: str, exact: float, contained: float, f1: float) -> None:
    answers = ["Denver Broncos"]
    assert exact_match(prediction, answers) == exact
    assert contains(prediction, answers) == contained
    assert token_f1(prediction, answers) == pytest.approx(f1)


def test_the_best_accepted_answer_counts() -> None:
    assert token_f1("in 1066", ["the year 1066", "1066", "in 1066"]) == 1.0


def test_repeated_words_do_not_inflate_f1() -> None:
    assert token_f1("rhine rhine rhine", ["rhine"]) == pytest.approx(0.5)


@given(st.text(max_size=40), st.lists(st.text(max_size=40), max_size=3))
def test_scores_stay_between_zero_and_one(prediction: str, answers: list[str]) -> None:
    f1 = token_f1(prediction, answers)
    assert 0.0 <= f1 <= 1.0
    assert exact_match(prediction, answers) <= f1 or not answers


def test_recall_looks_at_the_first_places_only() -> None:
    ranked = ["a", "b", "c"]
    assert (recall_at(ranked, "c", 2), recall_at(ranked, "c", 3)) == (0.0, 1.0)
