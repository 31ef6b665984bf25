"""Windows of a text and the logits behind their tokens, from a model of one layer."""

from __future__ import annotations

from pathlib import Path
from threading import Event as Flag

import numpy as np
import pytest
from gguf_files import BOOL, STRING, Field, byte_alphabet, tiny_llama

from edge_sdk.errors import ConfigError, EngineError, ModelDamagedError, ModelNotFoundError
from quantize.gguf_models import window_logits
from quantize.gguf_models.window_logits import check_same_vocabulary, open_models, read_text, slices

TEXT = "the rhine flows through basel and the stars are in the sky above the river; " * 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=1024)


def all_logits(path: Path, length: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    with open_models(path, context=length, threads=1) as (model,):
        parts = [(rows.copy(), next_) for rows, next_ in model.logits(model.windows(TEXT, length)[0], first)]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([next_ for _, next_ in parts])


def test_logits_of_a_window_are_those_of_its_scored_positions(tiny: Path) -> None:
    rows, following = all_logits(tiny, 600, 0)
    tail, tail_following = all_logits(tiny, 600, 400)
    assert rows.shape == (599, 267) and tail.shape == (199, 267)
    assert np.array_equal(tail, rows[400:]) and np.array_equal(tail_following, following[400:])


def test_the_tokens_that_follow_are_the_window_moved_by_one(tiny: Path) -> None:
    _, following = all_logits(tiny, 64, 0)
    with open_models(tiny, context=64, threads=1) as (model,):
        assert following.tolist() == model.windows(TEXT, 64)[0, 1:].tolist()


def test_each_window_starts_afresh(tiny: Path) -> None:
    with open_models(tiny, context=64, threads=1) as (model,):
        first, second = model.windows(TEXT, 64)[:2]
        alone = [rows.copy() for rows, _ in model.logits(second, 32)]
        list(model.logits(first, 32))
        after = [rows.copy() for rows, _ in model.logits(second, 32)]
    assert np.array_equal(alone, after)


@pytest.mark.parametrize("count", [1, 127, 128, 256, 257, 383, 384, 511, 2047])
def test_slices_cover_all_and_none_is_small(count: int) -> None:
    parts = list(slices(count))
    assert [at for part in parts for at in range(*part)] == list(range(count))
    assert min(end - start for start, end in parts) >= min(count, window_logits.SLICE // 2)


def test_what_spells_a_control_token_stays_text_and_windows_begin_as_the_vocabulary_wants(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "bos.gguf", extra={"tokenizer.ggml.add_bos_token": Field(BOOL, 1)})
    with open_models(path, context=16, threads=1) as (model,):
        tokens = model.plain_tokens("<|im_end|> and")
        windows = model.windows(TEXT, 16)
        plain = model.plain_tokens(TEXT)
    assert 2 not in tokens and tokens[0] == 0  # the vocabulary's own first token is there
    assert (windows[:, 0] == 0).all()
    assert windows[:, 1:].tolist() == [plain[at + 1 : at + 16] for at in range(0, len(plain) // 16 * 16, 16)]


def test_what_does_not_fill_a_window_is_dropped(tiny: Path) -> None:
    with open_models(tiny, context=16, threads=1) as (model,):
        assert model.windows([*range(40)], 16).tolist() == [[*range(16)], [*range(16, 32)]]
        with pytest.raises(ConfigError, match="has 3 tokens, which is less than a window of 16"):
            model.windows([1, 2, 3], 16)
        with pytest.raises(ConfigError, match="token 267 is not among the 267"):
            model.windows([267] * 20, 16)
        with pytest.raises(ConfigError, match="token -1 "):
            model.windows([0] * 19 + [-1], 16)


def test_a_cancelled_evaluation_raises_and_the_model_goes_on_afterwards(tiny: Path) -> None:
    with open_models(tiny, context=64, threads=1) as (model,):
        window, cancel = model.windows(TEXT, 64)[0], Flag()
        cancel.set()
        with pytest.raises(KeyboardInterrupt):
            list(model.logits(window, 0, cancel))
        assert len(list(model.logits(window, 0))) == 1


def test_what_cannot_be_opened_is_said_before_anything_is_loaded(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny.read_bytes()[:5000])
    for paths, error in (((tiny, broken), ModelDamagedError), ((tiny, tmp_path / "no.gguf"), ModelNotFoundError)):
        with pytest.raises(error), open_models(*paths, context=64, threads=1):
            pass
    for context, threads in ((4, 1), (2048, 1), (64, 0)):
        with pytest.raises(ConfigError), open_models(tiny, context=context, threads=threads):
            pass


def test_too_little_memory_is_said_with_figures(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_logits, "available_memory", lambda: 1 << 16)
    with pytest.raises(EngineError, match=r"need \d+ MiB, but 0 MiB are free"), open_models(tiny, context=64):
        pass


def test_vocabularies_are_compared_token_by_token(tiny: Path, tmp_path: Path) -> None:
    alphabet = byte_alphabet()
    words = ["th", "the", "Ġthe", "in", "er", "an", "Ġa", "und"]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    extra = {"tokenizer.ggml.tokens": Field(STRING, [*control, *alphabet, *words])}
    other = tiny_llama(tmp_path / "other.gguf", extra=extra)
    with open_models(tiny, other, context=64, threads=1) as (ours, theirs):
        check_same_vocabulary(ours.texts(), ours.texts(), "itself")
        with pytest.raises(ConfigError, match=r"token 266 is 'und' in other and 'and' in the reference"):
            check_same_vocabulary(ours.texts(), theirs.texts(), "other")
        with pytest.raises(ConfigError, match="other has 266 tokens and the reference 267"):
            check_same_vocabulary(ours.texts(), theirs.texts()[:-1], "other")


def test_texts_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_text(tmp_path / "latin.txt")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path / "none.txt")
