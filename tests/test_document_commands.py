"""`edge add`, `list`, `label`, `remove` and `search`, as the command line runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_sdk import loading
from edge_sdk.cli import main
from edge_sdk.fakes import FakeEncoder


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for documents; store and encoder are the tests' own."""
    monkeypatch.setenv("EDGE_STORE", str(tmp_path / "s.db"))
    monkeypatch.setattr(loading, "load_encoder", lambda settings: FakeEncoder())
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("title", ["Usage of [/etc/hosts] here", "The [tool.ruff] and [bold] tables :warning:"])
def test_brackets_and_colons_in_titles_names_and_headings_are_shown_as_they_stand(
    docs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    file = docs / "ruff [draft].md"
    file.write_text(f"# {title}\n\nPress the red button.\n")
    assert main(["add", str(file)]) == 0
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert title in out
    assert "ruff [draft].md" in out
    assert main(["search", "red button"]) == 0
    assert f"[1] {file} › {title}" in capsys.readouterr().out


def test_brackets_in_the_path_of_a_store_are_no_markup(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (docs / "a.md").write_text("Press the red button.")
    store = docs.parent / "x[" / "y]" / "s.db"
    assert main(["add", str(docs), "--store", str(store)]) == 0
    assert f"{store} holds 1 documents" in capsys.readouterr().out


def test_a_list_that_is_piped_has_a_line_for_each_document_with_its_whole_name(
    docs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = docs / ("long " * 30 + ".md")
    file.write_text("# Title\n\nPress the red button.")
    main(["add", str(file), "--label", "private"])
    capsys.readouterr()
    assert main(["list"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    name, title, passages, _, label, added = line.split("\t")
    assert (name, title, passages, label) == (str(file), "Title", "1", "private")
    assert added.startswith("20")
    assert total.startswith("1 documents in")


def test_a_list_on_a_narrow_terminal_folds_names_and_cuts_none(
    docs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = docs / ("long" * 30 + ".md")
    file.write_text("Press the red button.")
    main(["add", str(file)])
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    shown = "".join(line.split()[0] for line in out.splitlines()[1:-1] if line.strip())
    assert str(file) in shown


def test_a_folder_stands_for_all_documents_below_it(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (docs / "in").mkdir()
    for name in ("a.md", "in/b.md", "in/c.md"):
        (docs / name).write_text(f"Press the button of {name}.")
    main(["add", str(docs)])
    capsys.readouterr()
    assert result(capsys, "label", str(docs), "private")[1]["labelled"] == 3
    assert result(capsys, "remove", f"{docs}/in/", str(docs / "in/b.md"))[1]["removed"] == [
        str(docs / "in/b.md"),
        str(docs / "in/c.md"),
    ]
    (left,) = result(capsys, "list")[1]["documents"]
    assert (left["name"], left["label"]) == (str(docs / "a.md"), "private")


def test_no_name_is_not_the_folder_at_hand(
    docs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "a.md").write_text("Press the button.")
    main(["add", str(docs)])
    monkeypatch.chdir(docs)
    assert main(["remove", ""]) == 1
    capsys.readouterr()
    assert len(result(capsys, "list")[1]["documents"]) == 1


def test_files_of_a_folder_that_are_left_out_are_told(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.md", "b.csv", "c.py", "d.CSV", "e", ".hidden"):
        (docs / name).write_text(f"Press the button of {name}.")
    assert main(["add", str(docs)]) == 0
    assert "\n4 left out (.csv, .py, no suffix): " in capsys.readouterr().out
    for order in ([str(docs), str(docs / "b.csv")], [str(docs / "b.csv"), str(docs)]):
        told = result(capsys, "add", *order)[1]
        assert told["left_out"] == [str(docs / name) for name in ("c.py", "d.CSV", "e")]
        assert len(told["documents"]) == 2
    assert main(["add", str(docs / "a.md")]) == 0
    assert "left out" not in capsys.readouterr().out


def test_the_help_of_search_says_that_scores_are_fused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--help"]) == 0
    out = capsys.readouterr().out
    assert "scores fused" in out and "rank" not in out
