"""Examples go to files and come back; their ids and sides follow from their texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from quantize.training_data.example import Example, read_examples, write_examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EXAMPLES = st.builds(Example, TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple), TEXT)


@settings(deadline=None, max_examples=25)
@given(st.lists(EXAMPLES, max_size=5))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    path = tmp_path_factory.mktemp("examples") / "made.jsonl"
    assert write_examples(path, examples) == len(examples)
    assert list(read_examples(path)) == examples
    assert [path.name] == [file.name for file in path.parent.iterdir()]


@given(EXAMPLES)
def test_the_span_is_that_of_the_first_answer_that_stands_in_the_passage(example: Example) -> None:
    held = [answer for answer in example.answers if answer and answer in example.passage]
    assert (example.span is None) == (not held)
    if example.span is not None:
        assert example.passage[slice(*example.span)] == held[0]


def test_the_side_follows_from_the_passage_and_the_id_from_question_and_passage() -> None:
    one, other = Example("Who?", "Ann came.", ("Ann",)), Example("When?", "Ann came.")
    assert one.held_out == other.held_out and 0 <= one.held_out < 1 and one.id != other.id
    assert one.id == Example("Who?", "Ann came.", (), "elsewhere").id and len(one.id) == 16


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    write_examples(path, [Example("Who?", "Ann.")])

    def broken() -> Iterator[Example]:
        yield Example("When?", "Now.")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_examples(path, broken())
    assert [each.question for each in read_examples(path)] == ["Who?"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_that_is_no_example_is_named(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    rows = [{"question": "Who?", "passage": "Ann.", "answers": []}, {"question": "Who?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="row 2"):
        list(read_examples(path))
