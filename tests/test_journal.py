"""Results that are kept as they come: resumed, refused, and repaired after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError
from quantize.gguf_models.journal import Journal

FACTS = {"model": "abc", "context": 512}


def test_rows_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    journal = Journal.open(path, lambda: FACTS)
    journal.append(3, {"value": 1.5})
    assert Journal.open(path, lambda: FACTS).rows[3]["value"] == 1.5
    assert len(path.read_text().splitlines()) == 2


def test_without_a_path_nothing_is_kept_and_no_fact_is_asked_for() -> None:
    journal = Journal.open(None, lambda: pytest.fail("asked"))
    journal.append(1, {})
    assert journal.rows == {}


def test_a_line_that_a_crash_left_unfinished_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    Journal.open(path, lambda: FACTS).append(0, {"value": 1})
    with path.open("a") as file:
        file.write('{"number": 1, "val')
    journal = Journal.open(path, lambda: FACTS)
    assert list(journal.rows) == [0]
    journal.append(1, {"value": 2})
    assert [row["value"] for row in Journal.open(path, lambda: FACTS).rows.values()] == [1, 2]


def test_a_file_of_other_facts_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    Journal.open(path, lambda: FACTS)
    with pytest.raises(ConfigError, match="another context: 512, now 256"):
        Journal.open(path, lambda: {**FACTS, "context": 256})


@pytest.mark.parametrize("content", ["no JSON\n", "{}\n", "[1]\n", "unfinished", '{"facts": 3}\n', "\udcff\n"])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.txt"
    raw = content.encode("utf-8", "surrogateescape")
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="holds no kept results"):
        Journal.open(path, lambda: FACTS)
    assert path.read_bytes() == raw


def test_a_row_without_a_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text(json.dumps({"facts": FACTS}) + '\n{"value": 1}\n')
    with pytest.raises(ConfigError, match="holds no kept results"):
        Journal.open(path, lambda: FACTS)


def test_a_folder_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        Journal.open(tmp_path, lambda: FACTS)
