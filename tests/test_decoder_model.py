"""The decoder in torch says what llama.cpp says of the same file, however it is fed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf_files import F32, STRING, U32, Field, tiny_llama

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")

import torch

from edge_sdk.errors import ConfigError, ModelDamagedError
from quantize.gguf_models.tensors import GgufModel
from quantize.gguf_models.window_logits import LogitModel
from quantize.gguf_models.workbench import dequantized
from quantize.students.decoder_model import DecoderModel

TOKENS = [5, 80, 260, 100, 7, 33, 261, 12, 90, 150, 201, 44]


def says(path: Path, tokens: list[int] = TOKENS) -> np.ndarray:
    """llama.cpp's logits behind every token."""
    model = LogitModel(path, context=64, threads=1)
    try:
        row = np.asarray([*tokens, 0], np.int32)
        return np.concatenate([part.copy() for part, _ in model.logits(row, 0)])
    finally:
        model.close()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_logits_are_llama_cpps(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf", seed=3)
    model = DecoderModel.from_gguf(path)
    with torch.inference_mode():
        found = model.logits(model(torch.tensor([TOKENS])))[0].numpy()
    np.testing.assert_allclose(found, says(path), atol=2e-2)


def test_a_branch_is_read_as_if_it_stood_alone_behind_its_prefix(tmp_path: Path) -> None:
    """Two continuations of one prefix side by side, each with the prefix's positions behind it."""
    model = DecoderModel.from_gguf(tiny_llama(tmp_path / "tiny.gguf"))
    prefix, one, two = TOKENS[:6], [9, 70, 71], [11, 91]
    row = torch.tensor([[*prefix, *one, *two]])
    positions = torch.tensor([[*range(6), 6, 7, 8, 6, 7]])
    part = torch.tensor([0] * 6 + [1] * 3 + [2] * 2)
    seen = ((part[:, None] == part[None]) | (part[None] == 0)) & torch.ones(11, 11, dtype=torch.bool).tril()
    with torch.inference_mode():
        both = model(row, positions, seen[None])[0]
        alone = [model(torch.tensor([[*prefix, *branch]]))[0] for branch in (one, two)]
    torch.testing.assert_close(both[:9], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[9:], alone[1][6:], atol=1e-5, rtol=1e-4)


def test_recomputing_gives_the_same_gradients(tmp_path: Path) -> None:
    model, found = DecoderModel.from_gguf(tiny_llama(tmp_path / "tiny.gguf")), []
    for model.recompute in (False, True):
        model.zero_grad()
        model.logits(model(torch.tensor([TOKENS]))).square().mean().backward()
        found.append(model.blk[0].attn_q.weight.grad.clone())
    torch.testing.assert_close(*found)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    scaled = {"llama.rope.scaling.type": Field(STRING, "linear"), "llama.rope.scaling.factor": Field(F32, 2.0)}
    with pytest.raises(ConfigError, match="scaled by linear"):
        DecoderModel.from_gguf(tiny_llama(tmp_path / "a.gguf", extra=scaled))
    with pytest.raises(ConfigError, match="architecture 'gemma3'"):
        DecoderModel.from_gguf(
            tiny_llama(tmp_path / "b.gguf", extra={"general.architecture": Field(STRING, "gemma3")})
        )
    with pytest.raises(ModelDamagedError, match=r"blk\.0\.ffn_gate\.weight is \(32, 64\), not \(32, 96\)"):
        DecoderModel.from_gguf(tiny_llama(tmp_path / "c.gguf", extra={"llama.feed_forward_length": Field(U32, 96)}))
    with pytest.raises(ConfigError, match=r"layers \[0, 1\] are not among the 1 of"):
        DecoderModel.from_gguf(tiny_llama(tmp_path / "d.gguf"), layers=[0, 1])


@pytest.mark.model
def test_smollm2_says_what_llama_cpp_says_of_its_weights(smollm2_path: Path, tmp_path: Path) -> None:
    exact = dequantized(GgufModel(smollm2_path), tmp_path / "exact.gguf")
    tokens = [504, 260, 2933, 282, 6181, 355, 1250, 30, 1131, 614, 338, 5200]
    expected, model = says(exact, tokens), DecoderModel.from_gguf(smollm2_path)
    with torch.inference_mode():
        found = model.logits(model(torch.tensor([tokens])))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.1)  # its keys and values are of half precision
    assert (found.argmax(1) == expected.argmax(1)).all()
