"""Two results beside each other: ratios with spreads, what differs, and what is not compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.bench.compare import Ratio, compare, read_result
from edge_sdk.cli import main
from edge_sdk.errors import ConfigError


def result(first: float = 100.0, low: float = 90.0, high: float = 110.0, **more: Any) -> dict[str, Any]:
    row = {"first_token_ms": first, "peak_mb": 200.0, "joules": None, "spread": {"first_token_ms": [low, high]}}
    return {
        "command": "edge bench ask --limit 20",
        "date": "2026-11-21",
        "machine": {"cpu": "one", "cores": 2},
        "settings": {"model": "small", "threads": 2},
        "contenders": {"edge": row},
        **more,
    }


def test_every_figure_of_both_has_its_ratio_and_the_ratios_of_the_ends_of_the_spreads() -> None:
    found = compare(result(), result(50.0, 45.0, 60.0))
    assert found.kind == "edge bench ask"
    assert found.ratios == {
        "contenders.edge.first_token_ms": Ratio(100.0, 50.0, 0.5, 45 / 110, 60 / 90, True),
        "contenders.edge.peak_mb": Ratio(200.0, 200.0, 1.0),
    }
    assert (found.machine, found.settings, found.only_a, found.only_b) == ({}, {}, (), ())


def test_spreads_that_overlap_are_not_clear() -> None:
    assert compare(result(), result(95.0, 80.0, 105.0)).ratios["contenders.edge.first_token_ms"].clear is False


def test_a_figure_of_nothing_has_no_ratio() -> None:
    found = compare(result(0.0, 0.0, 0.0), result()).ratios["contenders.edge.first_token_ms"]
    assert (found.ratio, found.least, found.clear) == (None, None, None)


def test_other_machines_and_settings_are_named_and_compared_all_the_same() -> None:
    other = result(machine={"cpu": "two", "cores": 2}, settings={"model": "small", "k": 8})
    found = compare(result(), other)
    assert found.machine == {"cpu": ("one", "two")}
    assert found.settings == {"threads": (2, None), "k": (None, 8)}
    assert found.ratios


def test_without_settings_what_was_asked_is_compared() -> None:
    first, second = result(), result(command="edge bench ask --limit 30")
    del first["settings"], second["settings"]
    assert compare(first, second).settings == {"command": (first["command"], second["command"])}


def test_figures_of_one_side_are_listed() -> None:
    found = compare(result(rows=3), result(peer={"whole_ms": 1.5}))
    assert (found.only_a, found.only_b) == (("rows",), ("peer.whole_ms",))


@pytest.mark.parametrize("command", ["edge bench engine", "python tests/bench/reader.py", "edge tune"])
def test_different_kinds_are_refused(command: str) -> None:
    with pytest.raises(ConfigError, match="measure different things"):
        compare(result(), result(command=command))


def test_results_without_a_common_figure_are_refused() -> None:
    with pytest.raises(ConfigError, match="share no figure"):
        compare(result(), {"command": "edge bench ask", "other": 1})


def test_the_document_is_the_whole_file_or_its_last_line(tmp_path: Path) -> None:
    whole, printed = tmp_path / "whole.json", tmp_path / "printed.txt"
    whole.write_text(json.dumps(result(), indent=1))
    printed.write_text("a table\n  edge  100.0\n" + json.dumps(result()) + "\n")
    assert read_result(whole) == read_result(printed) == result()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"command": 3}', "words\nand words", "[" * 100_000])
def test_what_is_no_result_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no result of a benchmark"):
        read_result(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_the_command_shows_a_table_and_prints_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, document in zip(paths, (result(), result(50.0, 45.0, 60.0, machine={"cpu": "two"})), strict=True):
        path.write_text(json.dumps(document))
    assert main(["bench", "compare", *map(str, paths)]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert any("other machine: cpu is 'one' in A, 'two' in B" in line for line in shown)
    assert any("first_token_ms *" in line and "0.5" in line for line in shown)
    assert json.loads(last)["ratios"]["contenders.edge.first_token_ms"]["ratio"] == 0.5
    assert main(["bench", "compare", "--json", *map(str, paths)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    paths[1].write_text(json.dumps(result(command="edge bench engine")))
    assert main(["bench", "compare", *map(str, paths)]) == 1
    assert "measure different things" in capsys.readouterr().err
