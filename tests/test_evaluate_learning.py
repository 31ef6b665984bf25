"""The measurement of learning: a stream that repeats itself, and questions told from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.fallback.learned import LearnedAnswers
from edge_sdk.fallback.learned_table import Provenance
from edge_sdk.storage.store import Store
from quantize.evaluate import Question
from quantize.evaluate_learning import evaluate_learning, measure_questions, question_stream
from quantize.paraphrases import near_misses, paraphrases

ENCODER = FakeEncoder()
SOURCE = Provenance("http://localhost/v1", "large", "2026-11-21")
TOWNS = "Bern Basel Chur Thun Biel Olten Aarau Vevey Sion Brig".split()
THINGS = (
    "mill bridge tower market school theatre harbour station castle library museum fountain garden church bakery "
    "prison palace temple hotel brewery"
).split()
PLACES = [(town, thing) for town in TOWNS for thing in THINGS]
QUESTIONS = [
    Question(
        f"q{number}", f"Who built the first {thing} of {town} in {1500 + number}?", (f"Ada {town}{thing}",), "p"
    )
    for number, (town, thing) in enumerate(PLACES)
]


class Assistant:
    """Asks the remote for what it has not learned; every answer is accepted by the user."""

    def __init__(self, path: Path, remote: Callable[[str], str], trusting: bool = False) -> None:
        self.store = Store.open(path)
        self.learned = LearnedAnswers(self.store.database, ENCODER.fingerprint)
        self.remote, self.trusting = remote, trusting

    def ask(self, question: str) -> tuple[str, str]:
        (vector,) = ENCODER.encode([question])
        if (found := self.learned.find(question, vector)) is not None:
            return "local", found.answer
        if self.trusting and (any_one := self.learned.answers("accepted")):  # the sabotage: whatever there is
            return "local", any_one[0].answer
        answer = self.remote(question)
        learning = self.learned.learn(question, vector, answer, SOURCE)
        if learning.id is not None:
            self.learned.accept(learning.id)
        return "remote", answer


@pytest.fixture
def remote() -> Callable[[str], str]:
    """Knows every answer by the year in the question, and is right three times of four."""

    def answer(question: str) -> str:
        number = int("".join(filter(str.isdigit, question))) - 1500
        return QUESTIONS[number].answers[0] if number % 4 else "Ida Berg"

    return answer


def run(path: Path, remote: Callable[[str], str], *, trusting: bool = False) -> Any:
    assistant = Assistant(path, remote, trusting)
    with assistant.store:
        return evaluate_learning(question_stream(QUESTIONS), assistant.ask)


def test_with_learning_the_remote_share_falls_and_quality_does_not(
    tmp_path: Path, remote: Callable[[str], str]
) -> None:
    result = run(tmp_path / "store.db", remote)
    first, _, last = result["parts"]
    assert first["remote_share"] == 1.0
    assert last["remote_share"] < 0.4
    assert result["remote_fall"] == first["remote_share"] - last["remote_share"]
    assert result["kinds"]["repeat"]["remote_share"] == 0.0
    assert result["kinds"]["paraphrase"]["remote_share"] < 0.3
    assert result["kinds"]["new"]["remote_share"] == 1.0
    assert result["paired"]["contains"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert {row["route"] for row in result["questions"]} == {"local", "remote"}


def test_serving_any_answer_is_found_out(tmp_path: Path, remote: Callable[[str], str]) -> None:
    """The sabotage twin: the remote share falls even faster, and the quality with it."""
    result = run(tmp_path / "store.db", remote, trusting=True)
    assert result["parts"][-1]["remote_share"] == 0.0
    assert result["parts"][-1]["contains"]["high"] < 0.5


def test_without_learning_the_remote_share_stays(remote: Callable[[str], str]) -> None:
    result: Any = evaluate_learning(question_stream(QUESTIONS), lambda question: ("remote", remote(question)))
    assert result["remote_fall"] == 0.0
    assert [part["remote_share"] for part in result["parts"]] == [1.0, 1.0, 1.0]


def test_a_stream_repeats_only_what_came_before_and_is_the_same_again() -> None:
    stream = question_stream(QUESTIONS, 200, seed=3)
    assert stream == question_stream(QUESTIONS, 200, seed=3) != question_stream(QUESTIONS, 200, seed=4)
    assert len(stream) == 200
    for at, asked in enumerate(stream):
        assert (asked.of is None) == (asked.kind == "new")
        if asked.of is not None:
            assert asked.of < at
            original = stream[asked.of]
            assert (original.kind, original.answers) == ("new", asked.answers)
            assert (asked.question == original.question) or asked.kind == "paraphrase"
    known = [sum(asked.kind != "new" for asked in stream[at : at + 66]) for at in (0, 66, 133)]
    assert known[0] == 0 < known[1] < known[2]
    new = [asked.question for asked in stream if asked.kind == "new"]
    assert len(new) == len(set(new))


def test_too_few_questions_are_one_line() -> None:
    with pytest.raises(ConfigError, match="5 questions are too few for a stream of 300"):
        question_stream(QUESTIONS[:5])
    with pytest.raises(ConfigError, match="no 3 parts"):
        evaluate_learning([], lambda question: ("local", ""))


def test_questions_are_told_from_each_other_by_rules_where_a_cosine_cannot() -> None:
    texts = [question.question for question in QUESTIONS[:40]]
    result: Any = measure_questions([*texts, *texts], ENCODER.encode)
    assert result["questions"] == 40
    assert result["others"]["cosine_floor"]["share"] > 0.9
    assert result["others"]["floor_and_rules"]["count"] == 0
    assert 0 < result["others"]["floor_and_rules"]["upper"] < 0.1
    assert result["others"]["pairs"] == []
    assert result["near_misses"]["all"]["floor_and_rules"]["share"] < 0.01
    assert result["near_misses"]["number"]["cosine_floor"]["n"] == 40
    assert result["paraphrases"]["polite"]["floor_and_rules"]["share"] > 0.5


def test_two_texts_that_ask_the_same_are_shown() -> None:
    texts = ["Who built the old mill in Bern?", "In Bern, who built the old mill?", "Where is Chur?"]
    result: Any = measure_questions(texts, ENCODER.encode)
    assert result["others"]["floor_and_rules"]["count"] == 2
    assert {frozenset(pair[1:]) for pair in result["others"]["pairs"]} == {frozenset(texts[:2])}


def test_one_question_has_no_other() -> None:
    result: Any = measure_questions(["Who built the mill?"], ENCODER.encode)
    assert result["others"]["cosine_floor"]["count"] == 0


@pytest.mark.parametrize(
    ("question", "kind", "text"),
    [
        ("When did it open?", "question word", "In what year did it open?"),
        ("Who wrote the book?", "who by name", "What is the name of the person who wrote the book?"),
        ("What is the capital of Chad?", "imperative", "Name the capital of Chad."),
        ("Who won in 1990?", "word order", "In 1990, who won?"),
        ("What is the largest movie?", "contraction", "What's the largest movie?"),
    ],
)
def test_paraphrases_are_made_by_rules(question: str, kind: str, text: str) -> None:
    assert (kind, text) in list(paraphrases(question))


def test_a_near_miss_is_never_the_question_itself() -> None:
    texts = ["Who led Bern from Chur in 1990?", "Is the largest mill of Bern older than that of Thun?"]
    for text in texts:
        made = list(near_misses(text, texts))
        assert len(made) > 4
        assert all(other != text for _, other in made)
        assert made == list(near_misses(text, texts))
