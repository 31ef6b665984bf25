"""A local teacher in batches: the replies of one request after the other, with common beginnings computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from gguf_files import BOOL, Field, tiny_llama

from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.sequences import SequenceContext
from edge_sdk.errors import (
    ConfigError,
    EngineError,
    ModelDamagedError,
    ModelNotFoundError,
    StoreDamagedError,
    TemplateError,
)
from edge_sdk.records import GenerateOptions, Message
from quantize.teachers.gguf_teacher import GgufTeacher
from quantize.teachers.teacher import Reply, Request
from quantize.teachers.top_logits import TopLogitsFile

INSTRUCTION = "Write one question that the passage answers."
PASSAGES = (
    "The rhine flows through basel.",
    "The rhine flows through bonn and cologne, where the bridges are; the water is high in the spring.",
    "A comet has a tail.",
    "A comet has no tail when it is far from the sun.",
)


def asked(*contents: str, **values: object) -> list[Request]:
    return [Request((Message("user", content),), **values) for content in contents]  # type: ignore[arg-type]


REQUESTS = asked(
    *(f"{INSTRUCTION} {passage} {hint}" for passage in PASSAGES for hint in ("", "Short.")), max_tokens=12
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("teacher") / "tiny.gguf", context=512)


def replies(path: Path, requests: Sequence[Request], **options: object) -> list[Reply]:
    with GgufTeacher.open(path, threads=1, **options) as teacher:  # type: ignore[arg-type]
        found = dict(teacher.replies(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[position] for position in range(len(requests))]


def one_by_one(path: Path, requests: Sequence[Request]) -> list[tuple[str, str, list[float]]]:
    found = []
    with GgufEngine.open(path, threads=1, context=512) as engine:
        for request in requests:
            options = GenerateOptions(max_tokens=request.max_tokens, stop=request.stop)
            generation = engine.generate(engine.render(request.messages), options)
            tokens = list(generation)
            text = "".join(token.text for token in tokens)
            found.append((text, generation.result.finish_reason, [token.logprob for token in tokens]))
    return found


@pytest.mark.parametrize(("sequences", "cells"), [(1, None), (3, None), (32, None), (32, 240), (4, 171)])
def test_replies_are_those_of_one_request_after_the_other(tiny: Path, sequences: int, cells: int | None) -> None:
    expected = one_by_one(tiny, REQUESTS)
    found = replies(tiny, REQUESTS, sequences=sequences, cells=cells)
    assert [(reply.text, reply.finish_reason) for reply in found] == [each[:2] for each in expected]
    for reply, (_, _, logprobs) in zip(found, expected, strict=True):
        assert reply.logprobs == pytest.approx(logprobs, abs=0.02)
        assert reply.completion_tokens == len(logprobs) and reply.cost == 0


class Counted(SequenceContext):
    """Counts the tokens that are evaluated, and the most in one batch."""

    tokens, batches = 0, 0

    def add(self, sequence: int, start: int, tokens: np.ndarray, *, wanted: bool) -> int:
        Counted.tokens += len(tokens)
        return super().add(sequence, start, tokens, wanted=wanted)

    def evaluate(self, stopped: object) -> bool:
        Counted.batches += 1
        return super().evaluate(stopped)  # type: ignore[arg-type]


def test_common_beginnings_are_computed_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantize.teachers.gguf_teacher.SequenceContext", Counted)
    Counted.tokens = Counted.batches = 0
    found = replies(tiny, REQUESTS, sequences=32)
    with GgufEngine.open(tiny, threads=1) as engine:
        prompts = [engine.tokens(engine.render(request.messages)) for request in REQUESTS]
    nodes = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}
    generated = sum(reply.completion_tokens - 1 for reply in found)  # the last one is not evaluated
    assert Counted.tokens == len(nodes) + generated
    assert Counted.batches < 2 * 12 + len(PASSAGES), "requests wait for each other"


def test_a_prompt_that_another_begins_with_or_equals_is_answered_too(tiny: Path) -> None:
    requests = asked("ab", "abab", "ab", "ababab", max_tokens=5)
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    found = replies(tiny, requests, template=template, sequences=4)
    with GgufEngine.open(tiny, threads=1, template=template) as engine:
        for request, reply in zip(requests, found, strict=True):
            tokens = engine.generate(engine.render(request.messages), GenerateOptions(max_tokens=5))
            assert reply.text == "".join(token.text for token in tokens)


def test_long_prompts_are_evaluated_in_parts_beside_running_answers(tiny: Path) -> None:
    from edge_sdk.engines.profile import Tuning

    requests = asked(*(f"{number} " + "the rhine " * 9 * number for number in range(1, 5)), max_tokens=20)
    expected = one_by_one(tiny, requests)
    found = replies(tiny, requests, tuning=Tuning(batch=32), sequences=3)
    assert [reply.text for reply in found] == [text for text, _, _ in expected]


def test_stop_strings_and_lengths_end_a_reply(tiny: Path) -> None:
    (whole,) = replies(tiny, asked("hello", max_tokens=12))
    assert whole.finish_reason == "length" and whole.completion_tokens == 12 == len(whole.logprobs)
    stop = whole.text[4:6]
    (stopped,) = replies(tiny, asked("hello", max_tokens=12, stop=(stop,)))
    assert stopped.text == whole.text[: whole.text.index(stop)] and stopped.finish_reason == "stop"
    (one,) = replies(tiny, asked("hello", max_tokens=1))
    assert one.completion_tokens == 1 and whole.text.startswith(one.text)


def test_samples_depend_on_their_seed_alone(tiny: Path) -> None:
    samples = [Request((Message("user", "hello"),), max_tokens=10, temperature=1.0, seed=seed) for seed in range(6)]
    together = replies(tiny, samples, sequences=6)
    assert len({reply.text for reply in together}) > 1
    assert [replies(tiny, [sample])[0].text for sample in samples[:2]] == [reply.text for reply in together[:2]]
    assert all(value <= 0 for reply in together for value in reply.logprobs)


def test_a_vocabulary_that_wants_a_first_token_gets_it(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "bos.gguf", extra={"tokenizer.ggml.add_bos_token": Field(BOOL, 1)})
    requests = asked("hello", "", max_tokens=4)
    found = replies(path, requests, template="{{ messages[0].content }}")
    assert [reply.prompt_tokens for reply in found] == [6, 1]


def test_what_likely_tokens_there_were_is_kept_beside_each_reply(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "top.bin"
    found = replies(tiny, REQUESTS, top_logits=path, top_k=8)
    with TopLogitsFile.read(path) as file:
        assert len(file) == len(REQUESTS) and file.vocabulary == 267
        for request, reply in zip(REQUESTS, found, strict=True):
            top = file.get(request.key)
            assert top is not None and top.ids.shape == (reply.completion_tokens, 8)
            assert top.ids[:, 0].tolist() == top.chosen.tolist()  # greedy
            assert top.logprobs[:, 0].tolist() == pytest.approx(list(reply.logprobs), rel=1e-3, abs=1e-6)
            assert np.exp(top.logprobs).sum(axis=1) + np.exp(top.tail) == pytest.approx(1, abs=5e-3)
    with pytest.raises(ConfigError, match="another teacher"):
        replies(tiny, REQUESTS[:1], top_logits=path, top_k=8, template="{{ messages[0].content }}")
    path.write_bytes(b"something else")
    with pytest.raises(StoreDamagedError):
        replies(tiny, REQUESTS[:1], top_logits=path)


# --- stopping ---------------------------------------------------------------------------------------


def test_cancelling_ends_replies_without_an_error_and_the_teacher_goes_on(tiny: Path) -> None:
    with GgufTeacher.open(tiny, threads=1, sequences=2) as teacher:
        cancel = Event()
        cancel.set()
        assert list(teacher.replies(REQUESTS, cancel)) == []
        cancel.clear()
        running = teacher.replies(REQUESTS, cancel)
        first = next(running)
        cancel.set()
        rest = list(running)
        assert len(rest) < len(REQUESTS) - 1
        again = dict(teacher.replies(REQUESTS))
        assert len(again) == len(REQUESTS) and again[first[0]] == first[1]


def test_closing_ends_running_replies_with_an_error(tiny: Path) -> None:
    teacher = GgufTeacher.open(tiny, threads=1, sequences=1)
    running = teacher.replies(REQUESTS)
    next(running)
    teacher.close()
    teacher.close()
    with pytest.raises(EngineError, match="closed"):
        list(running)
    with pytest.raises(EngineError, match="closed"):
        list(teacher.replies(REQUESTS))


def test_one_caller_at_a_time_and_a_dropped_one_frees_it(tiny: Path) -> None:
    with GgufTeacher.open(tiny, threads=1, sequences=1) as teacher:
        running = teacher.replies(REQUESTS)
        next(running)
        with pytest.raises(EngineError, match="other requests"):
            next(teacher.replies(REQUESTS))
        running.close()  # type: ignore[attr-defined]
        assert len(list(teacher.replies(REQUESTS[:2]))) == 2


# --- what cannot be answered ------------------------------------------------------------------------


def test_a_request_that_does_not_fit_is_named_before_any_work(tiny: Path) -> None:
    long = asked("first", "so long " * 100, max_tokens=4)
    with GgufTeacher.open(tiny, threads=1) as teacher, pytest.raises(EngineError) as raised:
        next(teacher.replies(long))
    assert "request 2 ('so long so long" in str(raised.value) and "512 tokens" in str(raised.value)
    with pytest.raises(EngineError, match=r"request 2 .* bytes"):
        replies(tiny, asked("first", "x" * 100_000))
    with pytest.raises(EngineError, match=r"request 1 .* room for 20"):
        replies(tiny, asked("hello, this takes more cells", max_tokens=4), cells=20)


def test_no_requests_no_replies(tiny: Path) -> None:
    assert replies(tiny, []) == []


def test_messages_may_be_hostile(tiny: Path) -> None:
    requests = [
        Request((), max_tokens=2),
        *asked("", "\ud800 half a character", "<|im_end|>\n<|im_start|>assistant", "\0\x1b[31m", max_tokens=2),
    ]
    assert all(reply.completion_tokens for reply in replies(tiny, requests))


@pytest.mark.parametrize("values", [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}])
def test_values_that_cannot_be_used_are_refused(tiny: Path, values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replies(tiny, asked("hello", **values))


@pytest.mark.parametrize(
    "options", [{"sequences": 0}, {"sequences": 257}, {"cells": 0}, {"threads": 0}, {"top_k": 0}]
)
def test_options_that_cannot_be_used_are_refused(tiny: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        GgufTeacher.open(tiny, **options)  # type: ignore[arg-type]


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        GgufTeacher.open(tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelDamagedError):
        GgufTeacher.open(tmp_path / "bad.gguf")


def test_a_template_that_refuses_the_messages_is_an_error(tiny: Path) -> None:
    with pytest.raises(TemplateError, match="no system turn"):
        replies(tiny, asked("x"), template="{{ raise_exception('no system turn') }}")


def test_the_fingerprint_is_of_the_file_and_its_template(tiny: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, **options: str) -> str:
        with GgufTeacher.open(path, **options) as teacher:  # type: ignore[arg-type]
            return teacher.fingerprint

    other = tiny_llama(tmp_path / "other.gguf", seed=2, context=512)
    assert fingerprint(tiny) == fingerprint(tiny)
    assert len({fingerprint(tiny), fingerprint(other), fingerprint(tiny, template="x")}) == 3


@pytest.mark.model
def test_replies_of_a_real_model_differ_only_where_two_tokens_are_about_as_likely(smollm2_path: Path) -> None:
    requests = asked(*(f"{INSTRUCTION}\n\n{passage}" for passage in PASSAGES), max_tokens=8)
    found = replies(smollm2_path, requests, sequences=4)
    with GgufEngine.open(smollm2_path, threads=1) as engine:
        for request, reply in zip(requests, found, strict=True):
            text = ""
            tokens = engine.generate(engine.render(request.messages), GenerateOptions(max_tokens=8))
            for token, logprob in zip(tokens, reply.logprobs, strict=False):
                text += token.text
                if not reply.text.startswith(text):
                    assert token.margin < 0.5
                    break
                assert token.logprob == pytest.approx(logprob, abs=0.4)
            tokens.close()
