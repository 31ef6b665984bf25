"""The evaluation of answers: metrics over a small made-up set, resumable, with clear errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.prompt import Reading
from quantize.evaluate import Prediction, evaluate_answers, read_questions, summarise

PASSAGES = [
    {"id": "p1", "title": "Rivers", "text": "The Rhine flows through Basel and Cologne to Rotterdam."},
    {"id": "p2", "title": "Stars", "text": "Sirius is the brightest star of the night sky."},
]
QUESTIONS = [
    {
        "id": "q1",
        "question": "Which river flows through Basel?",
        "answers": ["Rhine", "the Rhine"],
        "passage_id": "p1",
    },
    {"id": "q2", "question": "What is the brightest star?", "answers": ["Sirius"], "passage_id": "p2"},
]
PREDICTION = Prediction(
    "q", "?", ("Rhine",), "p1", ("p2", "p1"), "the Rhine", ("p1",), "local", 2.0, 100, 20, 10, 500.0, 250.0
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in (("passages", PASSAGES), ("questions", QUESTIONS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Engines that always say Sirius, behind the usual way of loading one; a new one each time."""
    loaded: list[FakeEngine] = []

    def load(settings: Settings) -> tuple[FakeEngine, Reading]:
        loaded.append(FakeEngine("Sirius [1]"))
        return loaded[-1], Reading()

    monkeypatch.setattr("edge_sdk.loading.load_encoder", lambda settings: FakeEncoder())
    monkeypatch.setattr("edge_sdk.loading.load_engine", load)
    return loaded


def settings(home: Path) -> Settings:
    return load_settings({"home": home / "home"}, {})


def test_questions_are_answered_and_averaged(data: Path, engines: list[FakeEngine]) -> None:
    result = evaluate_answers(data, settings(data))
    assert result["n"] == 2
    assert result["recall_at_5"] == 1.0
    assert result["exact_match"] == result["contains"] == result["token_f1"] == 0.5
    assert result["model"] == "fake"


def test_an_interrupted_run_goes_on_where_it_stopped(data: Path, engines: list[FakeEngine]) -> None:
    out = data / "out.jsonl"
    evaluate_answers(data, settings(data), limit=1, out=out)
    result = evaluate_answers(data, settings(data), out=out)
    assert [len(engine.prompts) for engine in engines] == [1, 1]
    assert result["n"] == len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_averages_are_worked_out_as_by_hand() -> None:
    slow = replace(PREDICTION, ranked=("p1",), text="no", seconds=4.0, prefill_ms=1500.0)
    result = summarise([PREDICTION, slow])
    assert result["recall_at_1"] == 0.5
    assert result["recall_at_5"] == 1.0
    assert result["exact_match"] == 0.5
    assert result["seconds_per_question"] == 3.0
    assert result["prefill_tokens_per_second"] == pytest.approx(160 / 2.0)
    assert result["decode_tokens_per_second"] == pytest.approx(20 / 0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 1 is not JSON"),
        ('{"id": "q"}', "without 'question'"),
        ("", "holds no question"),
        ("[]", "line 1 is not a JSON object"),
        ('{"id": "q", "question": "?", "answers": "tea", "passage_id": "1"}', "answers are no list"),
    ],
)
def test_a_bad_set_is_one_line(data: Path, engines: list[FakeEngine], line: str, message: str) -> None:
    (data / "questions.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        evaluate_answers(data, settings(data))


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_questions(tmp_path / "none")
