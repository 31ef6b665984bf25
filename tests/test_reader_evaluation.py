"""What a reader is worth on questions it never saw, and what is fitted to it; the scores of readers are known."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from threading import Event

import pytest
from made_readers import write_reader

from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.readers.reader import Extract, Reader, Span
from quantize.students.reader_calibration import Case, fit_answerability, fit_description
from quantize.students.reader_evaluation import evaluate_reader, rank_passages

PASSAGES = {
    "tea": "The tea stands for four minutes.",
    "bike": "Oil the chain and check the tyres.",
    "bread": "The bread stands for an hour.",
    "ferry": "Ferries cross the river at noon.",
}
QUESTIONS = [
    {"id": "1", "question": "How long does the tea stand?", "answers": ["four minutes"], "passage_id": "tea"},
    {"id": "2", "question": "When do ferries cross?", "answers": ["noon", "at noon"], "passage_id": "ferry"},
]
WORDS = {"[CLS]": (0.0, 0.0, 0.0), "four": (6.0, 0.0, 0.0), "minutes": (0.0, 6.0, 0.0), "noon": (5.0, 5.0, 0.0)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": name, "title": "", "text": text} for name, text in PASSAGES.items()]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return tmp_path


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("edge_sdk.loading.load_encoder", lambda settings: FakeEncoder(64))
    return load_settings({"home": tmp_path / "home"}, {})


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    write_reader(folder, WORDS)
    return Reader.open(folder, threads=1)


def test_a_reader_is_measured_in_every_setting(data: Path, settings: Settings, reader: Reader) -> None:
    ranked = rank_passages(data, settings)
    assert [each.gold for each in ranked] == [PASSAGES["tea"], PASSAGES["ferry"]]
    assert all(each.gold not in each.near and each.gold in each.retrieved for each in ranked)
    found = evaluate_reader(reader, ranked)
    assert found["n"] == 2
    for name in ("near", "random", "retrieved"):
        # Asked for noon it says so; asked for the tea it says it too, where that passage is beside: the scores of
        # this reader do not depend on the question.
        assert 0.5 <= found[name]["token_f1"]["mean"] <= 1.0
        assert found[name]["milliseconds"] > 0
    assert found["near"]["cites_right"]["mean"] == 1.0
    assert set(found["answerable"]["near"]) == {"support", "passage"}
    assert found["answerable"]["near"]["passage"]["mean"] == 0.5  # says nothing: the same everywhere
    assert found["lost_to_retrieval"]["mean"] == pytest.approx(
        found["near"]["token_f1"]["mean"] - found["retrieved"]["token_f1"]["mean"]
    )


def test_ranking_can_be_limited_and_cancelled(data: Path, settings: Settings) -> None:
    assert len(rank_passages(data, settings, limit=1)) == 1
    cancel = Event()
    cancel.set()
    assert rank_passages(data, settings, cancel=cancel) == []


def cases(count: int) -> list[Case]:
    """Half with the answer; without it, every fifth passage has a word that the reader likes."""
    held = [Case("When?", (f"Ferry {at} leaves at noon.",), ("noon",)) for at in range(count)]
    words = ["four" if at % 5 == 0 else "nothing" for at in range(count)]
    return held + [Case("When?", (f"Ferry {at} has {word}.",)) for at, word in enumerate(words)]


def test_the_probability_that_is_fitted_is_calibrated_in_the_large(reader: Reader) -> None:
    told = fit_description(reader, cases(40))
    assert told.answerability is not None
    assert told.limits == reader.description.limits and told.passage_weight == 0.0  # no other weight reads better
    extracts = [reader.score(case.question, case.passages).extract(30) for case in cases(40)]
    odds = [told.answerability.probability(each.support, max(each.passages)) for each in extracts]
    assert sum(odds) == pytest.approx(40, abs=0.5)
    assert sum(odds[:40]) / 40 > 0.9 > 0.3 > sum(odds[40:]) / 40


def test_too_few_cases_are_refused(reader: Reader) -> None:
    with pytest.raises(ConfigError, match="19 of 38 cases have an answer; a fit needs 20"):
        fit_description(reader, cases(19))


def test_a_fit_of_separable_evidence_stays_finite() -> None:
    def extract(support: float) -> Extract:
        return Extract(Span(0, 0, 1, "x", -1.0), (), inf, support, (support,), None)

    found = fit_answerability([extract(9.0)] * 30 + [extract(-9.0)] * 30, [True] * 30 + [False] * 30)
    assert found.probability(9.0, 9.0) > 0.97 > 0.03 > found.probability(-9.0, -9.0)
    assert max(abs(each) for each in (found.bias, found.span, found.passage)) < 10
