"""Words as features: what is a term, what it weighs, and that parts add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.heads.word_features import MOST_CHARACTERS, Vocabulary, WordFeatures, terms

TEXTS = ["play the song", "play it again", "set the timer"]
VOCABULARY = Vocabulary.of(TEXTS, most=1000)


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_rows_have_length_one_or_nothing_that_is_known(text: str) -> None:
    row = WordFeatures(VOCABULARY, []).rows([text])[0]
    known = any(term in VOCABULARY.places for term in terms(text))
    assert np.linalg.norm(row) == pytest.approx(1 if known else 0, abs=1e-6)


@settings(deadline=None)
@given(text=st.text("playsetimrgan ", max_size=40), seed=st.integers(0, 9))
def test_parts_of_terms_add_up_to_the_product(text: str, seed: int) -> None:
    features = WordFeatures(VOCABULARY, TEXTS)
    contrast = np.random.default_rng(seed).normal(size=len(VOCABULARY.places)).astype(np.float32)
    row = features.rows([text])[0]
    assert sum(part for _, part in features.parts(text, row, contrast)) == pytest.approx(row @ contrast, abs=1e-4)


def test_cosines_are_products_of_rows() -> None:
    features = WordFeatures(VOCABULARY, [*TEXTS, "xyz"])
    rows = features.rows([*TEXTS, "xyz"])
    for row in features.rows(["play the timer", "", *TEXTS]):
        assert features.cosines(row) == pytest.approx(rows @ row, abs=1e-6)


def test_rare_terms_weigh_more_than_common_ones() -> None:
    weights = VOCABULARY.weigh("play the song")
    assert weights["song"] > weights["play"] == weights["the"]


def test_no_more_terms_than_asked_for_the_commonest_first() -> None:
    few = Vocabulary.of(TEXTS, most=3)
    assert len(few.places) == 3
    assert {"play", "the"} <= few.places.keys()


def test_what_lies_beyond_the_first_characters_does_not_count() -> None:
    assert list(terms("a" * MOST_CHARACTERS + " tail")) == list(terms("a" * MOST_CHARACTERS))
