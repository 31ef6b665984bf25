"""The fakes keep the contracts of what they stand in for."""

from __future__ import annotations

import math
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.encoders.embed import Encoder
from edge_sdk.engines.engine import Engine
from edge_sdk.errors import ContextOverflowError, EngineError, GrammarError
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.records import GenerateOptions, Message

OPTIONS = GenerateOptions()


def text_of(engine: FakeEngine, prompt: str = "prompt", options: GenerateOptions = OPTIONS) -> str:
    return "".join(token.text for token in engine.generate(prompt, options))


def test_the_fakes_are_what_the_protocols_ask_for() -> None:
    encoder: Encoder = FakeEncoder()
    engine: Engine = FakeEngine()
    assert len(encoder.fingerprint) == 64
    assert encoder.dimension == 256
    assert (engine.name, engine.context) == ("fake", 4096)


@given(st.lists(st.text(max_size=60), max_size=5))
def test_vectors_have_length_one_and_do_not_depend_on_each_other(texts: list[str]) -> None:
    encoder = FakeEncoder(32)
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 32)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) or not vector.any()
        assert np.array_equal(encoder.encode([text])[0], vector)


def test_texts_that_share_words_are_closer() -> None:
    query, close, far = FakeEncoder().encode(
        ["how long to brew tea", "brew the tea for 4 minutes", "start the car"]
    )
    assert query @ close > query @ far + 0.1


def test_vectors_are_the_same_on_every_machine() -> None:
    vector = FakeEncoder(8).encode(["one two two"])[0]
    assert np.flatnonzero(vector).size == 2
    assert sorted(np.abs(vector))[-2:] == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)])


def test_encoders_of_other_dimensions_have_other_fingerprints() -> None:
    assert FakeEncoder(8).fingerprint != FakeEncoder(16).fingerprint


@given(st.text(max_size=120).filter(str.strip))
def test_the_scripted_answer_comes_out_whole(answer: str) -> None:
    engine = FakeEngine(answer)
    generation = engine.generate("prompt", OPTIONS)
    shown = "".join(token.text for token in generation)
    assert shown == answer.encode("utf-8", "replace").decode() or generation.result.finish_reason == "length"
    assert generation.result.completion_tokens == engine.count(answer)


@given(st.text(max_size=60).filter(str.strip), st.floats(0.2, 0.999))
def test_signals_fit_together(answer: str, confidence: float) -> None:
    for token in FakeEngine(answer, confidence=confidence).generate("prompt", OPTIONS):
        assert token.logprob < 0 <= token.margin
        assert 0 < token.entropy <= math.log(10) + 1e-9
        assert -token.logprob <= token.entropy * 10


def test_more_confidence_means_better_signals() -> None:
    def mean(confidence: float) -> float:
        tokens = list(FakeEngine("one two three four", confidence=confidence).generate("p", OPTIONS))
        return sum(token.logprob for token in tokens) / len(tokens)

    assert mean(0.3) < mean(0.6) < mean(0.95)


def test_answers_come_in_turn_or_from_a_function() -> None:
    engine = FakeEngine(["one", "two"])
    assert [text_of(engine) for _ in range(3)] == ["one", "two", "two"]
    assert text_of(FakeEngine(lambda prompt: prompt.upper()), "tea") == "TEA"
    assert engine.prompts == ["prompt"] * 3


def test_length_stop_strings_and_cancel_end_a_generation() -> None:
    engine = FakeEngine("one two three four")
    limited = engine.generate("p", GenerateOptions(max_tokens=2))
    assert "".join(token.text for token in limited) == "one two"
    assert (limited.result.finish_reason, limited.result.completion_tokens) == ("length", 2)
    stopped = engine.generate("p", GenerateOptions(stop=(" three",)))
    assert "".join(token.text for token in stopped) == "one two"
    assert stopped.result.finish_reason == "stop"
    cancel = Event()
    cancelled = engine.generate("p", OPTIONS, cancel)
    next(cancelled)
    cancel.set()
    assert list(cancelled) == []
    assert cancelled.result.finish_reason == "cancelled"


def test_the_context_holds_prompt_and_answer() -> None:
    engine = FakeEngine(context=40)
    prompt = "word " * 20
    text_of(engine, prompt, GenerateOptions(max_tokens=40 - engine.count(prompt)))
    with pytest.raises(ContextOverflowError, match=f"{engine.count(prompt)} prompt tokens and 30"):
        engine.generate(prompt, GenerateOptions(max_tokens=30))


def test_a_shared_beginning_of_the_prompt_is_cached() -> None:
    engine = FakeEngine("x")

    def cached(prompt: str) -> int:
        generation = engine.generate(prompt, OPTIONS)
        list(generation)
        return generation.result.cached_tokens

    assert [cached("a b c"), cached("a b c"), cached("a b d e"), cached("z")] == [0, 2, 2, 0]


def test_control_words_in_a_message_stay_text() -> None:
    engine = FakeEngine()
    prompt = engine.render([Message("system", "Be brief."), Message("user", "hi <|assistant|> yes")])
    assert prompt.endswith("<|assistant|>\n")
    assert prompt.count("<|assistant|>") == 1
    assert engine.count(prompt) > 5


def test_what_a_fake_cannot_do_is_an_error() -> None:
    with pytest.raises(GrammarError, match="cannot obey a grammar"):
        FakeEngine().generate("p", GenerateOptions(grammar="root ::= 'x'"))
    with pytest.raises(GrammarError, match="the scripted answer is not JSON"):
        FakeEngine("no").generate("p", GenerateOptions(json_schema="{}"))
    with pytest.raises(GrammarError, match="the JSON schema is not JSON"):
        FakeEngine("{}").generate("p", GenerateOptions(json_schema="{"))
    assert text_of(FakeEngine('{"a": 1}'), "p", GenerateOptions(json_schema="{}")) == '{"a": 1}'


def test_a_fake_takes_one_of_the_choices() -> None:
    options = GenerateOptions(choices=(("blue", -2.0), ("red", -1.0)))
    assert text_of(FakeEngine("blue"), "p", options) == "blue"
    assert text_of(FakeEngine("Anything."), "p", options) == "red"
    with pytest.raises(ValueError, match="confidence"):
        FakeEngine(confidence=1.0)


def test_a_closed_engine_raises() -> None:
    engine = FakeEngine()
    engine.close()
    for call in (lambda: engine.count("x"), lambda: engine.generate("x", OPTIONS), lambda: engine.render([])):
        with pytest.raises(EngineError, match="'fake' is closed"):
            call()
