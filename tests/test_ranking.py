from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edge_sdk.retrieval.ranking import best_first, feed_back, fuse, word_vectors

NAN = float("nan")
SCORES = st.integers(0, 12).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(0, 40)))


def test_what_both_rankings_found_comes_before_what_one_found_alike() -> None:
    scores = fuse(np.array([10.0, 10.0, 0.0, 1.0]), np.array([0.8, NAN, 0.8, 0.1]))
    assert best_first(scores, np.arange(4)).tolist() == [0, 1, 2, 3]
    assert scores.tolist() == pytest.approx([1.0, 0.5, 0.5, 0.05])


def test_a_score_says_by_how_much_it_is_ahead() -> None:
    """By ranks alone both would be equal: first and second here, second and first there."""
    scores = fuse(np.array([10.0, 2.0, 0.0]), np.array([0.50, 0.52, 0.10]))
    assert scores[0] > scores[1]


def test_bm25_stands_alone_without_cosines() -> None:
    assert fuse(np.array([4.0, 1.0]), None).tolist() == [1.0, 0.25]
    assert fuse(np.zeros(2), None).tolist() == [0.0, 0.0]


def test_equal_scores_come_in_the_order_of_their_ids() -> None:
    assert best_first(np.array([0.5, 0.7, 0.5]), np.array([9, 8, 3])).tolist() == [1, 2, 0]


@given(SCORES, st.booleans())
def test_scores_are_between_zero_and_one_whatever_comes(bm25: NDArray[np.float64], blind: bool) -> None:
    cosines = np.full(len(bm25), NAN) if blind else np.sin(bm25)
    fused = fuse(bm25, cosines)
    spaces = [np.eye(max(1, len(bm25)), 16, dtype=np.float32)[: len(bm25)], np.zeros((len(bm25), 0), np.float32)]
    for scores in (fused, fuse(bm25, None), feed_back(fused, spaces), feed_back(fused, [])):
        assert scores.shape == bm25.shape
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()


@given(st.permutations(range(6)))
def test_the_order_of_the_candidates_does_not_matter(order: list[int]) -> None:
    bm25, cosines = np.array([9.0, 4, 4, 0, 1, 0]), np.array([0.3, 0.6, 0.2, 0.9, NAN, 0.1])
    space = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    there = feed_back(fuse(bm25, cosines), [space])
    here = feed_back(fuse(bm25[order], cosines[order]), [space[order]])
    assert here == pytest.approx(there[order])


def test_feedback_lifts_what_is_like_the_leading_ones() -> None:
    scores = np.array([1.0, 0.9, 0.3, 0.3])
    space = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    lifted = feed_back(scores, [space])
    assert best_first(lifted, np.arange(4)).tolist() == [0, 1, 2, 3]
    assert lifted[2] > lifted[3]


def test_alike_candidates_change_no_order() -> None:
    scores = np.array([1.0, 0.4, 0.6])
    assert best_first(feed_back(scores, [np.ones((3, 2), np.float32)]), np.arange(3)).tolist() == [0, 2, 1]


def test_rare_words_weigh_more_and_unshared_ones_nothing() -> None:
    vectors = word_vectors(["pressure wing", "pressure wing", "pressure", "pressure unique"])
    common, rare = vectors[0]
    assert rare > common > 0
    assert vectors.shape == (4, 2)
    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([1, 1, 1, 1])


def test_texts_without_words_have_zeros() -> None:
    assert word_vectors([]).shape == (0, 0)
    assert word_vectors(["the", "?!", ""]).shape == (3, 0)
    assert word_vectors(["tea", "tea", "of the"])[2].tolist() == [0.0]


@given(st.lists(st.text(max_size=30), max_size=6))
def test_any_texts_give_rows_of_length_one_or_zero(texts: list[str]) -> None:
    lengths = np.linalg.norm(word_vectors(texts), axis=1)
    assert (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()
