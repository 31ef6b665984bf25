"""Unanswerable questions are near their passage, and the passage really holds no answer."""

from __future__ import annotations

from edge_sdk.fakes import FakeEncoder
from quantize.training_data.example import Example
from quantize.training_data.passages import SourcePassage
from quantize.training_data.unanswerable import unanswerable_examples

TOWNS = ["Tarn", "Aller", "Fara", "Skerry", "Holm", "Lund", "Vik", "Nes", "Moss", "Odde"]
PASSAGES = [
    SourcePassage(f"The tower of {town} was built in {1800 + at} by its people.") for at, town in enumerate(TOWNS)
]
EXAMPLES = [
    Example(f"When was the tower of {town} built?", passage.text, (str(1800 + at),), "made")
    for at, (town, passage) in enumerate(zip(TOWNS, PASSAGES, strict=True))
]


def test_each_gets_another_passage_that_does_not_hold_its_answer() -> None:
    far = SourcePassage("Rain fell on an empty street somewhere far away from here.")
    found = list(unanswerable_examples(EXAMPLES, [far, *PASSAGES], FakeEncoder(), share=1.0))
    assert [each.question for each in found] == [each.question for each in EXAMPLES]
    for made, asked in zip(found, EXAMPLES, strict=True):
        assert made.answers == () and made.source == "made"
        assert made.passage != asked.passage and made.passage != far.text and asked.answers[0] not in made.passage


def test_passages_that_hold_the_answer_in_other_words_are_passed_over() -> None:
    asked = Example("How many live in Tarn?", "Tarn has nine people.", ("nine people",))
    holding = [SourcePassage("In Tarn live 9 people."), SourcePassage("People of Tarn: nine.")]
    assert list(unanswerable_examples([asked], holding, FakeEncoder(), share=1.0)) == []
    rest = SourcePassage("In Tarn live many.")
    assert [
        each.passage for each in unanswerable_examples([asked], [*holding, rest], FakeEncoder(), share=1.0)
    ] == [rest.text]


def test_the_share_is_kept_and_the_choice_does_not_depend_on_the_order() -> None:
    many = [Example(f"When was tower {number} built?", "Once.", ("Once",)) for number in range(400)]
    other = [SourcePassage("Nobody knows when the tower was built.")]
    found = list(unanswerable_examples(many, other, FakeEncoder(), share=0.25))
    assert 60 < len(found) < 140
    again = list(unanswerable_examples(many[::-1], other, FakeEncoder(), share=0.25))
    assert {each.id for each in found} == {each.id for each in again}


def test_unanswerable_ones_no_share_and_no_passages_give_nothing() -> None:
    without = [Example("Who?", "Ann came.", ())]
    assert not list(unanswerable_examples(without, PASSAGES, FakeEncoder(), share=1.0))
    assert not list(unanswerable_examples(EXAMPLES, PASSAGES, FakeEncoder(), share=0.0))
    assert not list(unanswerable_examples(EXAMPLES, [], FakeEncoder(), share=1.0))
