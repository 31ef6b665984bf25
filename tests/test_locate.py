"""Answers are found in their passages whatever their letters and blanks, and never within a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.locate import locate, trimmed


def found(answer: str, passage: str) -> str | None:
    place = locate(answer, passage)
    return None if place is None else passage[slice(*place)]


@pytest.mark.parametrize(
    ("answer", "passage", "expected"),
    [
        ("Basel", "It flows to Basel.", "Basel"),
        ("basel", "It flows to Basel.", "Basel"),
        ("Basel.", "It flows to Basel, then on.", "Basel"),
        ("“what is God?”", 'the book" What is God?" sold well', "What is God"),
        ("half-brother", "his half- brother Guy", "half- brother"),
        ("1914–1918", "the war of 1914-1918 was", "1914-1918"),
        ("Sao Paulo", "He was born in São Paulo.", "São Paulo"),
        ("Strasse", "in der Straße dort", "Straße"),
        ("1,230 km", "is 1,230  km long", "1,230  km"),
        ("東京", "首都は東京です。", "東京"),
        ("U.S.", "in the U.S. and Canada", "U.S"),
    ],
)
def test_an_answer_comes_back_in_the_letters_of_the_passage(answer: str, passage: str, expected: str) -> None:
    assert found(answer, passage) == expected


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("art", "a party started"),
        ("230", "is 1,230 km long"),
        ("1", "version 1.5"),
        ("12", "at 12:30"),
        ("Ann", "Anna came"),
        ("", "anything"),
        ("...", "anything..."),
        ("Bern", ""),
    ],
)
def test_parts_of_words_and_numbers_are_not_found(answer: str, passage: str) -> None:
    assert locate(answer, passage) is None


def test_a_later_whole_word_is_found_behind_a_part_of_one() -> None:
    assert locate("art", "Party art") == (6, 9)
    assert locate("ART", "Party art") == (6, 9)


def test_a_bracket_that_belongs_to_the_answer_stays() -> None:
    assert trimmed("Acme (UK).") == "Acme (UK)"
    assert found("acme (uk)", "made by Acme( UK) in May") == "Acme( UK)"


@given(st.lists(st.text("abAB é1", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=8), st.data())
def test_every_run_of_words_of_a_passage_is_found(words: list[str], data: st.DataObject) -> None:
    words = [word for text in words for word in text.split()]
    passage = " ".join(words)
    start = data.draw(st.integers(0, len(words) - 1))
    stop = data.draw(st.integers(start + 1, len(words)))
    run = " ".join(words[start:stop])
    assert found(run, passage) == run
    folded = found(run.upper(), passage)
    assert folded is not None and folded.upper().replace(" ", "") == run.upper().replace(" ", "")


@given(st.text(max_size=40), st.text(max_size=80))
def test_any_strings_give_a_place_inside_the_passage_or_none(answer: str, passage: str) -> None:
    place = locate(answer, passage)
    if place is not None:
        assert 0 <= place[0] < place[1] <= len(passage)
        assert locate(passage[slice(*place)], passage) is not None
