"""What of a decoder is trained: matrices that change nothing at first, and weights as a file will hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_files import tiny_llama

pytest.importorskip("llama_cpp")
pytest.importorskip("torch")

import torch

from edge_sdk.errors import ConfigError
from quantize.gguf_models.ggml import dequantize_rows, quantize_rows
from quantize.students.decoder_lora import MATRICES, GridLinear, Lora, add_grid, add_lora, lora_layers, refresh_grid
from quantize.students.decoder_model import DecoderModel

TOKENS = torch.tensor([[5, 80, 260, 100, 7, 33]])


@pytest.fixture
def model(tmp_path: Path) -> DecoderModel:
    return DecoderModel.from_gguf(tiny_llama(tmp_path / "tiny.gguf"))


def test_new_matrices_change_nothing_and_are_all_that_is_trained(model: DecoderModel) -> None:
    before = model(TOKENS)
    add_lora(model, Lora(rank=2, alpha=4.0))
    torch.testing.assert_close(model(TOKENS), before)
    names = {name for name, each in model.named_parameters() if each.requires_grad}
    assert names == {f"blk.0.{matrix}.lora_{half}" for matrix in MATRICES for half in "ab"}
    assert [name for name, _ in lora_layers(model)] == [f"blk.0.{matrix}.weight" for matrix in MATRICES]


def test_equal_seeds_give_equal_matrices_and_leave_the_randomness_of_others_alone(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        model = DecoderModel.from_gguf(tiny_llama(tmp_path / f"{number}.gguf"))
        state = torch.get_rng_state()
        add_lora(model, Lora(rank=2, matrices=("attn_q",)), seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        found.append(model.blk[0].attn_q.lora_a)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_frozen_halves_say_nearly_the_same_and_still_learn(model: DecoderModel) -> None:
    before = model(TOKENS)
    add_lora(model, Lora(rank=2), frozen=torch.bfloat16)
    after = model(TOKENS)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, atol=0.1, rtol=0.1)
    after.square().mean().backward()
    assert model.blk[0].ffn_up.lora_b.grad.dtype == torch.float32
    assert model.blk[0].ffn_up.lora_b.grad.abs().max() > 0


@pytest.mark.parametrize("type", ["Q4_0", "IQ4_NL", "Q8_0"])
def test_on_a_grid_weights_are_those_of_the_file_to_come(model: DecoderModel, type: str) -> None:
    plain = model.blk[0].ffn_up.weight.detach().numpy().copy()
    add_grid(model, type)
    layer = model.blk[0].ffn_up
    used = (layer.weight + layer.rounding).detach().numpy()
    np.testing.assert_allclose(used, dequantize_rows(quantize_rows(plain, type), type, 32), atol=1e-7)
    model(TOKENS).square().mean().backward()
    assert layer.weight.grad is not None  # it goes through as if nothing had been rounded
    with torch.no_grad():
        layer.weight += 0.5
    refresh_grid(model)
    moved = dequantize_rows(quantize_rows(plain + np.float32(0.5), type), type, 32)
    np.testing.assert_allclose((layer.weight + layer.rounding).detach().numpy(), moved, atol=1e-6)
    assert isinstance(model.blk[0].attn_q, GridLinear)


def test_settings_that_make_no_sense_are_refused(model: DecoderModel) -> None:
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"dropout": 1.0}, {"matrices": ()}):
        with pytest.raises(ConfigError):
            Lora(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no matrix 'attn_x' to adapt; use some of attn_q"):
        Lora(matrices=("attn_q", "attn_x"))
    with pytest.raises(ConfigError, match=r"blocks of Q4_K do not fill the rows of blk\.0\.attn_q"):
        add_grid(model, "Q4_K")
