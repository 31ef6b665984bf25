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
