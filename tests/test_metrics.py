"""Reference metrics, against values worked out by hand."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.metrics import (
    bootstrap,
    contains,
    exact_match,
    ndcg_at,
    recall_at,
    reciprocal_rank,
    token_f1,
)


@pytest.mark.parametrize(
    ("prediction", "exact", "contained", "f1"),
    [
        ("The Denver Broncos.", 1.0, 1.0, 1.0),
        ("Denver", 0.0, 0.0, 2 / 3),
        ("It was the Denver Broncos who won", 0.0, 1.0, 4 / 8),
        ("Carolina", 0.0, 0.0, 0.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_answers_are_scored_as_squad_does(prediction: str, exact: float, contained: float, f1: float) -> None:
    answers = ["Denver Broncos"]
    assert exact_match(prediction, answers) == exact
    assert contains(prediction, answers) == contained
    assert token_f1(prediction, answers) == pytest.approx(f1)


def test_the_best_accepted_answer_counts() -> None:
    assert token_f1("in 1066", ["the year 1066", "1066", "in 1066"]) == 1.0


def test_repeated_words_do_not_inflate_f1() -> None:
    assert token_f1("rhine rhine rhine", ["rhine"]) == pytest.approx(0.5)


@given(st.text(max_size=40), st.lists(st.text(max_size=40), max_size=3))
def test_scores_stay_between_zero_and_one(prediction: str, answers: list[str]) -> None:
    f1 = token_f1(prediction, answers)
    assert 0.0 <= f1 <= 1.0
    assert exact_match(prediction, answers) <= f1 or not answers


def test_recall_is_the_share_of_what_is_relevant_in_the_first_places() -> None:
    ranked = ["a", "b", "c"]
    assert (recall_at(ranked, {"c"}, 2), recall_at(ranked, {"c"}, 3)) == (0.0, 1.0)
    assert recall_at(ranked, {"a", "c", "x", "y"}, 3) == 0.5
    assert recall_at(ranked, {}, 3) == recall_at([], {"a"}, 3) == 0.0


def test_ndcg_is_as_worked_out_by_hand() -> None:
    grades = {"a": 1.0, "b": 1.0, "x": 1.0}
    ideal = 1 + 1 / log2(3) + 1 / log2(4)
    assert ndcg_at(["z", "a", "y", "b"], grades, 10) == pytest.approx((1 / log2(3) + 1 / log2(5)) / ideal)
    assert ndcg_at(["z", "a", "y", "b"], grades, 1) == 0.0
    assert ndcg_at(["x", "b", "a", "z"], grades, 10) == pytest.approx(1.0)
    assert ndcg_at(["a"], grades, 1) == 1.0  # no ranking of one place can hold more
    assert ndcg_at(["a"], {}, 10) == ndcg_at([], grades, 10) == 0.0


def test_ndcg_counts_the_grade() -> None:
    grades = {"good": 3.0, "fair": 1.0}
    assert ndcg_at(["fair", "good"], grades, 10) == pytest.approx((1 + 3 / log2(3)) / (3 + 1 / log2(3)))


def test_the_reciprocal_rank_is_of_the_first_relevant_item() -> None:
    assert reciprocal_rank(["a", "b", "c"], {"c", "b"}) == 0.5
    assert reciprocal_rank(["a"], {"z"}) == reciprocal_rank([], {"z"}) == 0.0


@given(st.permutations("abcdefgh"), st.sets(st.sampled_from("abcdefghij"), min_size=1))
def test_ranking_metrics_are_best_for_the_ideal_ranking(ranked: list[str], relevant: set[str]) -> None:
    grades = dict.fromkeys(relevant, 1.0)
    ideal = sorted(ranked, key=lambda item: item not in relevant)
    assert 0.0 <= ndcg_at(ranked, grades, 5) <= ndcg_at(ideal, grades, 5) <= 1.0
    assert 0.0 <= recall_at(ranked, relevant, 5) <= recall_at(ideal, relevant, 5) <= 1.0


def test_the_bootstrap_is_seeded_and_covers_the_mean() -> None:
    values = [0.0, 0.2, 0.4, 0.9, 1.0] * 8
    interval = bootstrap(values, resamples=2000)
    assert interval == bootstrap(values, resamples=2000)
    assert interval != bootstrap(values, resamples=2000, seed=1)
    assert interval.mean == pytest.approx(0.5)
    # The normal approximation: 1.96 standard errors of the mean.
    assert (interval.low, interval.high) == pytest.approx((0.5 - 0.124, 0.5 + 0.124), abs=0.015)


def test_without_a_value_there_is_no_interval() -> None:
    with pytest.raises(ValueError, match="no value"):
        bootstrap([])
