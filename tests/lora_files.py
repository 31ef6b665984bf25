"""Small LoRA adapters for the tiny Llama of `gguf_files`, written from what llama.cpp's converter writes."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from gguf_files import F32, STRING, Field, Weights, gguf_bytes

SHAPES = {
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_v.weight": (32, 32),
    "blk.0.ffn_up.weight": (32, 64),
    "blk.0.ffn_down.weight": (64, 32),
}
FIELDS = {
    "general.architecture": Field(STRING, "llama"),
    "general.type": Field(STRING, "adapter"),
    "adapter.type": Field(STRING, "lora"),
    "adapter.lora.alpha": Field(F32, 8.0),
}


def halves(rank: int = 4, seed: int = 7, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> dict[str, Weights]:
    """Two matrices of single precision for each tensor, as a file holds them."""
    pick, tensors = random.Random(seed), {}
    for name, (columns, rows) in shapes.items():
        for half, shape in (("lora_a", (columns, rank)), ("lora_b", (rank, rows))):
            values = array("f", (pick.gauss(0, 0.2) for _ in range(math.prod(shape))))
            tensors[f"{name}.{half}"] = Weights(shape, 0, values.tobytes())
    return tensors


def tiny_adapter(
    path: Path,
    *,
    seed: int = 7,
    fields: Mapping[str, Field] | None = None,
    drop: Sequence[str] = (),
    tensors: Mapping[str, Weights] | None = None,
) -> Path:
    """Write an adapter of rank 4; `fields` are added or replaced, those of `drop` are left out."""
    kept = {key: field for key, field in {**FIELDS, **(fields or {})}.items() if key not in drop}
    path.write_bytes(gguf_bytes(kept, halves(seed=seed) if tensors is None else tensors))
    return path
