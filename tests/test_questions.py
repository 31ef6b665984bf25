"""What teachers say is read in the forms that they say it in; prompts about one passage begin alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.teachers.teacher import Reply, Request
from quantize.training_data.passages import SourcePassage
from quantize.training_data.questions import (
    UNANSWERED,
    answer_request,
    evidence_request,
    is_unanswered,
    parse_evidence,
    parse_pairs,
    question_request,
    titled,
)


def pairs(text: str, finish: str = "stop") -> list[tuple[str, str]]:
    reply = Reply(text, finish, 0, 0)  # type: ignore[arg-type]
    return [(pair.question, pair.answer) for pair in parse_pairs(reply)]


BOTH = [("Who built it?", "Ann Lee"), ("When was it built?", "in 1874")]


@pytest.mark.parametrize(
    "text",
    [
        "Q: Who built it? A: Ann Lee\nQ: When was it built? A: in 1874",
        "Q: Who built it?\nA: Ann Lee\n\nQ: When was it built?\nA: in 1874\n",
        "1. Q: Who built it? A: Ann Lee\n2. Q: When was it built? A: in 1874",
        "Q1: Who built it? A1: Ann Lee\nQ2: When was it built? A2: in 1874",
        "**Q:** Who built it? **A:** Ann Lee\n**Q:** When was it built? **A:** in 1874",
        "Question: Who built it? Answer: Ann Lee\nquestion: When was it built? answer: in 1874",
        "Here are some: Q: Who built it? A: Ann Lee Q: When was it built? A: in 1874",
        "- Q. Who built it? A. Ann Lee\n- Q. When was it built? A. in 1874",
    ],
)
def test_pairs_are_read_in_many_forms(text: str) -> None:
    assert pairs(text) == BOTH


def test_what_is_cut_off_at_the_end_is_left_out() -> None:
    text = "Q: Who built it? A: Ann Lee\nQ: When was it built? A: in 18"
    assert pairs(text, "length") == BOTH[:1]
    assert pairs(text + "\nQ: How", "length") == [BOTH[0], ("When was it built?", "in 18")]
    assert pairs("Q: Who built it? A: Ann\nQ: When was", "stop") == [("Who built it?", "Ann")]


def test_a_question_comes_once_and_prose_gives_none() -> None:
    assert pairs("Q: Who came? A: Ann\nQ: who came? A: Bob") == [("Who came?", "Ann")]
    assert pairs("There is nothing to ask here. Sorry? A: no") == []
    assert pairs("Q: No question mark A: Ann") == []


@given(st.text(max_size=300))
def test_any_reply_can_be_read(text: str) -> None:
    for question, answer in pairs(text):
        assert question.endswith("?") and "\n" not in question + answer
    number, said = parse_evidence(Reply(text, "stop", 0, 0))
    assert (number is None or number >= 0) and len(said) <= len(text)


@given(st.lists(st.tuples(st.text("abc é'-", min_size=1), st.text("abc 1.,'", min_size=1)), max_size=5))
def test_what_is_written_in_the_form_asked_for_comes_back(written: list[tuple[str, str]]) -> None:
    clean = {" ".join(f"Wh {question}?".split()): answer.strip() or "x" for question, answer in written}
    text = "\n".join(f"Q: {question} A: {answer}" for question, answer in clean.items())
    assert dict(pairs(text)) == clean


def test_short_passages_are_asked_for_fewer_questions() -> None:
    def wanted(length: int, most: int) -> str:
        return question_request(SourcePassage("x" * length), most).messages[-1].content.splitlines()[-1]

    assert wanted(50, 4) == "Write 1 question about this text."
    assert wanted(330, 4) == "Write 3 questions about this text."
    assert wanted(5000, 4) == "Write 4 questions about this text."
    assert wanted(5000, 2) == "Write 2 questions about this text."


def test_requests_about_one_passage_differ_only_at_their_end() -> None:
    passage = SourcePassage("Ann Lee built the tower in 1874.", "Tower")
    one, other = (answer_request(question, passage) for question in ("Who?", "When?"))
    assert one.messages[:-1] == other.messages[:-1] and one.key != other.key
    assert one.messages[-1].content.removesuffix("Who?") == other.messages[-1].content.removesuffix("When?")
    assert answer_request("Who?", passage).key == one.key
    assert question_request(passage, temperature=0.7, seed=1).key != question_request(passage).key


def test_a_title_is_shown_unless_the_text_begins_with_it() -> None:
    assert titled(SourcePassage("It is tall.", "Tower")) == "Title: Tower\nText: It is tall."
    assert titled(SourcePassage("tower of Tarn.", "Tower")) == "Text: tower of Tarn."
    assert titled(SourcePassage("It is tall.")) == "Text: It is tall."


def test_evidence_is_asked_for_by_number_and_read_with_or_without_one() -> None:
    request: Request = evidence_request("Who?", [SourcePassage("One."), SourcePassage("Two.", "B")])
    assert request.messages[-1].content == "[1] Text: One.\n\n[2] Title: B\nText: Two.\n\nQuestion: Who?"
    said = {text: parse_evidence(Reply(text, "stop", 0, 0)) for text in ("[2]: Ann", "Ann [1].", "Ann", "[12]")}
    assert list(said.values()) == [(2, "Ann"), (1, "Ann"), (None, "Ann"), (12, "")]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (UNANSWERED, True),
        ("Not in the text.", True),
        ("", True),
        ("The text does not say", True),
        ("in 1874", False),
    ],
)
def test_a_refusal_is_told_from_an_answer(said: str, expected: bool) -> None:
    assert is_unanswered(said) is expected
