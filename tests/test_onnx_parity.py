"""How far two models are apart: figures that are right, and texts to take them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx_files import decoder_tensors, write_decoder

from edge_sdk.errors import ConfigError, DocumentError, EngineError
from quantize.onnx_models.parity import (
    ALL_DECODER_TOKENS,
    MAX_DECODER_TOKENS,
    MAX_TEXTS,
    DecoderFolder,
    compare_logits,
    compare_vectors,
    decoder_tokens,
    made_up_texts,
    read_texts,
)

LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    write_decoder(folder, decoder_tensors())
    return folder


@given(ours=LOGITS, theirs=LOGITS)
def test_divergence_is_that_of_the_distributions(ours: np.ndarray, theirs: np.ndarray) -> None:
    found = compare_logits(iter(ours), iter(theirs))
    p, q = (np.exp(part.astype(np.float64)) for part in (ours, theirs))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    assert found.kld_mean == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), abs=2e-6)
    assert found.max_difference == pytest.approx(np.abs(ours - theirs).max(), abs=2e-6)
    assert found.top1_agreement == pytest.approx((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean(), abs=1e-6)


@given(rows=LOGITS, shift=st.floats(-5, 5, width=32))
def test_a_constant_added_to_all_logits_is_no_divergence(rows: np.ndarray, shift: float) -> None:
    found = compare_logits(iter(rows), iter(rows + np.float32(shift)))
    assert found.kld_mean == pytest.approx(0, abs=1e-5)


def test_other_lengths_and_vocabularies_cannot_be_compared() -> None:
    rows = np.zeros((2, 5), np.float32)
    with pytest.raises(ConfigError, match="5 and 4 tokens"):
        compare_logits(iter(rows), iter(rows[:, :4]))
    with pytest.raises(ValueError, match="shorter"):
        compare_logits(iter(rows), iter(rows[:1]))
    with pytest.raises(ConfigError, match="no token"):
        compare_logits(iter(rows[:0]), iter(rows[:0]))
    with pytest.raises(ConfigError, match="cannot be compared"):
        compare_vectors(rows, rows[:, :4])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_no_agreement(value: float) -> None:
    good, bad = np.zeros((1, 5), np.float32), np.full((1, 5), value, np.float32)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(EngineError, match="not finite"):
            compare_logits(*map(iter, pair))


def test_a_text_without_tokens_agrees_only_with_none() -> None:
    ones, zeros = np.array([[0.6, 0.8]], np.float32), np.zeros((1, 2), np.float32)
    assert compare_vectors(zeros, zeros).cosine_min == 1.0
    assert compare_vectors(zeros, ones).cosine_min == 0.0
    assert compare_vectors(ones, ones).cosine_mean == 1.0


def test_a_decoder_folder_gives_the_logits_behind_every_token(folder: Path) -> None:
    """The made-up decoder's: sine of the sums of the embeddings so far and the position, times the head."""
    tensors = decoder_tensors()
    decoder = DecoderFolder(folder, threads=1)
    texts = [[72, 105], [33, 34, 35]]
    expected = [
        np.sin(tensors["table"][text[: at + 1]].sum(axis=0) + tensors["places"][at]) @ tensors["head"]
        for text in texts
        for at in range(len(text))
    ]
    for _ in range(2):  # again: nothing of an earlier text is left
        found = np.array(list(decoder.logits(texts)))
        assert found == pytest.approx(np.array(expected), abs=1e-4)
        decoder.prefill([1, 2, 3])
        decoder.decode([4])


def test_texts_are_cut_to_tokens_and_empty_ones_left_out(folder: Path) -> None:
    tokens = decoder_tokens(folder, ["", "abc", "x" * 1000])
    assert tokens == [list(b"abc"), list(b"x" * MAX_DECODER_TOKENS)]
    assert sum(map(len, decoder_tokens(folder, ["y" * 60] * 20))) == ALL_DECODER_TOKENS
    assert sum(map(len, decoder_tokens(folder))) == ALL_DECODER_TOKENS


def test_made_up_texts_are_sentences_and_passages_all_different() -> None:
    texts = made_up_texts()
    assert len(set(texts)) == len(texts) == 32
    assert max(map(len, texts)) > 4 * min(map(len, texts))


def test_a_file_gives_a_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n\n  two \n" + "more\n" * 500, "utf-8")
    assert read_texts(path)[:3] == ["one", "two", "more"]
    assert len(read_texts(path)) == MAX_TEXTS


def test_a_file_without_text_is_refused(tmp_path: Path) -> None:
    for content in (b"", b" \n\n", b"\xff\xfe\x00"):
        (tmp_path / "texts.txt").write_bytes(content)
        with pytest.raises(DocumentError, match=r"texts\.txt"):
            read_texts(tmp_path / "texts.txt")
    with pytest.raises(DocumentError, match="No such file"):
        read_texts(tmp_path / "nothing.txt")
