"""Questions come in through one door whatever their shape, and what does not fit is named by its row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from quantize.training_data.data_files import read_data, read_titles
from quantize.training_data.example import Example, write_examples


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_our_own_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    examples = [Example("Who?", "Ann came.", ("Ann",), "here"), Example("When?", "Ann came.", (), "there")]
    write_examples(tmp_path / "mine.jsonl", examples)
    assert list(read_data(tmp_path / "mine.jsonl")) == examples


def test_questions_that_name_passages_find_them_beside_the_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "passages.jsonl", [{"id": "p1", "title": "Tower", "text": "Built in 1874."}])
    rows = [
        {"id": 1, "question": "When?", "answers": ["1874", "in 1874", "1874"], "passage_id": "p1"},
        {"id": 2, "question": "Who?", "answers": [], "passage_id": "p1"},
    ]
    file = write_rows(tmp_path / "questions.jsonl", rows)
    expected = [
        Example("When?", "Built in 1874.", ("1874", "in 1874"), "questions"),
        Example("Who?", "Built in 1874.", (), "questions"),
    ]
    assert list(read_data(tmp_path)) == list(read_data(file)) == expected
    assert read_titles(tmp_path) == read_titles(file) == {"Built in 1874.": "Tower"}
    assert read_titles(tmp_path / "elsewhere" / "questions.jsonl") == {}


def test_questions_with_knowledge_have_one_answer(tmp_path: Path) -> None:
    row = {"question": "Who?", "knowledge": "Ann came.", "answer": "Ann", "hallucinated": "Bob"}
    write_rows(tmp_path / "qa.jsonl", [row])
    assert list(read_data(tmp_path)) == [Example("Who?", "Ann came.", ("Ann",), "qa")]


GOOD = {"question": "Who?", "passage": "Ann came.", "answers": ["Ann"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"passage": "Ann.", "answers": []}], r"row 2 .* is without 'question'"),
        ([GOOD, {**GOOD, "question": 7}], r"row 2 .* has the question '7', which is no text"),
        ([GOOD, {**GOOD, "passage": " "}], "row 2 .* has the passage"),
        ([GOOD, {**GOOD, "answers": "Ann"}], "row 2 .* has no list of answers"),
        ([GOOD, {**GOOD, "answers": [1]}], "row 2 .* has no list of answers"),
        ([{"question": "Is it?", "passage": "Yes.", "answer": True}], "row 1 .* has no list of answers"),
        (
            [{"question": "Who?", "answer": "Ann"}],
            "row 1 .* has 'question', 'answer', which is no question with its",
        ),
        ([{}], "row 1 .* has no fields"),
        ([{"question": "Who?", "passage_id": "p1", "answers": []}], r"there is no .*passages\.jsonl"),
        ([{"question": "Who?", "knowledge": "Ann came."}], "row 1 .* is without 'answer'"),
        ([[1]], "line 1 is not a JSON object"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, rows: Sequence[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(read_data(write_rows(tmp_path / "rows.jsonl", rows)))


def test_a_passage_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "passages.jsonl", [{"id": "p1", "text": "Ann came."}])
    write_rows(tmp_path / "questions.jsonl", [{"question": "Who?", "answers": [], "passage_id": "p9"}])
    with pytest.raises(ConfigError, match=r"row 1 .* names the passage 'p9'"):
        list(read_data(tmp_path))
    write_rows(tmp_path / "passages.jsonl", [{"id": "p9"}])
    with pytest.raises(ConfigError, match=r"row 1 of .*passages\.jsonl is without 'text'"):
        list(read_data(tmp_path))


def test_a_folder_without_questions_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no questions\.jsonl"):
        list(read_data(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_data(tmp_path / "missing.jsonl"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda some: st.lists(some, max_size=3)
)
FIELDS = st.sampled_from(["question", "passage", "answers", "answer", "knowledge", "passage_id", "source", "id"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(FIELDS, JSON), max_size=3))
def test_any_rows_give_examples_or_one_error(tmp_path_factory: pytest.TempPathFactory, rows: list[object]) -> None:
    path = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)
    try:
        found = list(read_data(path))
    except ConfigError as error:
        assert str(path.parent) in str(error)
    else:
        assert len(found) == len(rows) and all(example.question.strip() for example in found)
