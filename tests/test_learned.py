"""Learned answers: who is served what, for how long, and what never leaves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import EdgeError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.fallback import learned, learned_table
from edge_sdk.fallback.learned import LearnedAnswers, Learning
from edge_sdk.fallback.learned_table import LearnedAnswer, Provenance
from edge_sdk.storage.store import Store

ENCODER = FakeEncoder()
SOURCE = Provenance("http://localhost/v1", "large", "2026-11-21T10:00:00+00:00")
QUESTION, ANSWER = "Who built the old mill in Bern?", "Ada Brandt built it."


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as store:
        yield store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers(store: Store, clock: Clock) -> LearnedAnswers:
    return LearnedAnswers(store.database, ENCODER.fingerprint, clock=clock)


def vector(text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return ENCODER.encode([text])[0]


def learn(
    answers: LearnedAnswers,
    question: str = QUESTION,
    answer: str = ANSWER,
    source: Provenance = SOURCE,
    *passages: str,
) -> Learning:
    return answers.learn(question, vector(question), answer, source, passages=passages)


def find(answers: LearnedAnswers, question: str = QUESTION) -> LearnedAnswer | None:
    return answers.find(question, vector(question))


def taught(answers: LearnedAnswers, question: str = QUESTION, answer: str = ANSWER) -> int:
    id = learn(answers, question, answer).id
    assert id is not None
    return answers.accept(id).id


# --- served -----------------------------------------------------------------------------------------


def test_an_answer_in_quarantine_is_not_served_and_an_accepted_one_is(answers: LearnedAnswers) -> None:
    learning = learn(answers)
    assert learning.state == "quarantine"
    assert find(answers) is None
    assert learning.id is not None
    answers.accept(learning.id)
    found = find(answers, "In Bern, who built the old mill?")
    assert found is not None
    assert (found.answer, found.state) == (ANSWER, "accepted")
    assert found.similarity == pytest.approx(1, abs=0.01)
    assert found.provenance.agreement == ("accepted by the user",)


def test_the_origin_says_that_it_is_not_from_the_documents(answers: LearnedAnswers) -> None:
    taught(answers)
    found = find(answers)
    assert found is not None
    assert found.origin == (
        f"not from your documents: large at http://localhost/v1 answered {QUESTION!r} on 2026-11-21 "
        "(accepted by the user)"
    )


@pytest.mark.parametrize(
    "question",
    [
        "Who built the old mill in Basel?",
        "Who built the new mill in Bern?",
        "Who did not build the old mill in Bern?",
        "When was the old mill in Bern built?",
        "Who sold it?",
        "",
    ],
)
def test_another_question_is_never_served(answers: LearnedAnswers, question: str) -> None:
    taught(answers)
    answers_to_all = LearnedAnswers(answers._database, ENCODER.fingerprint, clock=answers._clock)
    assert answers_to_all.find(question, vector(QUESTION)) is None  # even if its vector were the same


def test_the_nearest_question_that_asks_the_same_is_served(answers: LearnedAnswers) -> None:
    for year in range(1990, 2010):
        taught(answers, f"Who won the cup in {year}?", f"Team {year}.")
    for year in (1990, 2000, 2009):
        found = find(answers, f"In {year}, who won the cup?")
        assert found is not None
        assert found.answer == f"Team {year}."
    assert find(answers, "Who won the cup in 2010?") is None


def test_a_distant_vector_is_not_compared(answers: LearnedAnswers) -> None:
    taught(answers)
    assert answers.find(QUESTION, vector("something else altogether")) is None
    assert answers.find(QUESTION, np.zeros(ENCODER.dimension, np.float32)) is None
    assert answers.find(QUESTION, np.full(ENCODER.dimension, np.nan, np.float32)) is None


def test_vectors_of_another_encoder_are_not_compared_until_embedded_again(
    store: Store, answers: LearnedAnswers
) -> None:
    taught(answers)
    other = FakeEncoder(64)
    theirs = LearnedAnswers(store.database, other.fingerprint, clock=answers._clock)
    asked = other.encode([QUESTION])[0]
    assert theirs.find(QUESTION, asked) is None
    assert theirs.reindex(other.encode) == 1
    assert theirs.reindex(other.encode) == 0
    assert theirs.find(QUESTION, asked) is not None
    assert find(answers) is None


def test_what_another_process_does_is_seen_at_once(store: Store, answers: LearnedAnswers, clock: Clock) -> None:
    assert find(answers) is None
    with Store.open(store.path) as second:
        other = LearnedAnswers(second.database, ENCODER.fingerprint, clock=clock)
        id = taught(other)
        assert find(answers) is not None
        other.reject(id)
        assert find(answers) is None


def test_an_answer_expires(answers: LearnedAnswers, clock: Clock) -> None:
    id = taught(answers)
    clock.now += learned.LIFETIME_DAYS * 86_400 - 1
    assert find(answers) is not None
    clock.now += 1
    assert find(answers) is None
    assert [each.state for each in answers.answers()] == ["expired"]
    assert answers.answers("accepted") == answers.distillation_set() == []
    answers.accept(id)
    assert find(answers) is not None


def test_uses_are_counted(answers: LearnedAnswers) -> None:
    id = taught(answers)
    answers.count_use(id)
    answers.count_use(id)
    assert [each.uses for each in answers.answers()] == [2]


# --- learned ----------------------------------------------------------------------------------------


def test_the_same_answer_from_two_calls_is_accepted_and_says_so(answers: LearnedAnswers) -> None:
    learn(answers)
    second = learn(answers, "By whom was the old mill in Bern built?", "Ada Brandt built it")
    assert second.state == "accepted"
    assert "two calls gave the same answer" in second.reason
    assert len(answers.answers()) == 1
    assert learn(answers).reason == "known already"


def test_two_calls_that_disagree_leave_both_in_quarantine(answers: LearnedAnswers) -> None:
    learn(answers)
    assert learn(answers, answer="Ida Berg built it.").state == "quarantine"
    assert find(answers) is None
    assert len(answers.answers("quarantine")) == 2


def test_an_answer_that_a_passage_holds_is_accepted_and_says_so(answers: LearnedAnswers) -> None:
    learning = learn(
        answers, QUESTION, ANSWER, SOURCE, "Tea.", "The old mill in Bern was built by Ada Brandt in 1780."
    )
    assert (learning.state, learning.reason) == (
        "accepted",
        "learned: passage 2 of those retrieved holds its words",
    )


def test_what_speaks_for_an_answer_does_not_overrule_what_the_user_accepted(answers: LearnedAnswers) -> None:
    taught(answers)
    learning = learn(answers, QUESTION, "Ida Berg.", SOURCE, "The old mill in Bern was built by Ida Berg.")
    assert learning.state == "quarantine"
    found = find(answers)
    assert found is not None
    assert found.answer == ANSWER


def test_of_two_accepted_answers_to_one_question_the_later_is_served(answers: LearnedAnswers) -> None:
    first = taught(answers)
    taught(answers, answer="Ida Berg built it.")
    found = find(answers)
    assert found is not None
    assert found.answer == "Ida Berg built it."
    assert {each.id: each.state for each in answers.answers()}[first] == "expired"


def test_a_rejected_text_is_neither_served_nor_learned_again(answers: LearnedAnswers, clock: Clock) -> None:
    answers.reject(taught(answers))
    clock.now += 10 * 365 * 86_400
    again = learn(answers, "In Bern, who built the old mill?", "Ada Brandt built it", SOURCE,
                  "The old mill in Bern was built by Ada Brandt.")  # fmt: skip
    assert again == Learning(None, None, "not learned: this answer was rejected for this question")
    assert find(answers) is None
    assert learn(answers, answer="Ida Berg built it.").state == "quarantine"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who built it?", ANSWER),
        ("What is the weather in Bern?", "Rain."),
        ("Who built " + "the mill " * 200, ANSWER),
        (QUESTION, ""),
        (QUESTION, " \n"),
        (QUESTION, "I don't know."),
        (QUESTION, "I’m sorry, but I cannot say."),
        (QUESTION, "The documents do not say."),
        (QUESTION, "x" * 10_000),
    ],
)
def test_what_is_no_knowledge_is_not_learned(answers: LearnedAnswers, question: str, answer: str) -> None:
    learning = learn(answers, question, answer)
    assert (learning.id, learning.state) == (None, None)
    assert learning.reason.startswith("not learned: ")
    assert answers.answers() == []


def test_a_redacted_turn_waits_for_the_user_and_is_never_exported(answers: LearnedAnswers) -> None:
    redacted = Provenance("http://localhost/v1", "large", "2026-11-21", redacted=True)
    passage = "The old mill in Bern was built by Ada Brandt."
    for _ in range(3):
        learning = learn(answers, QUESTION, ANSWER, redacted, passage)
        assert learning.state == "quarantine"
    assert find(answers) is None
    assert (
        learn(answers, QUESTION, "Ada Brandt built it").state == "quarantine"
    )  # a redacted one speaks for nothing
    answers.drop(answers.answers()[0].id)
    id = learn(answers, QUESTION, ANSWER, redacted).id
    assert id is not None
    answers.accept(id)
    assert find(answers) is not None
    assert answers.distillation_set() == []


def test_only_accepted_answers_are_exported_the_oldest_first(answers: LearnedAnswers) -> None:
    taught(answers)
    taught(answers, "Who owns the boat in Bern?", "Ida Berg.")
    learn(answers, "Who sold the car in Bern?", "Tom Moser.")
    exported = answers.distillation_set()
    assert [each["answer"] for each in exported] == [ANSWER, "Ida Berg."]
    assert exported[0]["provenance"] == {
        "remote": "http://localhost/v1",
        "model": "large",
        "date": "2026-11-21T10:00:00+00:00",
        "agreement": ("accepted by the user",),
        "redacted": False,
    }


def test_text_that_sqlite_cannot_hold_is_learned_with_replacements(answers: LearnedAnswers) -> None:
    id = learn(answers, QUESTION, "Ada\0 Brandt \ud800", Provenance("http://localhost/\ud800", "\0", "today")).id
    assert id is not None
    assert answers.accept(id).answer == "Ada\ufffd Brandt \ufffd"


def test_no_more_are_kept_than_the_bound_and_the_accepted_stay_longest(
    answers: LearnedAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_table, "MOST", 5)
    taught(answers)
    for number in range(10):
        learn(answers, f"What is in box {number}?", f"Tool {number}.")
    kept = answers.answers()
    assert len(kept) == 5
    assert kept[-1].state == "accepted"
    assert [each.answer for each in kept[:-1]] == ["Tool 9.", "Tool 8.", "Tool 7.", "Tool 6."]


@pytest.mark.parametrize("method", ["accept", "reject", "drop"])
def test_a_number_that_is_not_there_is_one_line(answers: LearnedAnswers, method: str) -> None:
    with pytest.raises(EdgeError, match="there is no learned answer 7; see `edge learned list`"):
        getattr(answers, method)(7)


def test_a_row_whose_vector_or_provenance_is_damaged_neither_fails_nor_leaves(
    store: Store, answers: LearnedAnswers
) -> None:
    damaged, fine = taught(answers), taught(answers, "Who owns the boat in Bern?", "Ida Berg.")
    with sqlite3.connect(store.path) as raw:
        raw.execute("UPDATE learned_answers SET codes = x'01', provenance = '[' WHERE id = ?", (damaged,))
        raw.execute("UPDATE meta SET value = value + 1 WHERE key = 'learned'")
    raw.close()
    assert find(answers) is None
    found = find(answers, "Who owns the boat in Bern?")
    assert found is not None
    assert found.id == fine
    assert [each["answer"] for each in answers.distillation_set()] == ["Ida Berg."]
