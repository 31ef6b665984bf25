"""`edge ask` and `edge chat`, as the command line runs them, over fakes."""

from __future__ import annotations

import sys
from pathlib import Path

import loopback
import pytest
from loopback import Loopback

from edge_sdk import loading
from edge_sdk.cli import main
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.prompt import Reading

QUESTION = "How do I reset the pump?"
WRITTEN = "Press the red button [1] [7]."
ANSWER = "Press the red button [1]."  # there is no seventh passage


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A store with one document, and a model that says `WRITTEN`."""
    monkeypatch.setenv("EDGE_STORE", str(tmp_path / "s.db"))
    monkeypatch.setattr(loading, "load_encoder", lambda settings: FakeEncoder())
    monkeypatch.setattr(loading, "load_engine", lambda settings: (FakeEngine(WRITTEN), Reading(600, True)))
    (tmp_path / "manual.md").write_text("# Pump\n\nPress the red button to reset the pump.\n")
    assert main(["add", str(tmp_path / "manual.md")]) == 0
    capsys.readouterr()
    return tmp_path / "s.db"


def test_a_terminal_shows_what_is_written_and_then_the_answer_where_it_differs(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["ask", QUESTION]) == 0
    assert capsys.readouterr().out.startswith(f"{WRITTEN}\n{ANSWER}\n")


def test_elsewhere_only_the_answer_is_written(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", QUESTION]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{ANSWER}\n")
    assert WRITTEN not in out


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_an_error(store: Path, capsys: pytest.CaptureFixture[str], question: str) -> None:
    assert main(["ask", question]) == 1
    assert capsys.readouterr().err == "edge: the question is empty; give its words, in quotes\n"


@pytest.mark.parametrize("offline", [False, True])
def test_the_remote_is_said_to_be_asked_only_where_it_is(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    remote = ("--remote-model", "m", "--privacy", "prefer_local", *(["--offline"] if offline else []))
    with Loopback(loopback.document("Blue.")) as server:
        assert main(["ask", "Which colour has the sky?", "--remote", server.url, *remote]) == 0
        assert server.connections == (0 if offline else 1)
    out = capsys.readouterr().out
    assert ("[asking the remote" in out) != offline
    assert ("Blue." in out) != offline


def test_a_model_that_does_not_exist_is_an_error_where_no_answer_needs_it_too(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "Which colour has the sky?"]) == 0
    capsys.readouterr()
    assert main(["ask", "Which colour has the sky?", "--model", "nosuch"]) == 1
    assert "model 'nosuch' is not in the catalog" in capsys.readouterr().err
