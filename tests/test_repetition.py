"""Where a text begins to say the same again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.repetition import Repetition

ONE = "The library opens at nine in winter."
OTHER = "It is closed on the first of May."


def cut(text: str, size: int = 1) -> str | None:
    """What is left of a text that comes in pieces; None where nothing repeats."""
    seen = Repetition()
    for start in range(0, len(text), size):
        if (end := seen.grow(text[start : start + size])) is not None:
            return text[:end]
    return None


def test_what_is_said_three_times_running_ends_the_text_behind_the_first() -> None:
    assert cut(f"{ONE} {ONE} {ONE} ") == f"{ONE} "
    assert cut(f"{OTHER} {ONE} {ONE} {ONE} ") == f"{OTHER} {ONE} "
    assert cut(f"{ONE} {OTHER} " * 3) == f"{ONE} {OTHER} "
    assert cut(f"{ONE}\n\n{ONE.upper()}\n{ONE}\n") == f"{ONE}\n\n"
    assert cut(f"{ONE} [1] {ONE} [2] {ONE} [3] and") == f"{ONE} [1] "
    assert cut("so it is and " * 8) is not None


def test_the_number_of_the_next_item_goes_too() -> None:
    for marks in (("1.", "2.", "3."), ("-", "-", "-"), ("1)", "2)", "3)")):
        text = "\n".join(f"{mark} {ONE}" for mark in marks) + "\n"
        assert cut(text) == f"{marks[0]} {ONE}"


def test_a_number_that_ends_a_sentence_stays() -> None:
    said = "The tower was built in 1889."
    assert cut(f"{said} " * 3) == f"{said} "
    assert cut(f"1. {said} 2. {said} 3. {said}") == f"1. {said}"


def test_sentences_without_spaces_count_by_their_letters() -> None:
    assert cut("\u5f00\u653e\u65f6\u95f4\u662f\u4e5d\u70b9\u3002" * 12) is not None


HONEST = (
    f"{ONE} {ONE} {OTHER} {ONE}",  # twice may be meant
    "Yes. No. Yes. No. Yes. No. Then it is over. ",
    "Anna wurde am 1. Mai in Berlin geboren. Otto wurde am 1. Mai in Berlin geboren. Ida am 2. Juni. ",
    "1. Hold the reset button for five seconds. 2. Wait. 3. Hold the reset button for five seconds. 4. Wait. ",
    "path\n  Type: str, optional, default None\nmode\n  Type: str, optional, default None\nsize\n  Type: str, "
    "optional, default None\n",
    "| 0 | 0 | 0 | 0 | 1 |\n" * 9,
    "with open(path) as file:\n    data = file.read()\nwith open(path) as file:\n    print(file.name)\n",
    "```\nfor each in the list of all names:\n" + "    print(each, end='')\n" * 5 + "```\n",
)


@pytest.mark.parametrize("text", HONEST)
def test_honest_texts_are_left_whole(text: str) -> None:
    assert cut(text) is None
    assert cut(text, 9) is None


@given(st.lists(st.sampled_from([ONE, OTHER, "Yes.", "A much longer sentence, by far."]), max_size=9))
def test_what_is_left_is_a_beginning_however_it_comes(sentences: list[str]) -> None:
    text = " ".join(sentences) + " "
    left = cut(text)
    assert cut(text, 7) == cut(text, len(text)) == left
    if any(sentences[at : at + 3] == [ONE] * 3 for at in range(len(sentences))):
        assert left is not None
    if left is not None:
        assert text.startswith(left)
        assert cut(left) is None
