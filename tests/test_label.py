"""Given questions get an answer with its evidence, or are found to have none, and both are checked."""

from __future__ import annotations

from made_teachers import ScriptedTeacher

from quantize.training_data.drops import Drops
from quantize.training_data.label import Unlabelled, label_questions
from quantize.training_data.passages import SourcePassage

BAY = SourcePassage("The bay of Tarn is deep, and 900 people live there.", "Tarn")
TOWER = SourcePassage("Ann Lee built the tower of Tarn in 1874.", "Tower")


def labelled(first: dict[str, str], again: dict[str, str], drops: Drops) -> list[tuple[str, str, tuple[str, ...]]]:
    def script(asked: str) -> str:
        question = asked.rpartition("Question: ")[2]
        return (first if asked.startswith("[1]") else again)[question]

    questions = [Unlabelled(question, (BAY, TOWER)) for question in first]
    found = label_questions(questions, ScriptedTeacher(script), drops=drops)
    return [(each.example.question, each.title, each.example.answers) for each in found]


def test_the_cited_passage_is_the_evidence_or_else_the_one_that_holds_the_answer() -> None:
    drops = Drops()
    first = {
        "Who built the tower?": "[2] ann lee",
        "When was the tower built?": "[1] 1874",
        "How many live in Tarn?": "900",
    }
    again = {
        "Who built the tower?": "Ann Lee",
        "When was the tower built?": "1874",
        "How many live in Tarn?": "900 people",
    }
    assert labelled(first, again, drops) == [
        ("Who built the tower?", "Tower", ("Ann Lee",)),
        ("When was the tower built?", "Tower", ("1874",)),
        ("How many live in Tarn?", "Tarn", ("900", "900 people")),
    ]
    assert drops.kept == 3


def test_an_answer_in_several_passages_is_that_of_the_one_about_the_question() -> None:
    first, again = (
        {"Who built the tower of Tarn in 1874?": "Tarn"},
        {"Who built the tower of Tarn in 1874?": "Tarn"},
    )
    assert labelled(first, again, Drops())[0][1] == "Tower"


def test_unanswered_twice_is_unanswerable_and_once_is_dropped() -> None:
    drops = Drops()
    first = {
        "Who owns the bay?": "not in the text",
        "Who lives there?": "not in the text",
        "Who was Bob?": "[7] Bob",
    }
    again = {"Who owns the bay?": "not in the text", "Who lives there?": "900 people"}
    assert labelled(first, again, drops) == [("Who owns the bay?", "Tarn", ())]
    assert {name: reason.count for name, reason in drops.reasons.items()} == {
        "answer not in the passages": 1,
        "answered otherwise when asked again": 1,
    }
