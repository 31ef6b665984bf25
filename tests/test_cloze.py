"""Practice questions made of a passage's own sentences: what is asked for stands there and not in the question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.cloze import LONGEST_PASSAGE, SOURCE, cloze_examples
from quantize.training_data.passages import SourcePassage

TEXT = (
    "Marlow Quay is a harbour in the north of Tessaly. It was built by Ines Korda between 1912 and 1918. "
    "The old lighthouse has 212 steps, and visitors can climb it in the summer months. "
    "His sister Mara Korda painted the whole tower in a deep red."
)
PASSAGE = SourcePassage(TEXT, "Marlow Quay")


def many(count: int = 60) -> list[tuple[str, str]]:
    return [
        (example.question, example.answers[0])
        for seed in range(count)
        for example in cloze_examples([PASSAGE], most=4, seed=seed)
    ]


def test_answers_stand_in_the_passage_and_not_in_the_question() -> None:
    asked = many()
    assert len({answer for _, answer in asked}) >= 8
    for question, answer in asked:
        assert answer in TEXT and answer.casefold() not in question.casefold()
        assert question.endswith("?") and question[0].isupper()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("1912", {"When", "In", "What"}),
        ("212", {"How", "What"}),
        ("Tessaly", {"Who", "What", "Which"}),
        ("Ines Korda", {"Who", "Whom", "Which"}),
    ],
)
def test_the_question_word_suits_what_is_asked_for(answer: str, words: set[str]) -> None:
    first = {question.split()[0] for question, found in many() if found == answer}
    assert first and first <= words


def test_a_pronoun_that_begins_a_sentence_becomes_the_title() -> None:
    assert any("Marlow" in question for question, answer in many() if answer == "Ines Korda")
    assert not any(question.split()[1] == "It" for question, _ in many())


def test_each_question_of_a_passage_is_from_another_sentence() -> None:
    for seed in range(20):
        assert len(list(cloze_examples([PASSAGE], most=9, seed=seed))) <= 4


def test_what_is_asked_follows_from_the_passage_and_the_seed_alone() -> None:
    other = SourcePassage("Nothing here. " + TEXT, "Other")
    alone = list(cloze_examples([PASSAGE], most=2, seed=3))
    assert alone == list(cloze_examples([other, PASSAGE], most=2, seed=3))[-len(alone) :]
    assert any(alone != list(cloze_examples([PASSAGE], most=2, seed=seed)) for seed in range(4, 9))
    assert {example.source for example in alone} == {SOURCE}


def test_long_passages_and_those_without_anything_to_ask_give_none() -> None:
    assert not list(cloze_examples([SourcePassage(TEXT * 9), SourcePassage("so it goes"), SourcePassage("")]))
    assert len(TEXT * 9) > LONGEST_PASSAGE


@given(st.text(max_size=300), st.text(max_size=20), st.integers(0, 5))
def test_any_text_gives_examples_that_hold_or_none(text: str, title: str, most: int) -> None:
    found = list(cloze_examples([SourcePassage(text, title)], most=most))
    assert len(found) <= most
    assert all(example.span is not None for example in found)
