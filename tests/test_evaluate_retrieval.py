from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Event

import pytest

from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.retrieval.fulltext import match_expression
from quantize.collection import Query, read_documents, read_queries
from quantize.evaluate_retrieval import SYSTEMS, evaluate_retrieval, plain_expression, reciprocal_rank_fusion

DOCS = [
    {"id": "tea", "title": "Tea", "text": "Boil the water and let the tea stand for four minutes."},
    {"id": "bike", "title": "", "text": "Oil the chain and check the tyres before a long ride."},
    {"id": "bread", "title": "Bread", "text": "Bread: knead the dough, let it rise, bake it for an hour."},
    {"id": "long", "title": "Rivers", "text": "The river flows through the town. " * 80 + "Ferries cross at noon."},
]
QUERIES = [
    {"id": "1", "text": "How long does the tea stand?"},
    {"id": "2", "text": "When do ferries cross?"},
    {"id": "3", "text": "Nobody judged this one."},
]
QRELS = [
    {"query": "1", "doc": "tea", "rel": 2},
    {"query": "1", "doc": "bread", "rel": 1},
    {"query": "2", "doc": "long", "rel": 1},
    {"query": "3", "doc": "bike", "rel": 0},
]


def write(folder: Path, **files: Iterable[Mapping[str, object]]) -> Path:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path, docs=DOCS, queries=QUERIES, qrels=QRELS)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("edge_sdk.loading.load_encoder", lambda settings: FakeEncoder(512))
    return load_settings({"home": tmp_path / "home"}, {})


def test_every_system_answers_every_judged_question(data: Path, settings: Settings) -> None:
    result = evaluate_retrieval(data, settings)
    assert result["n"] == 2
    assert result["passages"] == 6  # the long document has three
    systems = result["systems"]
    assert isinstance(systems, dict)
    assert set(systems) >= {"bm25", "vector", "rrf", "edge"}
    assert set(systems) <= set(SYSTEMS)
    for figures in systems.values():
        for metric in ("ndcg_at_10", "recall_at_10", "mrr"):
            low, high = figures["intervals"][metric]
            assert 0 < low <= figures[metric] <= high <= 1
        assert figures["ms_per_query"] >= figures["ms_without_encoding"] > 0
    assert systems["edge"]["mrr"] == systems["edge"]["recall_at_10"] == 1.0
    lead = result["edge_minus_best_fusion"]
    assert isinstance(lead, dict)
    assert lead["fusion"].startswith("rrf")
    assert lead["ndcg_at_10"] == pytest.approx(
        systems["edge"]["ndcg_at_10"] - systems[lead["fusion"]]["ndcg_at_10"]
    )


def test_figures_do_not_change_from_run_to_run(data: Path, settings: Settings) -> None:
    first, second = (evaluate_retrieval(data, settings)["systems"] for _ in range(2))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    for name in first:
        assert first[name]["intervals"] == second[name]["intervals"]


def test_a_set_of_questions_with_one_passage_each_works_as_well(tmp_path: Path, settings: Settings) -> None:
    questions = [{"id": "q", "question": "How long does the tea stand?", "passage_id": "tea", "answers": ["four"]}]
    result = evaluate_retrieval(write(tmp_path, passages=DOCS, questions=questions), settings)
    systems = result["systems"]
    assert isinstance(systems, dict)
    assert systems["edge"]["ndcg_at_10"] == 1.0


def test_cancelling_gives_what_is_there(data: Path, settings: Settings) -> None:
    cancel = Event()
    seen: list[str] = []

    def stop_at_the_second_question(done: float, total: float | None, detail: str) -> None:
        seen.append(detail)
        if detail == QUERIES[1]["text"]:
            cancel.set()

    assert evaluate_retrieval(data, settings, progress=stop_at_the_second_question, cancel=cancel)["n"] == 2
    assert evaluate_retrieval(data, settings, cancel=cancel)["n"] == 0
    assert "passages" in seen


def test_cancelling_before_the_first_document_gives_nothing(data: Path, settings: Settings) -> None:
    cancel = Event()
    cancel.set()
    assert evaluate_retrieval(data, settings, cancel=cancel) == {"data": data.name, "n": 0, "passages": 0}


def test_only_questions_with_a_relevant_document_count(data: Path) -> None:
    assert read_queries(data) == [
        Query("1", QUERIES[0]["text"], {"tea": 2.0, "bread": 1.0}),
        Query("2", QUERIES[1]["text"], {"long": 1.0}),
    ]


def test_a_documents_title_becomes_a_heading_unless_the_text_begins_with_it(data: Path) -> None:
    documents = read_documents(data / "docs.jsonl")
    assert [document.sections[0].headings for document in documents] == [("Tea",), (), (), ("Rivers",)]
    write(data, passages=DOCS)
    assert not any(document.sections[0].headings for document in read_documents(data / "passages.jsonl"))


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("docs", {"id": "x"}, "docs.jsonl is without 'text'"),
        ("docs", {"id": "x", "text": ""}, "docs.jsonl holds no text"),
        ("queries", {"text": "?"}, "queries.jsonl is without 'id'"),
        ("qrels", {"query": "1"}, "qrels.jsonl is without 'doc', 'rel'"),
        ("qrels", {"query": "9", "doc": "tea", "rel": 1}, "no question with a relevant document"),
        ("qrels", {"query": "1", "doc": "tea", "rel": "high"}, "grade 'high'"),
        ("qrels", {"query": "1", "doc": "tea", "rel": float("inf")}, "grade inf"),
    ],
)
def test_a_bad_collection_is_one_line(
    data: Path, settings: Settings, file: str, row: dict[str, object], message: str
) -> None:
    write(data, **{file: [row]})
    with pytest.raises(ConfigError, match=message):
        evaluate_retrieval(data, settings)


@pytest.mark.parametrize("content", [b"5", b"[]", b"\xff", b"[" * 100_000, b'{"id": '])
def test_a_file_that_is_no_json_lines_is_one_line(data: Path, content: bytes) -> None:
    (data / "docs.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"docs\.jsonl (line 1|is not UTF-8)"):
        read_documents(data / "docs.jsonl")


def test_a_missing_folder_is_one_line(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluate_retrieval(tmp_path / "none", settings)


def test_plain_systems_are_what_they_say() -> None:
    question = "What is the policy? The policy!"
    assert plain_expression(question) == '"what" OR "is" OR "the" OR "policy"'
    assert match_expression(question) == '"policy" OR "policy"'
    assert reciprocal_rank_fusion([1, 2, 3], [3, 2, 4]) == [3, 2, 1, 4]
    assert reciprocal_rank_fusion([], [5, 1]) == [5, 1]
    assert reciprocal_rank_fusion() == []
