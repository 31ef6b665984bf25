"""Lessons: prompts are the runtime's own, passages are shared, answers say where they are from, or that none is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from gguf_files import tiny_llama
from made_lessons import examples, passage

pytest.importorskip("llama_cpp")

from edge_sdk.citations import is_refusal
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.errors import ConfigError
from edge_sdk.prompt import NOT_FOUND, Reading, build_prompt
from edge_sdk.readers.extract import Extract, Span
from quantize.students.decoder_data import (
    Lessons,
    Neighbours,
    Sheet,
    Task,
    TaskMaker,
    as_hits,
    make_sheets,
    task_prompt,
)
from quantize.students.decoder_rivals import other_answers
from quantize.training_data.example import Example

READING = Reading(1500, True)
END = 2  # <|im_end|>


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GgufEngine]:
    path = tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", context=4096)
    with GgufEngine.open(path, context=2048, threads=1) as opened:
        yield opened


def texts(engine: GgufEngine, sheet: Sheet) -> list[tuple[str, str]]:
    """Each branch's whole prompt and its answer, as text."""
    found = []
    for branch in sheet.branches:
        whole = [*sheet.prefix, *branch.tokens]
        start = len(sheet.prefix) + branch.answer
        assert whole[-1] == END
        spelled = [b"".join(engine._model.piece(each) for each in part) for part in (whole[:start], whole[start:])]
        found.append((spelled[0].decode(), spelled[1].decode()))
    return found


def test_prompts_are_those_of_the_runtime_token_for_token(engine: GgufEngine) -> None:
    maker = TaskMaker(examples(), Lessons(brief=0.5, unanswerable=0.3))
    tasks = [task for group in maker.sheets(4) for task in group]
    sheets = make_sheets(maker, engine, READING, END, seed=4)
    read = {
        tuple([*sheet.prefix, *branch.tokens][: len(sheet.prefix) + branch.answer])
        for sheet in sheets
        for branch in sheet.branches
    }
    expected = set()
    for task in tasks:
        prompt = build_prompt(
            task.question,
            as_hits(task.passages),
            render=engine.render,
            count=engine.count,
            budget=READING.prompt_tokens,
            limit=2048,
            style=task.style,
            numbered=True,
        )
        expected.add(tuple(engine.tokens(prompt.text)))
    assert read == expected


def test_answers_cite_their_passage_or_say_that_there_is_none(engine: GgufEngine) -> None:
    lessons = Lessons(brief=0.0, unanswerable=0.4)
    asked = {each.question: each for each in examples()}
    seen: Counter[str] = Counter()
    for tasks in TaskMaker(examples(), lessons).sheets(1):
        for task in tasks:
            example = asked[task.question]
            if task.gold:
                assert task.passages[task.gold - 1] == example.passage
                assert task.targets(task.gold)[0] == f"{example.answers[0]} [{task.gold}]"
            else:
                assert example.passage not in task.passages
                assert is_refusal(task.targets(None)[0])
            seen["gold" if task.gold else "absent"] += 1
    assert seen["gold"] == 12  # two passages of eight are on no sheet of three
    assert 3 <= seen["absent"] <= 12
    for sheet in make_sheets(TaskMaker(examples(), lessons), engine, READING, END, seed=1):
        for prompt, answer in texts(engine, sheet):
            number = answer.rpartition("[")[2].rstrip("]")
            blocks = prompt.split("\n\n")
            assert is_refusal(answer) or any(f"[{number}]" in block and answer[:3] in block for block in blocks)


def test_a_sheet_is_read_once_for_all_its_questions(engine: GgufEngine) -> None:
    sheets = make_sheets(TaskMaker(examples(), Lessons(brief=0.0)), engine, READING, END)
    assert all(len(sheet.branches) >= 6 for sheet in sheets)
    apart = sum(len(sheet.prefix) + len(branch.tokens) for sheet in sheets for branch in sheet.branches)
    assert sum(sheet.length for sheet in sheets) < 0.4 * apart


def test_with_chosen_sentences_each_question_has_its_own_and_they_hold_the_answer(engine: GgufEngine) -> None:
    maker, reading = TaskMaker(examples(), Lessons(unanswerable=0.3)), Reading(1500, True, 20)
    sheets = make_sheets(maker, engine, reading, END, seed=3)
    asked = {each.question: each for each in examples()}
    seen: Counter[bool] = Counter()
    for sheet in sheets:
        for prompt, answer in texts(engine, sheet):
            question = prompt.rpartition("Question: ")[2].partition("\n")[0]
            read = prompt.rpartition("user\n")[2].rpartition("\n\nQuestion: ")[0]
            assert asked[question].passage not in read  # some sentences only
            seen[is_refusal(answer)] += 1
            assert is_refusal(answer) or answer.partition("<")[0].partition(" [")[0] in read
    assert seen[True] >= 3 and seen[False] >= 8
    assert all(sheet.prefix for sheet in sheets)  # what all prompts begin with is read once


def test_an_answer_that_stands_in_what_is_shown_is_learned_however_it_is_written(engine: GgufEngine) -> None:
    glued = "The film has a director.Aleksander Ford made it.It rained."
    asked = [Example("Who made the film?", glued, ("Aleksander Ford",)), *examples()[:4]]
    for reading in (READING, Reading(1500, True, 30)):
        sheets = make_sheets(TaskMaker(asked, Lessons(unanswerable=0.0)), engine, reading, END)
        told = [answer for sheet in sheets for _, answer in texts(engine, sheet)]
        assert any(answer.strip().startswith("Aleksander Ford") for answer in told)


def test_a_model_that_is_judged_gets_no_help_from_the_answer(engine: GgufEngine) -> None:
    passages = ("It rained in May. The figure is 330 metres.", "Nobody came. All went well.")
    prompts = {
        task_prompt(Task("What is its size?", passages, 1, (answer,)), engine, Reading(1500, True, 4)).text
        for answer in ("330 metres", "rained", "May")
    }
    assert len(prompts) == 1


def test_a_passage_without_room_takes_its_questions_along(engine: GgufEngine) -> None:
    """What is left out is left out whole: no question is taught without its passage, no number points elsewhere."""
    maker = TaskMaker(examples(), Lessons(brief=0.0, unanswerable=0.0))
    whole = {branch for sheet in make_sheets(maker, engine, READING, END) for branch in sheet.branches}
    sheets = make_sheets(maker, engine, Reading(430, True), END)
    assert 0 < sum(len(sheet.branches) for sheet in sheets) < len(whole)
    for sheet in sheets:
        for prompt, answer in texts(engine, sheet):
            number = answer.rpartition("[")[2].rstrip("]")
            assert f"[{number}] " in prompt
            assert answer.partition(" [")[0] in prompt.partition(f"[{number}] ")[2].partition("\n\n")[0]


def test_long_answers_are_left_out_and_equal_seeds_give_equal_sheets(engine: GgufEngine) -> None:
    maker = TaskMaker(examples(), Lessons())
    assert make_sheets(maker, engine, READING, END, seed=5) == make_sheets(maker, engine, READING, END, seed=5)
    assert make_sheets(maker, engine, READING, END, seed=5) != make_sheets(maker, engine, READING, END, seed=6)
    assert make_sheets(maker, engine, READING, END, longest=2) == []


def test_neighbours_share_rare_words() -> None:
    near = Neighbours(["the old mill of Arlen", "bread and salt", "a mill stands in Arlen", "salt is dear"])
    assert near.of(0) == [2]
    assert near.of(1) == [3]
    assert Neighbours(["one two", "two", "one", "none", "four"]).of(0) == [1, 2]  # of equal ones, the first first


def test_every_passage_is_on_one_sheet_and_examples_without_answers_are_asked_too() -> None:
    given = [*examples(6), Example("Who built the mill of Arlen?", passage(0))]
    tasks = [task for group in TaskMaker(given, Lessons(unanswerable=0.0)).sheets(2) for task in group]
    assert Counter(task.question for task in tasks) == Counter(each.question for each in given)
    (without,) = [task for task in tasks if task.question == "Who built the mill of Arlen?"]
    assert (without.gold, passage(0) in without.passages) == (0, True)


def test_lessons_that_cannot_be_given_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 passages are too few for sheets of 3"):
        TaskMaker(examples(2), Lessons())
    for wrong in ({"passages": 0}, {"near": 1.5}, {"brief": -0.1}, {"most": 0}, {"unanswerable": 1.0}):
        with pytest.raises(ConfigError):
            Lessons(**wrong)  # type: ignore[arg-type]


def test_brief_questions_are_put_without_numbers(engine: GgufEngine) -> None:
    maker = TaskMaker(examples(), Lessons(brief=1.0, unanswerable=0.0))
    (task, *_), *_ = maker.sheets(0)
    assert "[1]" not in task_prompt(task, engine, READING).text
    for sheet in make_sheets(maker, engine, READING, END):
        assert all("[" not in answer for _, answer in texts(engine, sheet))


def test_an_extractive_decoder_learns_beside_what_the_reader_finds(engine: GgufEngine) -> None:
    reading, maker = (
        Reading(1500, True, 60, extractive=True),
        TaskMaker(examples(), Lessons(brief=0.5, unanswerable=0.3)),
    )

    def read(question: str, passages: Sequence[str]) -> Extract:
        """Every word of the passages that begins with a capital or a digit."""
        spans = [
            Span(at, found.start(), found.end(), found[0], -1.0)
            for at, text in enumerate(passages)
            for found in re.finditer(r"\b[A-Z0-9]\w+", text)
        ]
        return Extract(spans[0], (), 1.0, 1.0, (1.0,) * len(passages), 0.9, likely=tuple(spans))

    answers, told = 0, 0
    for sheet in make_sheets(maker, engine, reading, END, read=read, seed=4):
        for branch in sheet.branches:
            answer = branch.tokens[branch.answer :]
            assert len(branch.rivals) == len(answer)
            assert all(token not in rivals for token, rivals in zip(answer, branch.rivals, strict=True))
            answers, told = answers + 1, told + any(branch.rivals)
    assert answers > 5 and told == answers
    free = make_sheets(maker, engine, Reading(1500, True, 60), END, read=read, seed=4)
    assert not any(branch.rivals for sheet in free for branch in sheet.branches)


def test_the_right_answer_in_other_letters_is_no_rival() -> None:
    hits = as_hits(["Ann Lee built it. Bob came."])
    shown = build_prompt("Who built it?", hits, render=lambda each: "", count=len, budget=900, limit=900)
    likely = tuple(Span(0, start, end, hits[0].passage.text[start:end], -1.0) for start, end in ((0, 7), (18, 21)))
    extract = Extract(likely[0], (), 1.0, 1.0, (1.0,), 0.9, likely=likely)
    assert other_answers(extract, hits, shown, ["ann  lee. [1]"], numbered=True) == ["Bob [1]", NOT_FOUND]
    assert other_answers(extract, hits, shown, [NOT_FOUND], numbered=False) == ["Ann Lee", "Bob"]
