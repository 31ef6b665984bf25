"""Questions of a training set are understood without their passage, or get its title, or are left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.passages import SourcePassage
from quantize.training_data.standing_alone import standing_alone, stands_alone

OAK = SourcePassage("Ann Oak (1801-1870) was an English director. Her film Tarn won a prize.", "Ann Oak")
FILM = SourcePassage("The Old Mill is a 1937 film by Bob Elm, based on a play. It won.", "The Old Mill (film)")
RIVER = SourcePassage("The Nile is a river. It flows north.", "Nile")


@pytest.mark.parametrize(
    "question",
    [
        "What is retrograde signalling?",
        "Which river flows through Basel?",
        "Who wrote the novel Emma and when did she write it?",
        'Who directed the film "heat"?',
        '"Heat": who directed the film?',
        "Who directed the film ('heat')?",
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
        ("Where does it flow?", RIVER, "Where does the Nile flow?"),
        ("Who taught her how to paint?", OAK, "Who taught Ann Oak how to paint?"),
        (
            "When was the town built?",
            SourcePassage("# Tarn\nTarn is a town.", "Tarn"),
            "When was the town Tarn built?",
        ),
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
        ("How is it kept warm?", SourcePassage("# Installation\n\nRun it. It is a tool.", "Installation")),
        ("When was it released?", OAK),  # that is the film, not she
        ("Who produced the film?", SourcePassage("Ann Oak was an English film director. She died.", "Ann Oak")),
        ("Who sings in the band?", SourcePassage("Rain is a song by the band The Elms. It sold.", "Rain")),
        ("What was the play about?", FILM),
        ("What is the film director's name?", FILM),
        ("What made her famous?", OAK),
        ("What did she say that they've won?", OAK),
        ("How long does it take to cross?", RIVER),
        ("What is it called when the ice breaks?", RIVER),
        ("Who owns it?", SourcePassage("McDonald's is a chain. Its food is quick.", "")),
        ("What is its rival?", SourcePassage("McDonald's is a chain. Its food is quick.", "McDonald's")),
        ("Who made the film?", SourcePassage("heat is a film. Its plot is odd.", "heat")),
    ],
)
def test_a_title_is_put_nowhere_where_it_may_be_wrong(question: str, passage: SourcePassage) -> None:
    assert standing_alone(question, passage) is None


PERSONS = st.sampled_from(["Ann Oak", "Bob Elm (writer)", "Carl Ash"])
ASKED = st.sampled_from(
    ["When was {} born?", "Who taught {}?", "Who was {} wife?", "Where did {} live?", "What is {} name?"]
)
WORDS = st.sampled_from(
    "he she it they him her them his hers its their this those the-film the-writer the-king".split()
)


@given(
    PERSONS,
    ASKED,
    WORDS,
    st.sampled_from(["He", "She", "It", "They", "Nobody"]),
    st.sampled_from(["writer", "film"]),
)
def test_around_the_title_a_question_stays_as_it_is(title: str, form: str, word: str, uses: str, kind: str) -> None:
    name = title.removesuffix(" (writer)")
    passage = SourcePassage(f"{name} was a {kind} of Tarn. {uses} came in 1871.", title)
    word = word.replace("-", " ")
    found, (before, after) = standing_alone(form.format(word), passage), form.split("{}")
    forms = {"He": "he him his", "She": "she her hers", "It": "it its", "They": "they them their", "Nobody": ""}[
        uses
    ]
    if found is not None:
        assert found.startswith(before) and found.endswith(after) and stands_alone(found)
        assert found[len(before) : len(found) - len(after)] in {name, f"{name}'s", f"the {kind} {name}"}
    assert (found is not None) <= (word in forms.split() or word == f"the {kind}")
    if word in ("he", "she", "it", "they", "him", "them"):
        assert (found is not None) == (word in forms.split())


@given(st.text(), st.text(), st.text())
def test_any_text_and_title_end_without_an_error(question: str, text: str, title: str) -> None:
    found = standing_alone(f"Who was she {question}?", SourcePassage(f"{title} is a {text}. She {text}", title))
    assert found is None or stands_alone(found)
