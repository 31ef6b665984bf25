"""Questions of a training set are understood without their passage, or get its title, or are left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.passages import SourcePassage
from quantize.training_data.standing_alone import standing_alone, stands_alone

OAK = SourcePassage("Ann Oak (1801-1870) was an English director. Her film Tarn won a prize.", "Ann Oak")
FILM = SourcePassage("The Old Mill is a 1937 film by Bob Elm, based on a play.", "The Old Mill (film)")


@pytest.mark.parametrize(
    "question",
    [
        "What is retrograde signalling?",
        "Which river flows through Basel?",
        "Who wrote the novel Emma and when did she write it?",
        'Who directed the film "heat"?',
        "How many people live in the city of Tarn?",
    ],
)
def test_questions_that_name_their_subject_stand_alone(question: str) -> None:
    assert stands_alone(question)


@pytest.mark.parametrize(
    "question",
    [
        "When was he born?",
        "What is its capital?",
        "Who directed the film?",
        "What does the text say about Ann?",
        "According to the passage, who is Ann?",
        "Which people are mentioned?",
        "What was his father's name?",
    ],
)
def test_questions_that_point_at_something_do_not(question: str) -> None:
    assert not stands_alone(question)


@pytest.mark.parametrize(
    ("question", "passage", "expected"),
    [
        ("When was she born?", OAK, "When was Ann Oak born?"),
        ("What was her profession?", OAK, "What was Ann Oak's profession?"),
        ("Who married her in 1830?", OAK, "Who married her in 1830?"),  # a year is a name: it stands alone already
        ("Who married her in the end?", OAK, "Who married Ann Oak in the end?"),
        ("Who influenced her?", OAK, "Who influenced Ann Oak?"),
        ("Who was her father's friend?", OAK, "Who was Ann Oak's father's friend?"),
        ("Which prize did the director win?", OAK, "Which prize did the director Ann Oak win?"),
        ("Who made the film?", FILM, "Who made the film The Old Mill?"),
        ("What is its plot?", SourcePassage("Atlas is a novel. Its plot is odd.", "Atlas"), "What is Atlas' plot?"),
        ("Where does Ann live?", FILM, "Where does Ann live?"),
    ],
)
def test_what_stands_for_the_title_is_replaced_by_it(question: str, passage: SourcePassage, expected: str) -> None:
    assert standing_alone(question, passage) == expected
    assert stands_alone(expected)


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("Who wrote the song?", FILM),  # the passage is about none
        ("Did he like the film?", FILM),  # which of the two the title is, nobody says
        ("What are those?", FILM),
        ("What does the text say about her?", OAK),
        ("When was he born?", SourcePassage("In 1920 Ann Oak met a man.", "Ann Oak")),  # not about her alone
        ("When was she born?", SourcePassage("Ann Oak was born in 1801.")),
        ("When was it written?", SourcePassage("Notes on the harbour of Tarn.", "Notes 2024")),
    ],
)
def test_a_title_is_put_nowhere_where_it_may_be_wrong(question: str, passage: SourcePassage) -> None:
    assert standing_alone(question, passage) is None


@given(st.text(), st.text(), st.text())
def test_any_question_is_left_as_it_is_or_gets_the_title_or_is_left_out(
    question: str, text: str, title: str
) -> None:
    found = standing_alone(question, SourcePassage(text, title))
    if stands_alone(question):
        assert found == question
    elif found is not None:
        assert title.split("(")[0].strip() in found and len(found) > len(question) - len("they")
