"""Decoders of llama.cpp's families `llama` and `qwen2` in torch, with the weights of a GGUF file as it holds them.

Parameters are called as GGUF's tensors are, and rows stay in its order, so that what was trained is written back
without a table. Follows Touvron et al. 2023 (arXiv 2302.13971). Knows nothing of data, losses or text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edge_sdk.errors import ConfigError, ModelDamagedError

from ..gguf_models.families import ROPE_FACTORS, Decoder
from ..gguf_models.tensors import GgufModel, read_fields


class DecoderModel(nn.Module):
    """Token ids to hidden states, and these to logits: most places of a prompt need none.

    `figures` say what it is made of. `recompute` keeps a layer's input alone for the way back: less memory, a third
    more work.
    """

    def __init__(self, figures: Decoder) -> None:
        """Raises `ConfigError` for rotary positions that are stretched, which is not supported here."""
        super().__init__()
        if figures.rope is not None:
            raise ConfigError(f"rotary positions scaled by {figures.rope.kind} cannot be trained here")
        self.figures, self.recompute = figures, False
        self.token_embd = nn.Embedding(figures.vocabulary, figures.hidden)
        self.blk = nn.ModuleList(Block(figures) for _ in range(figures.layers))
        self.output_norm = nn.RMSNorm(figures.hidden, figures.epsilon)
        self.output = None if figures.tied else nn.Linear(figures.hidden, figures.vocabulary, bias=False)

    @classmethod
    def from_gguf(cls, path: Path, *, layers: Sequence[int] | None = None) -> DecoderModel:
        """The model of a file, de-quantized; of its `layers` only those given, in this order.

        Raises `ConfigError` for an architecture that is not supported, `ModelDamagedError` for weights that are
        missing or have other shapes.
        """
        source = GgufModel(path)
        shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
        whole = Decoder.from_fields(read_fields(source), shapes, path.name)
        if ROPE_FACTORS in shapes:
            whole = whole.with_rope_factors(source.floats(ROPE_FACTORS).reshape(-1))
        kept = list(range(whole.layers)) if layers is None else list(layers)
        if not kept or not all(0 <= layer < whole.layers for layer in kept):
            raise ConfigError(f"layers {kept} are not among the {whole.layers} of {path.name}")
        with torch.device("meta"):
            model = cls(replace(whole, layers=len(kept)))
        model.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stored = source_name(name, kept)
                if shapes.get(stored) != tuple(reversed(parameter.shape)):
                    raise ModelDamagedError(
                        f"{path.name}: {stored} is {shapes.get(stored)}, not {tuple(reversed(parameter.shape))}"
                    )
                weights = np.require(source.floats(stored), requirements="W")
                parameter.copy_(torch.from_numpy(weights).view(parameter.shape))
        return model

    def forward(self, tokens: Tensor, positions: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """Hidden states [batch, length, hidden] of token ids [batch, length].

        `positions` [batch, length] count from 0 unless given. `seen` [batch, length, length] is true where a token
        attends to another; every token to itself and those before it unless given, which needs padding to be last.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        turns = self._turns(positions)
        hidden = self.token_embd(tokens)  # the residual stream is of single precision, as llama.cpp's is
        mask = None if seen is None else seen[:, None]
        for block in self.blk:
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, turns, mask, use_reentrant=False)
            else:
                hidden = block(hidden, turns, mask)
        normed: Tensor = self.output_norm(hidden)
        return normed

    def blocks(self) -> Iterator[Block]:
        """The layers, first to last."""
        return (block for block in self.blk if isinstance(block, Block))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary], in single precision, of hidden states [..., hidden]."""
        weight = self.token_embd.weight if self.output is None else self.output.weight
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), weight)

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [batch, 1, length, head / 2] of the rotary angles (Su et al. 2021, arXiv 2104.09864)."""
        size = self.figures.head_size
        steps = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
        angles = positions[:, None, :, None].float() * self.figures.rope_base**-steps
        return angles.cos(), angles.sin()


class Block(nn.Module):
    """One layer: attention with grouped keys and values, and a gated feed-forward network."""

    def __init__(self, figures: Decoder) -> None:
        super().__init__()
        width, keys = figures.heads * figures.head_size, figures.kv_heads * figures.head_size
        hidden, feed, biased = figures.hidden, figures.feed_forward, figures.biased
        self.heads, self.kv_heads, self.head_size = figures.heads, figures.kv_heads, figures.head_size
        self.paired = figures.family == "llama"  # its rows were brought into pairs when it was converted
        self.precision = torch.float32  # of the matrices
        self.attn_norm = nn.RMSNorm(hidden, figures.epsilon)
        self.attn_q = nn.Linear(hidden, width, bias="qkv" in biased)
        self.attn_k = nn.Linear(hidden, keys, bias="qkv" in biased)
        self.attn_v = nn.Linear(hidden, keys, bias="qkv" in biased)
        self.attn_output = nn.Linear(width, hidden, bias="o" in biased)
        self.ffn_norm = nn.RMSNorm(hidden, figures.epsilon)
        self.ffn_gate = nn.Linear(hidden, feed, bias="mlp" in biased)
        self.ffn_up = nn.Linear(hidden, feed, bias="mlp" in biased)
        self.ffn_down = nn.Linear(feed, hidden, bias="mlp" in biased)

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """The residual stream [batch, length, hidden] after this layer."""
        hidden = hidden + self._attention(self.attn_norm(hidden).to(self.precision), turns, mask)
        normed = self.ffn_norm(hidden).to(self.precision)
        fed: Tensor = self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))
        return hidden + fed

    def _attention(self, normed: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        batch, length, _ = normed.shape

        def split(values: Tensor, heads: int) -> Tensor:
            return values.view(batch, length, heads, self.head_size).transpose(1, 2)

        query = rotated(split(self.attn_q(normed), self.heads), turns, paired=self.paired)
        key = rotated(split(self.attn_k(normed), self.kv_heads), turns, paired=self.paired)
        value, shared = split(self.attn_v(normed), self.kv_heads), self.heads // self.kv_heads
        found = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(shared, 1),
            value.repeat_interleave(shared, 1),
            attn_mask=mask,
            is_causal=mask is None,
        )
        mixed: Tensor = self.attn_output(found.transpose(1, 2).reshape(batch, length, -1))
        return mixed


def rotated(values: Tensor, turns: tuple[Tensor, Tensor], *, paired: bool) -> Tensor:
    """Vectors [batch, heads, length, size] turned by their positions.

    What turns together are neighbours (2i, 2i + 1) where `paired`, as in llama.cpp's `llama`, else halves
    (i, i + size / 2).
    """
    cosine, sine = turns
    first, second = (values[..., 0::2], values[..., 1::2]) if paired else values.chunk(2, -1)
    turned = (first * cosine - second * sine, first * sine + second * cosine)
    both = torch.stack(turned, -1).flatten(-2) if paired else torch.cat(turned, -1)
    return both.to(values.dtype)


def source_name(name: str, kept: Sequence[int]) -> str:
    """What a parameter is called in the file of which only some layers were kept.

    >>> source_name("blk.1.attn_q.weight", [0, 8]), source_name("output_norm.weight", [0, 8])
    ('blk.8.attn_q.weight', 'output_norm.weight')
    """
    first, _, rest = name.partition(".")
    if first != "blk":
        return name
    layer, _, rest = rest.partition(".")
    return f"blk.{kept[int(layer)]}.{rest}"
