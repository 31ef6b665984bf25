from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_documents import WordEncoder, made, put
from numpy.typing import NDArray

from edge_sdk.errors import EncoderMismatchError, EngineError
from edge_sdk.retrieval.retrieve import LEADING, retrieve
from edge_sdk.storage.store import Store

ENCODER = WordEncoder(dimension=256)
TEXTS = {
    "tea": "Boil the water and let the tea stand for four minutes.",
    "coffee": "Grind the beans, then pour hot water over the coffee.",
    "bike": "Oil the chain and check the tyres before a long ride.",
    "c++": "The C++ policy: no exceptions across the interface.",
    "json": "json.dumps turns an object into text; see node.js for another.",
}

WORDS = sorted({word for text in TEXTS.values() for word in text.split()})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store.db")
    for name, text in TEXTS.items():
        put(store, ENCODER, name, text, title=name)
    return store


class Fixed(WordEncoder):
    """Gives one vector for every question."""

    def __init__(self, vector: NDArray[np.float32]) -> None:
        super().__init__(dimension=256)
        self._vector = vector

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        return np.repeat(self._vector[None], len(texts), axis=0)


@pytest.mark.parametrize(
    ("question", "document"),
    [
        ("how long must the tea stand?", "tea"),
        ("what's the c++ policy?", "c++"),
        ("pouring water over beans", "coffee"),
        ('"chain" AND (tyres', "bike"),
        ("what does json.dumps do?", "json"),
    ],
)
def test_the_passage_about_the_question_comes_first(store: Store, question: str, document: str) -> None:
    assert retrieve(store, ENCODER, question)[0].passage.document == document
    assert retrieve(store, None, question)[0].passage.document == document


def test_every_hit_carries_both_ranks_and_the_cosine(store: Store) -> None:
    question = "tea water"
    hits = retrieve(store, ENCODER, question, candidates=2, k=2)
    query = ENCODER.encode([question])[0]
    assert [hit.passage.document for hit in hits] == ["tea", "coffee"]
    assert [(hit.bm25_rank, hit.vector_rank) for hit in hits] == [(1, 1), (2, 2)]
    assert hits[0].bm25 is not None
    assert hits[1].bm25 is not None
    assert hits[0].bm25 > hits[1].bm25 > 0
    assert hits[0].score == 1.0  # first in both
    assert hits[0].score > hits[1].score >= 0
    for hit in hits:
        assert hit.similarity == pytest.approx(float(ENCODER.encode([hit.passage.text])[0] @ query), abs=0.01)


def test_a_word_of_most_passages_costs_nothing_and_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = retrieve(store, None, "tea water")
    for name, text in TEXTS.items():
        put(store, ENCODER, name, f"{text} Kitchen.", title="Kitchen")
    asked: list[str] = []
    search = Store.search_text

    def watched(self: Store, match: str, limit: int) -> list[tuple[int, float]]:
        asked.append(match)
        return search(self, match, limit)

    monkeypatch.setattr("edge_sdk.retrieval.fulltext.SMALL_STORE", 0)
    monkeypatch.setattr(Store, "search_text", watched)
    hits = retrieve(store, None, "tea water in the kitchen")
    assert asked == ['"tea" OR "water"']
    assert [hit.passage.document for hit in hits] == [hit.passage.document for hit in plain] == ["tea", "coffee"]


def test_what_only_one_ranking_found_still_has_its_cosine(store: Store) -> None:
    tea = ENCODER.encode([TEXTS["tea"]])[0]
    hits = {hit.passage.document: hit for hit in retrieve(store, Fixed(tea), "json object", k=2, candidates=2)}
    json_text = ENCODER.encode([TEXTS["json"]])[0]
    assert (hits["json"].bm25_rank, hits["json"].vector_rank) == (1, None)
    assert hits["json"].similarity == pytest.approx(float(json_text @ tea), abs=0.01)
    assert (hits["tea"].bm25_rank, hits["tea"].bm25, hits["tea"].vector_rank) == (None, None, 1)
    assert hits["tea"].similarity == pytest.approx(1, abs=0.01)


def test_without_an_encoder_there_is_bm25_alone(store: Store) -> None:
    hits = retrieve(store, None, "water")
    assert {hit.passage.document for hit in hits} == {"tea", "coffee"}
    assert all(hit.similarity is None and hit.vector_rank is None for hit in hits)


def test_a_question_without_words_is_answered_by_vectors_or_not_at_all(store: Store) -> None:
    assert retrieve(store, ENCODER, "???") == []  # its vector is zero
    assert retrieve(store, ENCODER, " \n ") == retrieve(store, ENCODER, "") == []
    assert retrieve(store, None, "???") == []
    assert retrieve(store, Fixed(ENCODER.encode([TEXTS["bike"]])[0]), "???")[0].passage.document == "bike"


def test_hostile_questions_give_hits_or_nothing(store: Store) -> None:
    for question in ('""" OR * NEAR(', "tea\0\ud800 water", "tea " * 30_000, "(" * 3000):
        assert len(retrieve(store, ENCODER, question)) <= 8


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec=None), max_size=6) | st.sampled_from(WORDS), max_size=80).map(" ".join))
def test_any_question_gives_hits_in_order(store: Store, question: str) -> None:
    for encoder in (ENCODER, None):
        hits = retrieve(store, encoder, question)
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)


def test_an_empty_store_gives_an_empty_list(tmp_path: Path) -> None:
    with Store.open(tmp_path / "empty.db") as store:
        assert retrieve(store, ENCODER, "anything") == retrieve(store, None, "anything") == []


def test_k_limits_the_hits_and_may_exceed_the_candidates(store: Store) -> None:
    assert len(retrieve(store, ENCODER, "water", k=1)) == 1
    assert len(retrieve(store, ENCODER, "water", k=5, candidates=1)) == 5
    assert retrieve(store, ENCODER, "water", k=0) == []


def test_nearly_the_same_text_counts_once(store: Store) -> None:
    long = " ".join(f"word{number}" for number in range(100))
    put(store, ENCODER, "one", long + " about kettles")
    put(store, ENCODER, "two", long.upper() + "  about kettles!")
    put(store, ENCODER, "three", long + " about spoons")
    put(store, ENCODER, "four", "about kettles " + " ".join(f"other{number}" for number in range(100)))
    for encoder in (ENCODER, None):
        hits = retrieve(store, encoder, "kettles word1 word2")
        assert [hit.passage.document for hit in hits[:2]] == ["one", "four"]


def test_the_same_words_under_another_heading_are_another_passage(store: Store) -> None:
    put(store, ENCODER, "one", "Raises ValueError.", heading="json.load")
    put(store, ENCODER, "two", "Raises ValueError.", heading="csv.reader")
    assert len(retrieve(store, None, "raises ValueError")) == 2


def test_another_encoder_is_refused(store: Store) -> None:
    with pytest.raises(EncoderMismatchError, match="edge reindex"):
        retrieve(store, WordEncoder(dimension=64), "tea")


def test_an_encoder_that_fails_is_named(store: Store) -> None:
    with pytest.raises(EngineError, match="not finite"):
        retrieve(store, Fixed(np.full(256, np.nan, np.float32)), "tea")


def test_what_another_process_adds_is_found_at_once(store: Store) -> None:
    retrieve(store, ENCODER, "tea")
    with Store.open(store.path) as other:
        put(other, ENCODER, "milk", "Milk goes in last.")
    assert retrieve(store, ENCODER, "when does milk go in?")[0].passage.document == "milk"


def test_hits_come_by_score_and_equal_ones_by_id(store: Store) -> None:
    for encoder in (ENCODER, None):
        scores = [hit.score for hit in retrieve(store, encoder, "hot water and a long ride")]
        assert scores == sorted(scores, reverse=True)
        assert 0 <= min(scores) <= max(scores) <= 1
    one, two = "The kettle is blue; mine whistles.", "Every kettle is red, yours leaks."
    for name in ("a", "b"):  # the same scores by construction: one word of the question each, the same length
        put(store, ENCODER, f"one {name}", one, heading=name)
        put(store, ENCODER, f"two {name}", two, heading=name)
    ids = [hit.passage.id for hit in retrieve(store, None, "kettle") if hit.bm25 is not None]
    assert ids == sorted(ids)


def test_one_passage_is_enough(tmp_path: Path) -> None:
    with Store.open(tmp_path / "one.db") as store:
        put(store, ENCODER, "tea", TEXTS["tea"])
        for encoder in (ENCODER, None):
            assert [hit.score for hit in retrieve(store, encoder, "tea water")] == [1.0]


def test_more_hits_than_take_part_in_the_feedback_stay_in_order(tmp_path: Path) -> None:
    with Store.open(tmp_path / "many.db") as store:
        for number in range(LEADING + 20):
            words = " ".join(f"word{number}x{each}" for each in range(number + 1))
            put(store, ENCODER, str(number), f"kettle {words}")
        hits = retrieve(store, ENCODER, "kettle", k=LEADING + 20)
    assert len(hits) == LEADING + 20
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_feedback_finds_what_the_question_has_no_word_for(tmp_path: Path) -> None:
    """The two leading passages say what a jaguar is about here; the others that have the word say otherwise."""
    texts = {
        "cat": "The jaguar hunts at night in the rain forest and swims across rivers.",
        "cub": "A jaguar cub learns to hunt in the rain forest and to swim across rivers.",
        "prey": "In the rain forest it hunts at night, and swims across rivers after its prey.",
        "car": "The jaguar needs new brakes, tyres and an oil change in the workshop every autumn.",
        "shop": "The workshop does brakes, tyres and an oil change every autumn.",
    }
    with Store.open(tmp_path / "jaguar.db") as store:
        for name, text in texts.items():
            put(store, ENCODER, name, text)
        found = [hit.passage.document for hit in retrieve(store, ENCODER, "hunting jaguar")]
    assert found[:2] == ["cub", "cat"] or found[:2] == ["cat", "cub"]
    assert found.index("prey") < found.index("shop")


def test_feedback_leaves_the_one_exact_match_in_front(tmp_path: Path) -> None:
    """However many passages resemble each other, the one that has the name itself stays first."""
    with Store.open(tmp_path / "names.db") as store:
        put(store, ENCODER, "right", "Set EDGE_HOME_XYZZY to the folder of the models before the first start.")
        for number in range(60):
            put(store, ENCODER, str(number), f"Before the first start set the folder of the models, part {number}.")
        for encoder in (ENCODER, None):
            assert retrieve(store, encoder, "EDGE_HOME_XYZZY")[0].passage.document == "right"
            assert retrieve(store, encoder, "what is EDGE_HOME_XYZZY for?")[0].passage.document == "right"


def test_the_same_question_gives_the_same_hits(store: Store) -> None:
    assert retrieve(store, ENCODER, "hot water") == retrieve(store, ENCODER, "hot water")


@pytest.mark.model
def test_recall_on_real_questions_stays_at_what_was_measured(minilm_dir: Path, tmp_path: Path) -> None:
    """Set EDGE_DATA to a folder with `squad/passages.jsonl` and `squad/questions.jsonl`; a minute on two cores."""
    from edge_sdk.encoders.embed import OnnxEncoder

    data = Path(os.environ.get("EDGE_DATA", "../shared/data")) / "squad"
    if not data.is_dir():
        pytest.skip(f"no {data}: set EDGE_DATA to a folder with squad/")
    rows = [json.loads(line) for line in (data / "passages.jsonl").read_text().splitlines()]
    questions = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    encoder = OnnxEncoder.open(minilm_dir)
    vectors = encoder.encode([row["text"] for row in rows])
    with Store.open(
        tmp_path / "s.db", encoder_fingerprint=encoder.fingerprint, dimension=encoder.dimension
    ) as store:
        for row, vector in zip(rows, vectors, strict=True):
            store.put(*made(row["id"], row["text"], title=row["title"]), vector[None])
        found = 0
        for row in questions:
            hits = retrieve(store, encoder, row["question"], 5)
            found += row["passage_id"] in {hit.passage.document for hit in hits}
    assert found / len(questions) >= 0.98


def test_a_passage_added_while_the_question_runs_is_no_hit_without_a_similarity(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = store.search_text

    def meanwhile(match: str, limit: int) -> list[tuple[int, float]]:
        monkeypatch.undo()
        put(store, ENCODER, "late", "Pour the tea, the tea, the tea.", title="late")
        return plain(match, limit)

    monkeypatch.setattr(store, "search_text", meanwhile)
    hits = retrieve(store, ENCODER, "tea")
    assert hits[0].passage.document == "tea"
    assert all(hit.similarity is not None and np.isfinite(hit.similarity) for hit in hits)
    assert "late" in [hit.passage.document for hit in retrieve(store, ENCODER, "tea")]


@pytest.mark.parametrize("first", ["secret", "copy"])
@pytest.mark.parametrize("k", [1, 3])
def test_a_copy_without_its_label_does_not_open_a_private_text(tmp_path: Path, first: str, k: int) -> None:
    text = "The safe combination is written on the back of the clock in the hall."
    store = Store.open(tmp_path / "store.db")
    for name in (first, "copy" if first == "secret" else "secret"):
        put(store, ENCODER, name, text)
    put(store, ENCODER, "tea", TEXTS["tea"])
    store.set_label("secret", "private")
    hits = retrieve(store, ENCODER, "Where is the safe combination?", k)
    assert [hit.passage.label for hit in hits if hit.passage.text == text] == ["private"]
    assert all(hit.passage.open for hit in hits if hit.passage.text != text)
