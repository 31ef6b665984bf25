"""What of a decoder is trained: low-rank matrices beside frozen weights, or all weights, on a quantizer's grid.

LoRA is Hu et al. 2021 (arXiv 2106.09685). On a grid every weight is used as the file will hold it, while the
gradient goes to the weight itself (straight-through, arXiv 1308.3432), so that quantizing it afterwards loses
nothing. Knows nothing of losses or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sdk.errors import ConfigError

from ..gguf_models.ggml import dequantize_rows, quantize_rows, row_bytes
from .decoder_model import DecoderModel

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The linear layers of a block."""


@dataclass(frozen=True, slots=True)
class Lora:
    """`rank` of the matrices, `alpha` by which their product is scaled (over the rank), and where they stand.

    `dropout` is the share of inputs that they do not see while they are trained.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    matrices: tuple[str, ...] = MATRICES

    def __post_init__(self) -> None:
        if self.rank < 1 or not math.isfinite(self.alpha) or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA of rank {self.rank}, alpha {self.alpha} and dropout {self.dropout}")
        if not self.matrices or (unknown := [name for name in self.matrices if name not in MATRICES]):
            named = unknown[0] if self.matrices else "none"
            raise ConfigError(f"there is no matrix {named!r} to adapt", hint=f"use some of {', '.join(MATRICES)}")


class LoraLinear(nn.Module):
    """A frozen linear layer, and `alpha / rank * B A` beside it; B begins as zeros, so that nothing has changed."""

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        super().__init__()
        self.base, self.scale = base, lora.alpha / lora.rank
        self.dropout = nn.Dropout(lora.dropout)
        self.lora_a = nn.Parameter(torch.empty(lora.rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, lora.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, values: Tensor) -> Tensor:
        down = functional.linear(self.dropout(values), self.lora_a.to(values.dtype))
        added = functional.linear(down, self.lora_b.to(values.dtype))
        plain: Tensor = self.base(values)
        return plain + added * self.scale


class GridLinear(nn.Linear):
    """A linear layer whose weights are used as blocks of a quantized type hold them; see `refresh`."""

    def __init__(self, base: nn.Linear, type: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.grid = base.in_features, base.out_features, type
        self.weight, self.bias = base.weight, base.bias
        self.register_buffer("rounding", torch.zeros_like(base.weight), persistent=False)
        self.refresh()

    def refresh(self) -> None:
        """Round the weights anew, by ggml itself. In between, they move together with what rounding added."""
        weights = self.weight.detach().float().cpu().numpy()
        blocks = dequantize_rows(quantize_rows(weights, self.grid), self.grid, self.in_features)
        self.rounding.copy_(torch.from_numpy(blocks - weights))  # type: ignore[operator]

    def forward(self, values: Tensor) -> Tensor:
        return functional.linear(values, self.weight + self.rounding, self.bias)  # type: ignore[operator]


def add_lora(model: DecoderModel, lora: Lora, *, frozen: torch.dtype = torch.float32, seed: int = 0) -> None:
    """Freeze the model and give it matrices to train, in single precision; equal seeds, equal ones.

    `frozen` is the precision of the frozen matrices and of what is computed with them: bfloat16 takes half the
    memory and is several times as fast where the processor has it. Embeddings and norms stay as they are.
    """
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks():
            block.precision = frozen
            for name in MATRICES:
                linear = getattr(block, name).to(frozen)
                if name in lora.matrices:
                    setattr(block, name, LoraLinear(linear, lora))


def add_grid(model: DecoderModel, type: str, *, matrices: tuple[str, ...] = MATRICES) -> None:
    """Use the matrices on the grid of a quantized type while all weights are trained.

    Raises `ConfigError` where blocks of the type do not fill a row.
    """
    for at, block in enumerate(model.blk):
        for name in matrices:
            linear = getattr(block, name)
            if row_bytes(type, linear.in_features) is None:
                raise ConfigError(f"blocks of {type} do not fill the rows of blk.{at}.{name}")
            setattr(block, name, GridLinear(linear, type))


def lora_layers(model: DecoderModel) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers by the names of their weights in GGUF."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{name}.weight", module


def refresh_grid(model: DecoderModel) -> None:
    """Round all weights that are used on a grid anew."""
    for module in model.modules():
        if isinstance(module, GridLinear):
            module.refresh()
