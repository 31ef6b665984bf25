"""Tasks that do not give themselves away, answers that are kept, and figures that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teachers import ScriptedTeacher

from edge_sdk.errors import ConfigError, EdgeError, EngineError
from edge_sdk.fakes import FakeEngine, FakeReader
from quantize.metrics import contains
from quantize.recipes.evaluation import (
    Given,
    Task,
    answer_all,
    compare,
    measure,
    probabilities,
    rights,
    tasks_of,
)
from quantize.recipes.systems import DecoderSystem, Evidence, SentenceRule, TeacherSystem, best_sentence, size_of
from quantize.training_data.example import Example

EXAMPLES = [
    *(Example(f"Who built tower {n}?", f"Tower {n} was built by builder{n}.", (f"builder{n}",)) for n in range(30)),
    *(Example(f"Who owns tower {n}?", f"Tower {n} was built by builder{n}.") for n in range(5)),
]


def test_every_task_has_its_answer_in_its_own_passage_only() -> None:
    tasks = tasks_of(EXAMPLES, distractors=2)
    answered = [task for task in tasks if task.gold is not None]
    assert {task.question for task in answered} == {each.question for each in EXAMPLES if each.answers}
    for task in answered:
        assert len(set(task.passages)) == 3
        holding = [at for at, text in enumerate(task.passages) if contains(text, task.answers)]
        assert holding == [task.gold]
    assert {task.gold for task in answered} == {0, 1, 2}


def test_some_questions_come_again_without_their_passage() -> None:
    tasks = tasks_of(EXAMPLES, distractors=2, absent=0.5)
    absent = [task for task in tasks if task.gold is None]
    again = [task for task in absent if task.question.startswith("Who built")]
    assert len(absent) - len(again) == 5 and 5 < len(again) < 25
    own = {each.question: each for each in EXAMPLES}
    for task in again:
        assert len(task.passages) == 3 and own[task.question].passage not in task.passages and not task.answers
    assert len(tasks_of(EXAMPLES, distractors=2, absent=1.0)) == 65


def test_tasks_follow_from_the_examples_and_the_seed() -> None:
    assert tasks_of(EXAMPLES, distractors=2) == tasks_of(EXAMPLES[::-1], distractors=2)
    assert tasks_of(EXAMPLES, distractors=2, seed=1) != tasks_of(EXAMPLES, distractors=2, seed=2)
    assert len([task for task in tasks_of(EXAMPLES, distractors=0, most=7, absent=0) if task.answers]) == 7


class Scripted:
    """A system that says what a list says; `asked` counts."""

    name, fingerprint, bytes = "scripted", "scripted 1", 5

    def __init__(self, says: Sequence[Given], stop_after: int | None = None) -> None:
        self.says, self.stop_after, self.asked = says, stop_after, 0

    def answers(self, tasks: Sequence[Task], cancel: Event | None = None) -> Iterator[tuple[int, Given]]:
        for at, task in reversed(list(enumerate(tasks))):
            if self.asked == self.stop_after:
                raise EngineError("out of memory")
            self.asked += 1
            yield at, self.says[int(task.question)]


TASKS = [Task(str(n), (f"word{n} here", "other"), (f"word{n}",), 0) for n in range(6)]
TASKS += [Task(str(n), ("other", "more")) for n in range(6, 10)]
SAYS = [Given(f"word{n}", 0, probability=0.9, tokens=2, milliseconds=4.0) for n in range(4)]
SAYS += [Given("the word5", 1, probability=0.2), Given("the word5", 1, probability=0.2)]
SAYS += [Given("", refused=True, probability=0.1)] * 3 + [Given("word9", 0, probability=0.6)]


def test_answers_are_kept_and_not_asked_for_again(tmp_path: Path) -> None:
    kept, first, second = tmp_path / "kept.jsonl", Scripted(SAYS, stop_after=4), Scripted(SAYS)
    with pytest.raises(EngineError):
        answer_all(first, TASKS, kept=kept)
    assert answer_all(second, TASKS, kept=kept) == SAYS == answer_all(Scripted(SAYS), TASKS)
    assert (first.asked, second.asked) == (4, 6)
    with pytest.raises(ConfigError, match="another tasks"):
        answer_all(second, TASKS[:3], kept=kept)


def test_a_cancelled_system_has_no_answers_and_one_that_leaves_some_out_fails() -> None:
    class Tired(Scripted):
        def answers(self, tasks: Sequence[Task], cancel: Event | None = None) -> Iterator[tuple[int, Given]]:
            yield 0, self.says[0]

    cancel = Event()
    with pytest.raises(EdgeError, match="scripted gave no answer to 9 of 10 tasks"):
        answer_all(Tired(SAYS), TASKS, cancel=cancel)
    cancel.set()
    assert answer_all(Tired(SAYS), TASKS, cancel=cancel) is None


def test_figures_are_means_over_the_tasks_that_they_are_about() -> None:
    found = {name: round(value["mean"], 4) for name, value in measure(TASKS, SAYS).items()}
    assert found["token_f1"] == round((4 + 0 + 1) / 6, 4)  # articles do not count
    assert found["exact"] == found["contains"] == round(5 / 6, 4)
    assert found["cites_right"] == 0.8
    assert found["abstains"] == 0.75 and found["abstains_wrongly"] == 0.0
    assert found["tokens"] == 2 and found["milliseconds"] == 4
    assert found["auroc"] == pytest.approx((4 * 5 + 3 + 0.5) / 25, abs=1e-4)
    assert found["brier"] == pytest.approx(
        np.mean([0.1**2] * 4 + [0.2**2, 0.8**2] + [0.1**2] * 3 + [0.6**2]), abs=1e-4
    )
    assert found["tells_absent"] == pytest.approx((4 * 4 + 2 * 3) / 24, abs=1e-4)
    for value in measure(TASKS, SAYS).values():
        assert value["low"] <= value["mean"] <= value["high"] or "ece" in str(value)


def test_a_refusal_of_what_has_no_answer_is_no_right_answer() -> None:
    assert rights(TASKS, SAYS) == [1, 1, 1, 1, 0, 1, 0, 0, 0, 0]


def test_signals_become_probabilities_where_a_system_states_none() -> None:
    random = np.random.default_rng(0)
    tasks = [Task(str(n), ("one two",), ("one",), 0) for n in range(200)]
    right = random.random(200) < 0.5
    made = [Given("one" if yes else "two", 0, signals={"score": float(yes + random.normal())}) for yes in right]
    sure = probabilities(tasks, made)
    assert sure is not None and measure(tasks, made)["auroc"]["mean"] > 0.65
    assert abs(np.mean(sure) - right.mean()) < 0.05
    assert probabilities(tasks, [Given("one", 0)] * 200) is None
    assert "auroc" not in measure(tasks, [Given("two", 0)] * 200)


def test_a_lead_is_paired() -> None:
    other = [Given("", refused=True)] * 10
    lead = compare("contains", TASKS, SAYS, other)
    assert lead["mean"] == pytest.approx(5 / 6) and lead["low"] > 0.4
    assert compare("token_f1", TASKS, SAYS, SAYS) == {"mean": 0.0, "low": 0.0, "high": 0.0}


# --- systems ----------------------------------------------------------------------------------------


def test_a_decoder_is_asked_with_all_passages_and_its_mark_is_the_citation(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 30)
    engine = FakeEngine(["Builder three [2].", "The documents do not say."])
    system = DecoderSystem(engine, [file], "tiny")
    (_, said), (_, refused) = list(system.answers([Task("Who?", ("First text.", "Second text."))] * 2))
    assert (said.text, said.cited, said.refused) == ("Builder three.", 1, False)
    assert refused.refused and refused.cited is None and refused.signals["answers"] == 0
    assert "First text." in engine.prompts[0] and "[2] Second text." in engine.prompts[0]
    assert said.signals["least log-probability"] <= said.signals["mean log-probability"] < 0
    assert system.bytes == 30 == size_of(tmp_path)


def test_a_decoder_that_was_taught_with_sentences_is_given_those_of_the_reader() -> None:
    passages = ("It rained. Nobody came.", "The tower is red. It was Ann who built it.")
    reader = FakeReader({"Whose work is this?": "Ann"})
    engine = FakeEngine("Ann [1].")
    evidence = Evidence(8, reader=reader)  # type: ignore[arg-type]
    system = DecoderSystem(engine, [], "tiny", evidence=evidence)
    ((_, said),) = list(system.answers([Task("Whose work is this?", passages)]))
    assert "[1] It was Ann who built it." in engine.prompts[0]
    assert not any(other in engine.prompts[0] for other in ("rained", "is red"))
    assert said.cited == 1  # the passage's place in the task, not in the prompt
    others = {
        DecoderSystem(engine, [], "tiny", evidence=each).fingerprint for each in (None, Evidence(8), evidence)
    }
    assert len(others) == 3


def test_an_extractive_decoder_is_held_to_what_the_reader_found() -> None:
    task = Task("Whose work is this?", ("It rained. Nobody came.", "The tower is red. It was Ann who built it."))
    evidence = Evidence(8, reader=FakeReader({"Whose work is this?": "Ann"}))  # type: ignore[arg-type]
    held, free = (
        DecoderSystem(FakeEngine("It is Bob's [1]."), [], "tiny", evidence=evidence, extractive=each)
        for each in (True, False)
    )
    ((_, said),), ((_, other),) = (list(each.answers([task])) for each in (held, free))
    assert (said.text, said.cited, other.text) == ("Ann", 1, "It is Bob's.")
    assert held.fingerprint != free.fingerprint


def test_a_decoder_whose_context_is_too_small_says_so() -> None:
    system = DecoderSystem(FakeEngine(context=200), [], "small")
    with pytest.raises(EngineError, match="do not fit"):
        list(system.answers([Task("Who?", ("word " * 300,))]))


def test_a_teacher_names_the_passage_that_it_took_the_answer_from() -> None:
    said = {"Who?": "[2] Ann", "Where?": "Not in the text.", "When?": "[7] 1889"}
    teacher = ScriptedTeacher(lambda asked: said[asked.rpartition("Question: ")[2]])
    tasks = [Task(question, ("One.", "Two.")) for question in said]
    found = dict(TeacherSystem(teacher, "scripted").answers(tasks))
    assert [(found[at].text, found[at].cited, found[at].refused) for at in range(3)] == [
        ("Ann", 1, False),
        ("Not in the text.", None, True),
        ("1889", None, False),
    ]


def test_the_rule_cites_the_sentence_with_the_questions_words() -> None:
    task = Task("Who built the tower?", ("It rains. It pours.", "It is old. Ann built the tower."), ("Ann",), 1)
    ((_, found),) = SentenceRule().answers([task])
    assert (found.text, found.cited) == ("Ann built the tower.", 1)


@settings(max_examples=50)
@given(st.text(max_size=40), st.lists(st.text(max_size=60), max_size=3))
def test_the_rule_takes_any_text(question: str, passages: list[str]) -> None:
    score, passage, sentence = best_sentence(question, passages)
    assert 0 <= score <= 1 + 1e-9
    assert (passage is None) == (sentence == "")
    assert passage is None or sentence in passages[passage]
