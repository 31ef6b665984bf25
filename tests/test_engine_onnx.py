from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_files import SPECIAL, VOCABULARY, decoder_tensors, write_decoder, write_encoder, write_tokenizer

from edge_sdk.engines.engine import Engine
from edge_sdk.engines.engine_onnx import OnnxEngine
from edge_sdk.errors import (
    ConfigError,
    ContextOverflowError,
    EngineError,
    GrammarError,
    ModelDamagedError,
    ModelNotFoundError,
    TemplateError,
)
from edge_sdk.records import GenerateOptions, GenerationResult, Message, Token

END = SPECIAL["<|end|>"]
TENSORS = decoder_tensors()
TENSORS["head"][:, END] = 0.0  # never the best: generations run to the limit unless a test wants otherwise
GREEDY = GenerateOptions(max_tokens=24)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=40)  # no special tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    write_decoder(folder, TENSORS)
    return folder


@pytest.fixture
def engine(folder: Path) -> OnnxEngine:
    return OnnxEngine.open(folder, name="tiny", threads=1)


@pytest.fixture(scope="module")
def shared(folder: Path) -> OnnxEngine:
    return OnnxEngine.open(folder, name="tiny", threads=1)


def _logits(ids: list[int], tensors: dict[str, np.ndarray] = TENSORS) -> np.ndarray:
    """What the graph computes, for the whole text at once and without a cache."""
    sums = np.cumsum(tensors["table"][ids], axis=0) + tensors["places"][: len(ids)]
    return np.asarray(np.sin(sums[-1]) @ tensors["head"])


def _greedy(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(_logits(ids))))
    return ids[len(prompt) :]


def _run(
    engine: OnnxEngine, prompt: str, options: GenerateOptions = GREEDY
) -> tuple[list[Token], GenerationResult]:
    generation = engine.generate(prompt, options)
    return list(generation), generation.result


def _ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]


def test_it_is_an_engine(engine: OnnxEngine) -> None:
    protocol: Engine = engine
    assert (protocol.name, protocol.context) == ("tiny", 256)


@given(prompt=TEXT)
@settings(deadline=None, max_examples=40)
def test_greedy_tokens_are_those_of_a_full_forward_at_each_step(shared: OnnxEngine, prompt: str) -> None:
    tokens, result = _run(shared, prompt)
    ids = list(prompt.encode())
    assert _ids(tokens) == _greedy(ids, 24)
    assert (result.finish_reason, result.prompt_tokens, result.completion_tokens) == ("length", len(ids), 24)


@given(first=TEXT, second=TEXT, common=TEXT)
@settings(deadline=None, max_examples=40)
def test_a_reused_prefix_changes_nothing_but_the_work(
    shared: OnnxEngine, folder: Path, first: str, second: str, common: str
) -> None:
    before = _ids(_run(shared, common + first)[0])
    seen = [*(common + first).encode(), *before[:-1]]  # the last token was never fed
    tokens, result = _run(shared, common + second)
    prompt = list((common + second).encode())
    overlap = next(
        (at for at, (a, b) in enumerate(zip(seen, prompt, strict=False)) if a != b), min(len(seen), len(prompt))
    )
    assert result.cached_tokens == min(overlap, len(prompt) - 1) >= min(len(common.encode()), len(prompt) - 1)
    assert _ids(tokens) == _greedy(prompt, 24)


def test_the_logits_behind_a_reused_prefix_are_the_cold_ones(engine: OnnxEngine, folder: Path) -> None:
    _run(engine, "The first question is long enough.")
    warm, result = _run(engine, "The first answer.")
    cold, _ = _run(OnnxEngine.open(folder, threads=1), "The first answer.")
    assert result.cached_tokens == len("The first ")
    for one, other in zip(warm, cold, strict=True):
        assert (one.id, one.text) == (other.id, other.text)
        assert (one.logprob, one.entropy, one.margin) == pytest.approx((other.logprob, other.entropy, other.margin))


def test_a_conversation_reuses_its_answer(tmp_path: Path) -> None:
    tensors = {name: array.copy() for name, array in TENSORS.items()}
    tensors["head"][:, 128:] = 0.0  # so that it answers in ASCII
    write_decoder(tmp_path, tensors)
    engine = OnnxEngine.open(tmp_path, threads=1)
    answer = "".join(token.text for token in _run(engine, "ab", GenerateOptions(max_tokens=5))[0])
    _, result = _run(engine, "ab" + answer + "cd")
    assert result.cached_tokens == len("ab" + answer) - 1  # the last token of an answer is never fed


@pytest.mark.parametrize(("run_tokens", "equal"), [(None, True), (128, False)])  # 128: what would go wrong
def test_a_dynamically_quantized_graph_reads_one_token_at_a_time(
    tmp_path: Path, run_tokens: int | None, equal: bool
) -> None:
    write_decoder(tmp_path, TENSORS, quantized=True)
    warm, cold = OnnxEngine.open(tmp_path, threads=1), OnnxEngine.open(tmp_path, threads=1)
    if run_tokens:
        warm._loaded()._run_tokens = cold._loaded()._run_tokens = run_tokens
    _run(warm, "The first question.")
    assert (_run(warm, "The first answer.")[0] == _run(cold, "The first answer.")[0]) is equal


def test_confidence_is_that_of_the_raw_logits(engine: OnnxEngine) -> None:
    tokens, _ = _run(engine, "abc", GenerateOptions(max_tokens=5, temperature=2.0, top_k=0, seed=11))
    ids = list(b"abc")
    for token in tokens:
        logits = _logits(ids).astype(np.float64)
        logs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        best, second = np.sort(logs)[::-1][:2]
        assert token.logprob == pytest.approx(logs[token.id], abs=1e-4)
        assert token.entropy == pytest.approx(-(np.exp(logs) * logs).sum(), abs=1e-4)
        assert token.margin == pytest.approx(best - second, abs=1e-4)
        ids.append(token.id)


def test_streamed_text_is_the_decoding_of_all_ids(engine: OnnxEngine) -> None:
    for seed in range(5):
        tokens, _ = _run(engine, "é", GenerateOptions(max_tokens=60, temperature=3.0, top_k=0, seed=seed))
        raw = bytes(token.id for token in tokens if token.id < 256)
        assert "".join(token.text for token in tokens) == raw.decode("utf-8", "replace")


def _ending(tmp_path: Path, prompt: str, after: int) -> OnnxEngine:
    """An engine that ends its answer to `prompt` after some tokens."""
    ids = [*prompt.encode(), *_greedy(list(prompt.encode()), after)]
    sums = TENSORS["table"][ids].sum(axis=0) + TENSORS["places"][len(ids) - 1]
    tensors = {name: array.copy() for name, array in TENSORS.items()}
    tensors["head"][:, END] = 10 * np.sin(sums)  # the largest logit where the sum points this way
    write_decoder(tmp_path, tensors)
    return OnnxEngine.open(tmp_path, threads=1)


def test_an_end_token_ends_the_answer_and_shows_no_text(tmp_path: Path) -> None:
    tokens, result = _run(_ending(tmp_path, "hello", 2), "hello")
    assert tokens[-1].id == END
    assert len(tokens) == result.completion_tokens <= 3
    assert result.finish_reason == "stop"
    assert "<|end|>" not in "".join(token.text for token in tokens)


def test_end_tokens_come_from_every_place_that_names_them(tmp_path: Path) -> None:
    _ending(tmp_path, "hello", 2)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings_file = tmp_path / "tokenizer_config.json"
    without = json.loads(settings_file.read_text())
    del without["eos_token"]
    for eos_token, generation in (("<|end|>", {}), (None, {"eos_token_id": [7, END]}), (None, {})):
        settings_file.write_text(json.dumps({**without, "eos_token": eos_token}))
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        assert _run(OnnxEngine.open(tmp_path, threads=1), "hello")[1].finish_reason == "stop"


def test_stop_strings_end_the_text_before_them(engine: OnnxEngine) -> None:
    whole = "".join(token.text for token in _run(engine, "stop here")[0])
    stop = whole[4:6]
    tokens, result = _run(engine, "stop here", GenerateOptions(max_tokens=24, stop=(stop, "never")))
    assert result.finish_reason == "stop"
    assert "".join(token.text for token in tokens) == whole[: whole.find(stop)]


def test_cancelling_ends_between_tokens_and_within_the_prefill(engine: OnnxEngine) -> None:
    cancel = threading.Event()
    generation = engine.generate("abc", GREEDY, cancel)
    next(generation)
    next(generation)
    cancel.set()
    assert list(generation) == []
    assert (generation.result.finish_reason, generation.result.completion_tokens) == ("cancelled", 2)

    generation = engine.generate("x" * 200, GREEDY, cancel)
    assert list(generation) == []
    assert (generation.result.finish_reason, generation.result.completion_tokens) == ("cancelled", 0)


def test_a_prefill_is_cancelled_between_its_runs(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = threading.Event()
    decoder = engine._loaded()
    feed = decoder.feed

    def feed_and_cancel(tokens: list[int]) -> np.ndarray:
        cancel.set()
        return feed(tokens)

    monkeypatch.setattr(decoder, "feed", feed_and_cancel)
    generation = engine.generate("x" * 200, GREEDY, cancel)
    assert list(generation) == []
    assert generation.result.finish_reason == "cancelled"
    monkeypatch.undo()
    assert 0 < _run(engine, "x" * 200)[1].cached_tokens < 200  # what was read is kept
    assert _ids(_run(engine, "x" * 200)[0]) == _greedy(list(b"x" * 200), 24)


def test_a_prefix_can_be_cut_twice_without_a_run_between(engine: OnnxEngine) -> None:
    _run(engine, "abcdef")
    cancelled = threading.Event()
    cancelled.set()
    for prompt, cached in (("abcdxx", 4), ("abxx", 2), ("xx", 0)):
        generation = engine.generate(prompt, GREEDY, cancelled)
        assert list(generation) == []
        assert generation.result.cached_tokens == cached
    assert _ids(_run(engine, "abx")[0]) == _greedy(list(b"abx"), 24)


def test_a_failing_run_leaves_the_cache_as_it_was(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = engine._loaded()._session
    generation = engine.generate("abc", GREEDY)
    next(generation)

    def fail(*_: Any) -> None:
        raise EngineError("out of luck")

    monkeypatch.setattr(session, "run", fail)
    with pytest.raises(EngineError, match="out of luck"):
        list(generation)
    monkeypatch.undo()
    assert _ids(_run(engine, "abcd")[0]) == _greedy(list(b"abcd"), 24)


def test_one_generation_at_a_time_and_closing_frees_the_engine(engine: OnnxEngine) -> None:
    first = engine.generate("abc", GREEDY)
    next(first)
    with pytest.raises(EngineError, match="busy"):
        next(engine.generate("abd", GREEDY))
    first.close()
    never_started = engine.generate("abe", GREEDY)
    assert _ids(_run(engine, "abd")[0]) == _greedy(list(b"abd"), 24)
    never_started.close()


def test_what_does_not_fit_the_context_is_an_error_with_numbers(engine: OnnxEngine) -> None:
    with pytest.raises(ContextOverflowError, match=r"250 prompt tokens and 7 for the answer .* context of 256"):
        engine.generate("x" * 250, GenerateOptions(max_tokens=7))
    with pytest.raises(ContextOverflowError, match="context of 256") as caught:  # not even tokenized
        engine.generate("x" * (100 << 20), GREEDY)
    assert 256 < caught.value.prompt_tokens <= 100 << 20
    tokens, result = _run(engine, "x" * 250, GenerateOptions(max_tokens=6))
    assert len(tokens) == 6
    assert result.prompt_tokens == 250


def test_the_context_is_the_smaller_of_the_setting_and_the_model(folder: Path) -> None:
    assert OnnxEngine.open(folder, threads=1, context=100).context == 100
    assert OnnxEngine.open(folder, threads=1, context=10_000).context == 256
    for context, threads in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError, match="1 or more"):
            OnnxEngine.open(folder, context=context, threads=threads)


def test_a_prompt_longer_than_one_run_is_read_the_same(engine: OnnxEngine) -> None:
    prompt = "0123456789" * 22  # 220 tokens: two runs
    assert _ids(_run(engine, prompt, GenerateOptions(max_tokens=8))[0]) == _greedy(list(prompt.encode()), 8)


@pytest.mark.parametrize(
    "options",
    [
        GenerateOptions(json_schema="{}"),
        GenerateOptions(grammar='root ::= "a"'),
        GenerateOptions(grammar=""),
        GenerateOptions(choices=(("a", 0.0),)),
    ],
)
def test_what_cannot_be_obeyed_is_refused_and_never_ignored(engine: OnnxEngine, options: GenerateOptions) -> None:
    with pytest.raises(GrammarError, match="tiny"):
        engine.generate("abc", options)


@pytest.mark.parametrize("options", [GenerateOptions(max_tokens=0), GenerateOptions(temperature=-1.0)])
def test_options_that_mean_nothing_are_refused(engine: OnnxEngine, options: GenerateOptions) -> None:
    with pytest.raises(ConfigError):
        engine.generate("abc", options)


def test_an_empty_prompt_is_refused(engine: OnnxEngine) -> None:
    with pytest.raises(EngineError, match="empty"):
        engine.generate("", GREEDY)


@pytest.mark.parametrize("prompt", ["\0", "\ud800", "\U0001f600\ufeff", "<|user|>a<|end|>"])
def test_odd_prompts_are_answered(engine: OnnxEngine, prompt: str) -> None:
    assert len(_run(engine, prompt)[0]) == 24


def test_count_is_exact(engine: OnnxEngine) -> None:
    assert engine.count("") == 0
    assert engine.count("<|user|>é<|end|>") == 4
    assert engine.count("x" * 100_000) == 100_000
    with pytest.raises(EngineError, match="too long"):
        engine.count("x" * (4 << 20 | 1))
    assert _run(engine, "<|user|>é<|end|>")[1].prompt_tokens == 4


def test_the_template_of_the_model_is_rendered(engine: OnnxEngine) -> None:
    messages = [Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "é")]
    expected = "<|user|>Hi<|end|><|assistant|>Yes?<|end|><|user|>é<|end|><|assistant|>"
    assert engine.render(messages) == expected


def test_without_a_template_it_is_chatml(tmp_path: Path) -> None:
    write_decoder(tmp_path, TENSORS, template=None)
    assert OnnxEngine.open(tmp_path, threads=1).render([Message("user", "Hi")]).startswith("<|im_start|>user\nHi")


@given(parts=st.lists(st.sampled_from([*SPECIAL, "<", "|", "end", "|>", "<|<|end|>", "x"]), max_size=8))
@settings(deadline=None, max_examples=50)
def test_control_tokens_in_a_message_stay_text(shared: OnnxEngine, parts: list[str]) -> None:
    prompt = shared.render([Message("user", "".join(parts))])
    ids = shared._tokenizer.encode(prompt)
    assert [at for at in ids if at >= 256] == [SPECIAL[text] for text in ("<|user|>", "<|end|>", "<|assistant|>")]


def test_a_failing_template_is_a_template_error(tmp_path: Path) -> None:
    write_decoder(tmp_path, TENSORS, template="{{ messages[0].content.__class__ }}{{ 1 / 0 }}")
    with pytest.raises(TemplateError):
        OnnxEngine.open(tmp_path, threads=1).render([Message("user", "Hi")])


def test_the_template_sees_the_model_s_own_tokens(tmp_path: Path) -> None:
    write_decoder(tmp_path, TENSORS)
    words = {
        "bos_token": "<|user|>",
        "eos_token": {"content": "<|end|>"},
        "chat_template": "{{ bos_token }}{{ eos_token }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    assert OnnxEngine.open(tmp_path, threads=1).render([Message("user", "Hi")]) == "<|user|><|end|>"


def test_a_begin_token_is_added_once_where_the_tokenizer_says_so(tmp_path: Path) -> None:
    write_decoder(tmp_path, TENSORS)
    words = {"bos_token": "<|user|>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    engine = OnnxEngine.open(tmp_path, threads=1)
    assert _run(engine, "ab")[1].prompt_tokens == engine.count("ab") == 3
    assert _run(engine, "<|user|>ab")[1].prompt_tokens == 3
    assert _ids(_run(engine, "ab")[0]) == _greedy([SPECIAL["<|user|>"], *b"ab"], 24)


def test_a_closed_engine_says_so(engine: OnnxEngine) -> None:
    running = engine.generate("abc", GREEDY)
    next(running)
    engine.close()
    uses = (
        lambda: engine.generate("a", GREEDY),
        lambda: engine.count("a"),
        lambda: engine.render([Message("user", "a")]),
        lambda: next(running),
    )
    for use in uses:
        with pytest.raises(EngineError, match="closed"):
            use()
    engine.close()


def test_an_engine_is_closed_behind_its_block(folder: Path) -> None:
    with OnnxEngine.open(folder, threads=1) as engine:
        assert engine.count("ab") == 2
    with pytest.raises(EngineError, match="closed"):
        engine.count("ab")


def test_logits_that_are_not_finite_are_an_engine_error(tmp_path: Path) -> None:
    tensors = {name: array.copy() for name, array in TENSORS.items()}
    tensors["table"][ord("!")] = np.nan
    write_decoder(tmp_path, tensors)
    engine = OnnxEngine.open(tmp_path, threads=1)
    with pytest.raises(EngineError, match="nan as a logit"):
        _run(engine, "a!")


def test_damage_and_other_models_are_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        OnnxEngine.open(tmp_path)
    write_encoder(tmp_path / "encoder", np.ones((VOCABULARY, 4), np.float32))
    with pytest.raises(EngineError, match="encoder is not a decoder with a KV cache"):
        OnnxEngine.open(tmp_path / "encoder", threads=1)
    write_decoder(tmp_path / "cut", TENSORS)
    path = tmp_path / "cut" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelDamagedError, match="not a whole ONNX file"):
        OnnxEngine.open(tmp_path / "cut", threads=1)
    write_decoder(tmp_path / "config", TENSORS)
    (tmp_path / "config" / "config.json").write_text("{")
    with pytest.raises(ModelDamagedError, match="not JSON"):
        OnnxEngine.open(tmp_path / "config", threads=1)
    write_tokenizer(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"no \*\.onnx"):
        OnnxEngine.open(tmp_path)


# --- the real one -----------------------------------------------------------------------------------

FRANCE = [Message("user", "What is the capital of France?")]


@pytest.fixture(scope="module")
def minimind(minimind_dir: Path) -> OnnxEngine:
    return OnnxEngine.open(minimind_dir)


@pytest.mark.model
def test_minimind_answers_a_question(minimind: OnnxEngine) -> None:
    prompt = minimind.render(FRANCE)
    assert prompt.endswith("<|im_start|>assistant\n")
    tokens, result = _run(minimind, prompt, GenerateOptions(max_tokens=40))
    assert "France" in "".join(token.text for token in tokens)
    assert result.prompt_tokens == minimind.count(prompt)
    assert all(token.logprob <= 0 <= min(token.entropy, token.margin) for token in tokens)


@pytest.mark.model
def test_minimind_streams_what_its_tokenizer_decodes(minimind: OnnxEngine, minimind_dir: Path) -> None:
    from tokenizers import Tokenizer

    native = Tokenizer.from_file(str(minimind_dir / "tokenizer.json"))
    for seed in range(3):
        options = GenerateOptions(max_tokens=40, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        tokens, _ = _run(minimind, minimind.render(FRANCE), options)
        assert "".join(token.text for token in tokens) == native.decode(_ids(tokens))


@pytest.mark.model
def test_minimind_reads_the_same_with_and_without_its_cache(minimind: OnnxEngine, minimind_dir: Path) -> None:
    """Every step of a greedy answer again, from nothing; then behind a prefix that another prompt has left."""
    prompt = minimind.render(FRANCE)
    tokens, _ = _run(minimind, prompt, GenerateOptions(max_tokens=6))
    _, result = _run(minimind, minimind.render([Message("user", "What is the moon?")]))
    assert 0 < result.cached_tokens < result.prompt_tokens
    warm, _ = _run(minimind, prompt, GenerateOptions(max_tokens=6))
    assert warm == tokens
    text = prompt
    for token in tokens:
        cold, result = _run(OnnxEngine.open(minimind_dir), text, GenerateOptions(max_tokens=1))
        assert result.cached_tokens == 0
        assert cold[0].id == token.id
        assert cold[0].logprob == token.logprob
        text += cold[0].text
