"""What speaks for an answer: the same words twice, or a passage that holds them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.fallback.agreement import holding_passage, same_answer

PASSAGES = [
    "The library opened in 1902. Its first director was Ada Brandt, who had led the museum.",
    "The museum opened in 1911 in the old mill.",
]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("It was built in 1889.", "it was built in 1889", True),
        ("The valve must be opened slowly.", "Open the valve slowly. It must be.", True),
        ("In 1889.", "In 1898.", False),
        ("Yes.", "No.", False),
        ("You may open it.", "You may not open it.", False),
        ("Ada Brandt led the museum.", "Ada Berg led the museum.", False),
        ("Paris", "It is the city of Paris, on the Seine, in the north of France.", False),
        ("", "", False),
        ("...", "...", False),
    ],
)
def test_two_answers_are_the_same_when_they_say_it_in_nearly_the_same_words(
    one: str, other: str, same: bool
) -> None:
    assert same_answer(one, other) is same
    assert same_answer(other, one) is same


@pytest.mark.parametrize(
    ("question", "answer", "held_by"),
    [
        ("Who was the first director of the library?", "Ada Brandt", 0),
        ("When did the museum open in the mill?", "It opened in 1911.", 1),
        ("When did the museum open in the mill?", "It opened in 1912.", None),
        ("Who was the first director of the library?", "Not Ada Brandt", None),
        ("Who was the first director of the library?", "The first director of the library.", None),
        ("Who sold the boat?", "Ada Brandt", None),
        ("Who was the first director of the library?", " ".join(PASSAGES), None),
        ("Who was the first director of the library?", "", None),
    ],
)
def test_a_passage_speaks_for_a_short_answer_that_it_holds_with_the_question(
    question: str, answer: str, held_by: int | None
) -> None:
    assert holding_passage(question, answer, PASSAGES) == held_by


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_can_be_compared(one: str, other: str) -> None:
    assert same_answer(one, other) == same_answer(other, one)
    holding_passage(one, other, [one + other])
