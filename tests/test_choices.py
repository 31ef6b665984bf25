"""What an extractive model may answer: words of a reader that it was shown, and "no" where the reader doubts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_calibrations import hit

from edge_sdk.choices import choices, completed, held
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.fakes import FakeEngine
from edge_sdk.prompt import NOT_FOUND, Prompt, build_prompt
from edge_sdk.readers.extract import Extract, Span
from edge_sdk.records import GenerateOptions, GenerationResult, Hit

HITS = [hit("It rained in May."), hit("Ann built\nthe tower in 1889.", rank=2), hit("Nobody came.", rank=3)]


def span(passage: int, words: str) -> Span:
    start = HITS[passage].passage.text.index(words)
    return Span(passage, start, start + len(words), words, -1.0)


def found(*likely: Span, probability: float | None = 0.9) -> Extract:
    return Extract(likely[0], (), 1.0, 1.0, (1.0, 1.0, 1.0), probability, likely=likely)


def prompt(engine: FakeEngine | GgufEngine, *given: Hit) -> Prompt:
    return build_prompt(
        "Who built it?", given, render=engine.render, count=engine.count, budget=900, limit=900
    )  # fmt: skip


SHOWN = prompt(FakeEngine(), HITS[1], HITS[0])
LIKELY = (span(1, "Ann"), span(1, "Ann built\nthe tower"), span(0, "May"), span(1, "Ann"))


def offered(extract: Extract | None, shown: Prompt = SHOWN, *, numbered: bool = True) -> dict[str, float]:
    return dict(choices(extract, HITS, shown, numbered=numbered))


def test_the_readers_words_are_offered_with_the_number_of_their_passage_in_the_prompt() -> None:
    assert list(offered(found(*LIKELY))) == ["Ann [1]", "Ann built the tower [1]", "May [2]"]
    assert list(offered(found(*LIKELY), numbered=False)) == ["Ann", "Ann built the tower", "May"]


def test_words_that_the_reader_found_twice_are_as_likely_as_both() -> None:
    weights = offered(found(*LIKELY))
    assert weights["May [2]"] == -1.0
    assert math.exp(weights["Ann [1]"]) == pytest.approx(2 * math.exp(-1.0))


def test_what_the_model_was_not_shown_is_not_offered() -> None:
    assert list(offered(found(span(2, "Nobody"), span(0, "May")))) == ["May [2]"]
    part = build_prompt(
        "Who?", HITS[:1], render=FakeEngine().render, count=FakeEngine().count, budget=900, limit=900,
        shown=lambda each: "It rained.",
    )  # fmt: skip
    assert offered(found(span(0, "May")), part) == {}


def test_words_of_the_question_or_of_another_passage_are_not_what_the_model_was_shown() -> None:
    fair = [hit("It rained. The fair was in May."), hit("Nobody came in May.", rank=2)]
    shown = build_prompt(
        "Did it rain in May?", fair, render=FakeEngine().render, count=FakeEngine().count, budget=900, limit=900,
        shown=lambda each: each.passage.text.split(". ")[0],
    )  # fmt: skip
    at = fair[0].passage.text.index("May")
    likely = (Span(0, at, at + 3, "May", -0.1), Span(1, 15, 18, "May", -0.2))
    assert [text for text, _ in choices(found(*likely), fair, shown, numbered=True)] == ["May [2]"]


def ended(*shares: float) -> GenerationResult:
    return GenerationResult("stop", 9, 0, 3, 1.0, 1.0, shares=shares)


OFFERED = (("Davies [1]", -0.4), ("Donald Davies [1]", -1.2), ("Donald Davies [2]", -1.2), ("Paul Baran [1]", -3.0))


@pytest.mark.parametrize(
    ("shares", "given"),
    [
        ((0.97, 0.01, 0.01, 0.01), "Davies [1]"),
        ((0.50, 0.45, 0.00, 0.05), "Donald Davies [1]"),
        ((0.50, 0.00, 0.45, 0.05), "Donald Davies [1]"),
        ((0.30, 0.00, 0.00, 0.70), "Davies [1]"),
    ],
)
def test_an_answer_is_completed_where_fuller_words_of_its_passage_are_likely_too(
    shares: tuple[float, ...], given: str
) -> None:
    assert completed("Davies [1]", OFFERED, ended(*shares)) == given


def test_an_answer_that_is_likely_too_long_is_shortened() -> None:
    offered = (("the red house on the hill by the sea", -1.0), ("red house", -0.5))
    assert completed(offered[0][0], offered, ended(0.2, 0.8)) == "red house"


def test_an_answer_holds_what_is_said_with_some_of_its_words() -> None:
    end = ended(0.4, 0.3, 0.2, 0.1)
    assert held("Davies [1]", OFFERED, end) == pytest.approx(0.4)
    assert held("Donald Davies [2]", OFFERED, end) == pytest.approx(0.9)
    assert held("someone else", OFFERED, end) == 0
    assert held("Davies", (), ended()) == 0
    assert held("Davies [1]", OFFERED, ended()) is None


def test_what_was_not_offered_or_is_no_answer_stays_as_it_was_said() -> None:
    assert completed("Davi", OFFERED, ended(0.5, 0.5, 0.0, 0.0)) == "Davi"
    assert completed("Davies [1]", OFFERED, ended()) == "Davies [1]"
    assert completed(NOT_FOUND, (*OFFERED, (NOT_FOUND, -0.4)), ended(0.1, 0.4, 0.1, 0.0, 0.4)) == NOT_FOUND
    cut = replace(ended(0.5, 0.45, 0.0, 0.05), finish_reason="length")
    assert completed("Davies [1]", OFFERED, cut) == "Davies [1]"


def test_another_answer_that_shares_a_word_is_no_completion() -> None:
    offered = tuple((text, 0.0) for text in ("12 May 1969", "14 June 1969", "14 June 1969 in London"))
    assert completed("12 May 1969", offered, ended(0.45, 0.275, 0.275)) == "12 May 1969"


@pytest.mark.parametrize(("probability", "allowed"), [(0.19, True), (None, True), (0.2, False), (1.0, False)])
def test_only_where_the_reader_doubts_may_the_model_say_no(probability: float | None, allowed: bool) -> None:
    assert (NOT_FOUND in offered(found(*LIKELY, probability=probability))) is allowed


def test_without_a_readers_words_there_is_no_choice() -> None:
    nothing = Extract(None, (), 0.0, -9.0, (-9.0,), 0.01)
    assert offered(None) == offered(nothing) == {}


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[GgufEngine]:
    with GgufEngine.open(smollm2_path, context=512, threads=2) as engine:
        yield engine


@pytest.mark.model
def test_a_model_says_one_of_the_choices_word_for_word(smollm2: GgufEngine) -> None:
    shown = prompt(smollm2, HITS[1], HITS[0])
    texts = choices(found(*LIKELY, probability=None), HITS, shown, numbered=True)
    generation = smollm2.generate(shown.text, GenerateOptions(max_tokens=40, choices=texts))
    assert "".join(token.text for token in generation) in dict(texts)
    assert generation.result.finish_reason == "stop"
    assert len(generation.result.shares) == len(texts) and sum(generation.result.shares) == pytest.approx(1)
    free = smollm2.generate(shown.text, GenerateOptions(max_tokens=40))
    assert "".join(token.text for token in free) not in dict(texts)  # so it was held
