"""Near duplicates are found among many, and only real ones; the same texts always give the same answers."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.near_duplicates import MinHash, NearDuplicates, bands, jaccard, shingles

WORDS = [f"w{number}" for number in range(400)]


def some_text(chance: random.Random, length: int = 60) -> str:
    return " ".join(chance.choices(WORDS, k=length))


def changed(text: str, chance: random.Random, count: int) -> str:
    words = text.split()
    for _ in range(count):
        words[chance.randrange(len(words))] = "other"
    return " ".join(words)


def test_the_near_duplicates_are_those_that_comparing_each_with_each_finds() -> None:
    chance = random.Random(1)
    texts: list[str] = []
    for _ in range(40):
        texts.append(some_text(chance))
        texts.append(changed(chance.choice(texts), chance, chance.randrange(8)))
    seen, kept = NearDuplicates(0.7), list[str]()
    for text in texts:
        runs = shingles(text)
        alike = [at for at, other in enumerate(kept) if jaccard(runs, shingles(other)) >= 0.7]
        assert seen.find_or_add(text) == (alike[0] if alike else None)
        if not alike:
            kept.append(text)
    assert 41 < len(kept) < 79


def test_case_and_punctuation_make_no_difference() -> None:
    seen = NearDuplicates(1.0)
    seen.add("The lamp, once lit, burns all night.")
    assert seen.find("the LAMP once lit burns; all night!") == 0
    assert seen.find("The lamp once lit burned all night.") is None


def test_texts_without_words_and_short_ones_are_compared_as_they_are() -> None:
    seen = NearDuplicates()
    assert [seen.find_or_add(text) for text in ("", "?!", "", "two words", "Two words")] == [None, None, 0, None, 2]


def test_sketches_agree_as_often_as_the_sets_overlap() -> None:
    members = np.random.default_rng(1).integers(0, 1 << 32, 400).tolist()
    hashing = MinHash(1000)
    agree = np.mean(hashing.sketch(frozenset(members[:300])) == hashing.sketch(frozenset(members[100:])))
    assert abs(agree - 0.5) < 0.08  # five standard errors


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_that_means_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        NearDuplicates(threshold)


@given(st.floats(0.3, 1.0))
def test_enough_bands_for_one_miss_in_a_thousand(threshold: float) -> None:
    assert (1 - threshold**4) ** bands(threshold) <= 0.001 or bands(threshold) == 512


@given(st.lists(st.text(max_size=30), max_size=12))
def test_what_was_added_is_found_again_by_the_first_number(texts: list[str]) -> None:
    seen = NearDuplicates(1.0)
    for text in texts:
        seen.find_or_add(text)
    for text in texts:
        number = seen.find(text)
        assert number is not None and number <= texts.index(text)
