"""What would give the evaluation away is found: its questions, its titles, runs of its words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.example import Example
from quantize.training_data.leakage import Leakage

PASSAGE = "The tower stands on a rock in the bay and has been lit every night since the year 1874 by its keepers."


def leakage() -> Leakage:
    return Leakage([Example("Since when is the tower lit?", PASSAGE, ("1874",))], titles=["The Tower"])


def test_the_same_question_leaks_in_other_letters() -> None:
    assert leakage().of(Example("since WHEN is tower lit", "Another text.")) == "question of the evaluation set"


def test_the_same_title_leaks() -> None:
    example = Example("Who?", "Another text.")
    assert leakage().of(example, "tower") == "title of the evaluation set"
    assert leakage().of(example, "The Towers") == leakage().of(example, "") == ""


def test_thirteen_words_in_a_row_leak_and_twelve_do_not() -> None:
    words = PASSAGE.split()
    assert "13 words" in leakage().of_passage("Once more: " + " ".join(words[3:16]).upper() + " end")
    assert leakage().of_passage("Once more " + " ".join(words[3:15]) + " end") == ""


def test_a_passage_shorter_than_a_run_leaks_as_a_whole() -> None:
    short = Leakage([Example("Who?", "Ann came.")])
    assert short.of_passage("ann came") and not short.of_passage("Ann came late")


def test_an_empty_evaluation_set_lets_everything_through() -> None:
    assert Leakage([]).of(Example("", "", ()), "") == ""
    assert Leakage([], titles=["", "?"]).of_passage("Text", "!") == ""


@given(st.lists(st.sampled_from("alpha beta gamma delta".split()), min_size=13, max_size=40), st.data())
def test_any_thirteen_words_of_the_evaluation_are_found(words: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(words) - 13))
    part = " ".join(words[start : start + 13])
    assert Leakage([Example("Who?", " ".join(words))]).of_passage(f"x y {part} z")
