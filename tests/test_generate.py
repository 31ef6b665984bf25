"""Generated questions come with answers that stand in their passages, are checked, and are paid for once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

from made_teachers import ScriptedTeacher

from quantize.teachers.kept import Kept
from quantize.teachers.teacher import Reply, Request, Teacher
from quantize.training_data.drops import Drops
from quantize.training_data.generate import generate_examples
from quantize.training_data.passages import SourcePassage

TOWER = SourcePassage(
    "Ann Lee built the tower of Tarn in 1874. It burned whale oil. " + "It was tall. " * 30, "Tower"
)
BRIDGE = SourcePassage("The bridge of Aller cost 12,000 marks and was opened by Bob Oak. " * 6, "Bridge")
ASKED = {
    "Tower": "Q: Who built the tower of Tarn? A: ann lee\n"
    "Q: What did the tower of Tarn burn? A: whale oil\n"
    "Q: When was it built? A: 1874\n"
    "Q: Who lit the tower of Tarn? A: Carl Elm",
    "Bridge": "Q: What did the bridge of Aller cost? A: 12,000 marks\n"
    "Q: Who opened the bridge of Aller? A: Bob Oak\n"
    "Q: What is the bridge of Aller? A: the bridge of Aller",
}
ANSWERS = {
    "Who built the tower of Tarn?": "Ann Lee",
    "What did the tower of Tarn burn?": "coal",
    "What did the bridge of Aller cost?": "12,000 marks",
    "Who opened the bridge of Aller?": "Bob Oak",
}


def script(asked: str) -> str:
    if "Question: " in asked:
        return ANSWERS[asked.rpartition("Question: ")[2]]
    return ASKED[asked.split("\n")[0].removeprefix("Title: ")]


def test_only_checked_questions_that_stand_alone_are_given_in_the_order_of_the_passages() -> None:
    drops, seen = Drops(), list[tuple[float, float | None]]()
    teacher = ScriptedTeacher(script)
    found = list(
        generate_examples(
            [TOWER, BRIDGE],
            teacher,
            wave=1,
            source="made",
            drops=drops,
            progress=lambda done, total, detail: seen.append((done, total)),
        )
    )
    assert [(each.example.question, each.example.answers, each.title) for each in found] == [
        ("Who built the tower of Tarn?", ("Ann Lee",), "Tower"),
        ("What did the bridge of Aller cost?", ("12,000 marks",), "Bridge"),
        ("Who opened the bridge of Aller?", ("Bob Oak",), "Bridge"),
    ]
    assert all(each.example.span and each.example.source == "made" for each in found)
    assert {name: reason.count for name, reason in drops.reasons.items()} == {
        "answered otherwise when asked again": 1,
        "question needs its passage": 1,
        "answer not in the passage": 1,
        "question holds the answer": 1,
    }
    assert drops.seen == 7 and seen == [(0, None), (1, None), (2, 2)]


def test_a_question_gets_the_title_of_what_its_passage_is_about() -> None:
    oak = SourcePassage("Ann Oak was a poet of Tarn. She was born in 1801. " + "She wrote. " * 40, "Ann Oak")
    asked = (
        "Q: When was she born? A: 1801\nQ: When was Ann Oak born? A: 1801\n"
        "Q: What was her profession? A: poet\nQ: What is her name? A: Ann Oak"
    )
    teacher = ScriptedTeacher(
        lambda text: ("poet" if "profession" in text else "1801") if "Question: " in text else asked
    )
    drops = Drops()
    found = [each.example.question for each in generate_examples([oak], teacher, drops=drops)]
    assert found == ["When was Ann Oak born?", "What was Ann Oak's profession?"]
    assert drops.reasons["question holds the answer"].samples == ["What is Ann Oak's name? Ann Oak"]


def test_waves_of_any_size_give_the_same_examples() -> None:
    one, many = (
        [each.example for each in generate_examples([TOWER, BRIDGE], ScriptedTeacher(script), wave=wave)]
        for wave in (1, 64)
    )
    assert one == many


def test_a_reply_without_questions_and_no_passages_give_nothing() -> None:
    drops = Drops()
    assert not list(generate_examples([TOWER], ScriptedTeacher(lambda asked: "I cannot."), drops=drops))
    assert drops.reasons["no question in the reply"].samples == ["I cannot."]
    assert not list(generate_examples([], ScriptedTeacher(script)))


def test_a_cancelled_run_gives_what_was_checked_and_asks_no_more() -> None:
    teacher, cancel = ScriptedTeacher(script, stop_after=4), Event()
    found = [each.example.question for each in generate_examples([TOWER, BRIDGE], teacher, wave=1, cancel=cancel)]
    assert found == ["Who built the tower of Tarn?"] and len(teacher.asked) == 4


class FromKept:
    """A teacher that is asked only for what a file of replies does not hold."""

    def __init__(self, teacher: Teacher, kept: Kept) -> None:
        self._teacher, self._kept, self.fingerprint = teacher, kept, teacher.fingerprint

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        """See `Teacher.replies`."""
        replies = self._kept.ask(self._teacher, requests, cancel=cancel)
        yield from ((at, reply) for at, reply in enumerate(replies) if reply is not None)


def test_a_run_that_was_stopped_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    asked, expected = list[str](), list(generate_examples([TOWER, BRIDGE], ScriptedTeacher(script)))
    for stop_after in (0, 1, 3, None, None):
        teacher = ScriptedTeacher(script, stop_after=stop_after)
        with Kept(tmp_path / "replies.db") as kept:
            found = list(generate_examples([TOWER, BRIDGE], FromKept(teacher, kept), cancel=Event()))
        assert len(teacher.asked) == stop_after or stop_after is None
        asked += teacher.asked
    assert found == expected and len(asked) == len(set(asked)) == 2 + len(ANSWERS)


def test_passages_are_taken_only_when_their_wave_comes() -> None:
    taken: list[str] = []

    def passages() -> Iterator[SourcePassage]:
        for passage in (TOWER, BRIDGE):
            taken.append(passage.title)
            yield passage

    run = generate_examples(passages(), ScriptedTeacher(script), wave=1)
    assert next(run).title == "Tower" and taken == ["Tower"]
