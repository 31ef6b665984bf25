"""`edge learned`: list, accept, reject, drop, export."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.cli import main
from edge_sdk.fakes import FakeEncoder
from edge_sdk.fallback.learned import LearnedAnswers
from edge_sdk.fallback.learned_table import Provenance
from edge_sdk.storage.store import Store

ENCODER = FakeEncoder()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with three answers in quarantine; something was redacted in the last one's turn."""
    with Store.open(tmp_path / "store.db") as store:
        answers = LearnedAnswers(store.database, ENCODER.fingerprint)
        for name, redacted in (("mill", False), ("boat", False), ("car", True)):
            question = f"Who sold the {name} in [Bern]?"
            source = Provenance("http://localhost/v1", "large", "2026-11-21", redacted=redacted)
            answers.learn(question, ENCODER.encode([question])[0], f"Ada sold the {name}.", source)
    return tmp_path / "store.db"


def run(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> Any:
    assert main(["learned", *words, "--store", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def states(capsys: pytest.CaptureFixture[str], path: Path) -> dict[int, str]:
    return {each["id"]: each["state"] for each in run(capsys, path, "list")["answers"]}


def test_the_user_accepts_rejects_and_drops(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(capsys, path) == {1: "quarantine", 2: "quarantine", 3: "quarantine"}
    assert [each["id"] for each in run(capsys, path, "accept", "1", "3")["accepted"]] == [1, 3]
    assert run(capsys, path, "reject", "2")["rejected"][0]["question"] == "Who sold the boat in [Bern]?"
    assert states(capsys, path) == {1: "accepted", 2: "rejected", 3: "accepted"}
    assert [each["id"] for each in run(capsys, path, "list", "--state", "rejected")["answers"]] == [2]
    assert run(capsys, path, "drop", "2", "3") == {"dropped": [2, 3]}
    assert states(capsys, path) == {1: "accepted"}


def test_the_export_holds_accepted_answers_and_nothing_redacted(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, path, "accept", "1", "3")
    file = tmp_path / "set.jsonl"
    assert run(capsys, path, "export", str(file)) == {"file": str(file), "answers": 1, "left_out_as_redacted": 1}
    (row,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert (row["question"], row["answer"]) == ("Who sold the mill in [Bern]?", "Ada sold the mill.")
    assert row["provenance"]["agreement"] == ["accepted by the user"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.glob("set*")] == ["set.jsonl"]


def test_people_read_the_question_the_answer_and_where_it_is_from(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learned", "accept", "1", "--store", str(path)]) == 0
    assert capsys.readouterr().out == "accepted 1: Who sold the mill in [Bern]?\n"
    assert main(["learned", "list", "--store", str(path)]) == 0
    out = capsys.readouterr().out
    assert (
        "1  accepted  Who sold the mill in [Bern]?\n    Ada sold the mill.\n    large, 2026-11-21, expires" in out
    )
    assert "served 0 times; accepted by the user" in out


def test_errors_are_one_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learned", "accept", "9", "--store", str(path)]) == 1
    assert capsys.readouterr().err == "edge: there is no learned answer 9; see `edge learned list`\n"
    assert main(["learned", "export", str(tmp_path / "none" / "set.jsonl"), "--store", str(path)]) == 1
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
    assert main(["learned", "accept", "x", "--store", str(path)]) == 2
    assert main(["learned", "--store", str(path)]) == 2
