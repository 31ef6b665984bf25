"""What a decoder's answers are worth, on answers of which that is known."""

from __future__ import annotations

import pytest
from made_lessons import examples, passage

pytest.importorskip("torch")

from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEngine
from edge_sdk.prompt import NOT_FOUND, Reading
from quantize.students.decoder_data import Task
from quantize.students.decoder_evaluation import Given, ask_tasks, decoder_report, reading_tasks
from quantize.training_data.example import Example

READING = Reading(400, True)


def given(gold: int, text: str, *, cited: tuple[int, ...] = (), tokens: int = 5, finished: bool = True) -> Given:
    return Given(Task("When?", ("a", "b"), gold, ("1889",)), text, cited, tokens, -0.1, finished)


def test_a_report_counts_each_kind_of_answer() -> None:
    found = decoder_report(
        [
            given(1, "1889 [1]", cited=(1,)),
            given(1, "1889 [2]", cited=(2,)),
            given(2, "It was 1889 [2][2]", cited=(2, 2), tokens=41),
            given(2, NOT_FOUND),
            given(0, NOT_FOUND),
            given(0, "1889 [1]", cited=(1,), finished=False),
        ]
    )
    assert (found.n, found.n_absent) == (4, 2)
    assert (found.contains.mean, found.exact_match.mean) == (0.75, 0.5)
    assert found.token_f1.mean == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert found.cites_right == pytest.approx(2 / 3)
    assert (found.abstains, found.abstains_wrongly) == (0.5, 0.25)
    assert (found.tokens, found.within_40) == (14.0, pytest.approx(4 / 6))
    nothing = decoder_report([given(1, "no")])
    assert (nothing.cites_right, nothing.abstains) == (None, None)
    with pytest.raises(ConfigError, match="no question was asked with its passage"):
        decoder_report([given(0, "1889")])


def test_tasks_hold_the_passage_once_or_not_at_all() -> None:
    tasks = reading_tasks([*examples(), Example("Why?", passage(0))], absent=1.0)
    present = [task for task in tasks if task.gold]
    assert len(present) == len(tasks) / 2 == 16
    for task in tasks:
        holding = [number for number, text in enumerate(task.passages, 1) if task.answers[0] in text]
        assert holding == ([task.gold] if task.gold else [])
        assert len(set(task.passages)) == 3
    assert {task.gold for task in present} == {1, 2, 3}
    assert reading_tasks(examples(), seed=3) == reading_tasks(examples(), seed=3)
    with pytest.raises(ConfigError, match="there are not 2 passages without the answer"):
        reading_tasks(examples(2), absent=0.0)


def test_answers_of_an_engine_are_scored_as_the_runtime_reads_them() -> None:
    """An engine that finds the mill's year where it stands, and cites where it found it."""

    def say(prompt: str) -> str:
        town = prompt.rpartition("mill of ")[2].partition("?")[0]
        for number in (1, 2, 3):
            block = prompt.partition(f"[{number}] ")[2].partition("\n\n")[0]
            if block.startswith(town):
                return f"{block.split('from ')[1][:4]} [{number}]"
        return NOT_FOUND

    asked = [each for each in examples() if "mill" in each.question]
    found = list(ask_tasks(FakeEngine(say), reading_tasks(asked, absent=1.0), READING))
    report = decoder_report(found)
    assert (report.exact_match.mean, report.cites_right, report.abstains) == (1.0, 1.0, 1.0)
    assert (report.abstains_wrongly, report.within_40) == (0.0, 1.0)
