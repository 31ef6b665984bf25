"""Sentences chosen by a question: within the budget, in order, word for word, and the telling ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.evidence import Excerpt, choose, sentences
from edge_sdk.fakes import FakeEncoder
from edge_sdk.readers.extract import Span
from edge_sdk.records import Hit, Passage

TOWER = "It rained in May. The tower was built by Gustave Eiffel. Its height is 330 metres. Nobody was hurt."
RIVER = "The river is long. It flows through Basel. Boats go there in summer."
WORDS = st.text("ab. !?\n", max_size=60)


def hit(text: str, number: int = 1, score: float = 1.0) -> Hit:
    return Hit(Passage(number, f"d{number}", "", "", text, 0, len(text)), score)


def count(text: str) -> int:
    return len(text.split())


def texts(excerpts: Sequence[Excerpt]) -> list[str]:
    return [excerpt.text for excerpt in excerpts]


@given(st.text(), st.text(" .!?\nabcA[1]\"')", max_size=800))
def test_sentences_hold_every_word_in_order_and_stripped(any_text: str, prose: str) -> None:
    for text in (any_text, prose):
        spans = sentences(text)
        assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
        assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Who met J. R. Smith. They left.", ["Dr. Who met J. R. Smith.", "They left."]),
        (
            "The U.S. Army went 3.5 km, e.g. here. It won!",
            ["The U.S. Army went 3.5 km, e.g. here.", "It won!"],
        ),
        ("A title\n\nA sentence? 雨だ。晴れ。", ["A title", "A sentence?", "雨だ。", "晴れ。"]),
        ("one line of a list\n" * 20, ["one line of a list"] * 20),
        (" \n ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


@given(WORDS, st.lists(WORDS, max_size=4), st.integers(1, 40), st.booleans())
def test_what_is_chosen_fits_and_stands_in_the_passages(
    question: str, passages: list[str], budget: int, vectors: bool
) -> None:
    hits = [hit(text, number, 1 / number) for number, text in enumerate(passages, 1)]
    found = choose(question, hits, budget, count=count, encode=FakeEncoder().encode if vectors else None)
    parts = [excerpt.hit.passage.text[start:end] for excerpt in found for start, end in excerpt.spans]
    assert sum(map(count, parts)) <= budget or len(parts) == 1
    ranks = [hits.index(excerpt.hit) for excerpt in found]
    assert ranks == sorted(set(ranks))
    for excerpt in found:
        assert excerpt.spans == tuple(sorted(excerpt.spans))
        assert set(excerpt.spans) <= set(sentences(excerpt.hit.passage.text))
        assert excerpt.text.split() == " ".join(excerpt.hit.passage.text[s:e] for s, e in excerpt.spans).split()
    if any(text.strip() for text in passages):
        assert found


def test_with_room_for_all_the_passages_are_whole() -> None:
    assert texts(choose("Who?", [hit(TOWER), hit(RIVER, 2)], 1000, count=count)) == [TOWER, RIVER]


@pytest.mark.parametrize(
    ("question", "budget", "expected"),
    [
        ("Who built the tower?", 7, "The tower was built by Gustave Eiffel."),
        ("What flows through Basel?", 4, "It flows through Basel."),
    ],
)
def test_the_sentence_with_the_questions_rare_words_comes_first(question: str, budget: int, expected: str) -> None:
    found = choose(question, [hit(TOWER), hit(RIVER, 2)], budget, count=count)
    assert texts(found) == [expected]


def test_vectors_find_what_says_it_in_other_words() -> None:
    def encode(many: Sequence[str]) -> NDArray[np.float32]:
        """The question, and the sentence on the height, lie in one direction, all others in another."""
        return np.array([[1, 0] if "tall" in text or "height" in text else [0, 1] for text in many], np.float32)

    found = choose("How tall?", [hit(TOWER)], 5, count=count, encode=encode)
    assert texts(found) == ["Its height is 330 metres."]
    assert texts(choose("How tall?", [hit(TOWER)], 5, count=count)) != texts(found)


def span(text: str, words: str, probability: float, passage: int = 0) -> Span:
    start = text.index(words)
    return Span(passage, start, start + len(words), words, float(np.log(probability)))


def test_where_a_reader_found_the_answer_is_read_even_if_it_shares_no_word() -> None:
    hits = [hit(RIVER), hit(TOWER, 2)]
    found = [span(TOWER, "330 metres", 0.5, 1), span(TOWER, "330", 0.2, 1), span(RIVER, "Basel", 0.001)]
    assert texts(choose("How big is it?", hits, 5, count=count, likely=found)) == ["Its height is 330 metres."]
    assert texts(choose("How big is it?", hits, 5, count=count, likely=found[2:])) != ["Its height is 330 metres."]


def test_what_a_reader_found_weighs_less_than_being_right_about_all_words() -> None:
    faint = [span(TOWER, "330 metres", 0.02)]
    found = choose("Who built the tower?", [hit(TOWER)], 7, count=count, likely=faint)
    assert texts(found) == ["The tower was built by Gustave Eiffel."]


@given(st.lists(WORDS, min_size=1, max_size=4), st.data())
def test_spans_anywhere_in_the_passages_only_reorder_sentences(passages: list[str], data: st.DataObject) -> None:
    hits = [hit(text, number) for number, text in enumerate(passages, 1)]
    spans = []
    for _ in range(3):
        number = data.draw(st.integers(0, len(passages) - 1))
        start = data.draw(st.integers(0, len(passages[number])))
        score = data.draw(st.floats(-50, 0.1))
        spans.append(Span(number, start, start + 1, passages[number][start : start + 1], score))
    assert choose("a", hits, 10_000, count=count, likely=spans) == choose("a", hits, 10_000, count=count)


def test_a_better_passage_wins_between_equal_sentences() -> None:
    hits = [hit("The tower is red.", 1, 0.2), hit("The tower is blue.", 2, 0.9)]
    assert texts(choose("Which tower?", hits, 4, count=count)) == ["The tower is blue."]


def test_gaps_are_closed_with_a_blank_and_the_best_sentence_is_in_however_long() -> None:
    far = "The tower is high. Rain fell all day long in every street. The tower is red."
    assert texts(choose("tower", [hit(far)], 8, count=count)) == ["The tower is high. The tower is red."]
    assert texts(choose("tower", [hit("The tower is very high indeed.")], 1, count=count)) == [
        "The tower is very high indeed."
    ]
    assert choose("tower", [], 10, count=count) == choose("tower", [hit(" ")], 10, count=count) == []
