"""Scores to spans: nothing outside the text, nothing too long, nothing twice, and the best of what is left."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.readers.spans import best_spans, likely_spans, shared_log_total

NUMBERS = st.one_of(st.just(-np.inf), st.integers(-8, 8).map(float))


def tried(starts: NDArray[np.float64], ends: NDArray[np.float64], longest: int) -> dict[tuple[int, int], float]:
    size = len(starts)
    every = {(i, j): starts[i] + ends[j] for i in range(size) for j in range(i, min(i + longest, size))}
    return {place: score for place, score in every.items() if score > -np.inf}


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), st.integers(1, 5))
def test_the_best_spans_are_those_of_trying_all(pairs: list[tuple[float, float]], longest: int) -> None:
    starts, ends = (np.array([pair[side] for pair in pairs], np.float64) for side in (0, 1))
    left = tried(starts, ends, longest)
    for found in best_spans(starts, ends, longest, count=3):
        assert left[found.start, found.end] == found.score == max(left.values())
        left = {at: score for at, score in left.items() if at[1] < found.start or at[0] > found.end}
    assert len(best_spans(starts, ends, longest, count=99)) <= len(pairs)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), st.integers(1, 5), st.integers(1, 9))
def test_the_likely_spans_have_the_highest_scores_of_all(
    pairs: list[tuple[float, float]], longest: int, count: int
) -> None:
    starts, ends = (np.array([pair[side] for pair in pairs], np.float64) for side in (0, 1))
    every = tried(starts, ends, longest)
    found = {(span.start, span.end): span.score for span in likely_spans(starts, ends, longest, count)}
    assert found.items() <= every.items()
    assert sorted(found.values()) == sorted(every.values())[max(0, len(every) - count) :]


def test_without_a_span_there_is_none() -> None:
    nowhere = np.full(4, -np.inf)
    assert likely_spans(nowhere, np.zeros(4), 3, 2) == []
    assert best_spans(nowhere, np.zeros(4), 3) == []
    assert best_spans(np.zeros(0), np.zeros(0), 3) == []


def test_a_total_of_nothing_is_no_probability_at_all() -> None:
    assert shared_log_total([]) == shared_log_total([np.full(3, -np.inf)]) == -np.inf


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50), max_size=5), min_size=1, max_size=4))
def test_shares_of_a_total_add_up_to_one(rows: list[list[float]]) -> None:
    every = np.array([number for row in rows for number in row])
    if len(every):
        total = shared_log_total([np.array(row) for row in rows])
        assert abs(np.exp(every - total).sum() - 1) < 1e-6
