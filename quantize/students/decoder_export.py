"""A trained decoder as llama.cpp loads it: a LoRA adapter in GGUF, or the model with its trained weights.

Tensors keep the names and the order of rows of the file that the student was made of. What is written is read again
before it gets its name. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError
from edge_sdk.model_files.gguf_adapter import (
    BASE,
    EVIDENCE_TOKENS,
    EXTRACTIVE,
    NUMBERED,
    PROMPT_TOKENS,
    AdapterHeader,
    read_adapter,
)
from edge_sdk.model_files.gguf_header import GgufHeader, read_header
from edge_sdk.prompt import Reading

from ..collection import Update
from ..gguf_models.families import ROPE_FACTORS
from ..gguf_models.file_types import file_type
from ..gguf_models.ggml import Bytes, quantize_rows, row_bytes
from ..gguf_models.gguf_format import BOOL, F32, STRING, U32, Field, NewTensor, Verbatim, write_file
from ..gguf_models.tensors import GgufModel
from .decoder_lora import LoraLinear, lora_layers
from .decoder_model import DecoderModel, source_name


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter says of itself: its name, the catalog's name of its model, and how it reads documents."""

    name: str
    base: str | None = None
    reading: Reading | None = None
    licence: str | None = None


def write_adapter(model: DecoderModel, source: Path, out: Path, facts: AdapterFacts) -> AdapterHeader:
    """Write the trained matrices as a GGUF LoRA adapter in half precision, for the model file `source`.

    Nothing is at `out` before the file has been read again and fits `source`. Raises `ConfigError` where there is
    nothing to write or a weight is no number in half precision, and what `write_file` raises.
    """
    layers = dict(lora_layers(model))
    if not layers:
        raise ConfigError("the model has no LoRA matrices to write", hint="train it with `add_lora`")
    scales = {layer.scale * layer.lora_a.shape[0] for layer in layers.values()}
    if len(scales) > 1:
        raise ConfigError(f"matrices are scaled by several alphas, {sorted(scales)}, which one file cannot say")
    base = read_header(source)
    fields = {
        "general.architecture": Field(STRING, base.architecture),
        "general.type": Field(STRING, "adapter"),
        "general.name": Field(STRING, facts.name),
        "adapter.type": Field(STRING, "lora"),
        "adapter.lora.alpha": Field(F32, scales.pop()),
    }
    if facts.licence is not None:
        fields["general.license"] = Field(STRING, facts.licence)
    if facts.base is not None:
        fields[BASE] = Field(STRING, facts.base)
    if facts.reading is not None:
        fields[PROMPT_TOKENS] = Field(U32, facts.reading.prompt_tokens)
        fields[EVIDENCE_TOKENS] = Field(U32, facts.reading.evidence_tokens)
        fields[NUMBERED] = Field(BOOL, facts.reading.numbered)
        fields[EXTRACTIVE] = Field(BOOL, facts.reading.extractive)
    tensors = [
        NewTensor(f"{name}.{half}", "F16", tuple(reversed(weights.shape)), partial(_once, _halves(name, weights)))
        for name, layer in layers.items()
        for half, weights in (("lora_a", layer.lora_a), ("lora_b", layer.lora_b))
    ]
    write_file(out, fields, tensors, check=lambda written: _check(written, base))
    return read_adapter(out, base)


def load_adapter(model: DecoderModel, path: Path) -> None:
    """Give the model's LoRA matrices the weights of an adapter's file, to learn more.

    Raises `ConfigError` where the adapter has other matrices, another rank or scale than the model, and what
    `read_adapter` raises.
    """
    header, source, layers = read_adapter(path), GgufModel(path), dict(lora_layers(model))
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    wanted = {
        f"{name}.{half}": weights
        for name, layer in layers.items()
        for half, weights in (("lora_a", layer.lora_a), ("lora_b", layer.lora_b))
    }
    if shapes != {name: tuple(reversed(weights.shape)) for name, weights in wanted.items()} or any(
        layer.scale != header.alpha / layer.lora_a.shape[0] for layer in layers.values()
    ):
        raise ConfigError(
            f"{path.name} has other matrices than the recipe's decoder: rank {header.rank}, alpha {header.alpha:g}",
            hint=f"use rank = {header.rank} and the base that it was trained on",
        )
    with torch.no_grad():
        for name, weights in wanted.items():
            weights.copy_(torch.tensor(source.floats(name)).view(weights.shape))


def write_model(
    model: DecoderModel,
    source: Path,
    out: Path,
    *,
    type: str,
    layers: Sequence[int] | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> GgufHeader:
    """Write the whole model with its trained weights, adapters merged; all else is as in the file `source`.

    The blocks' matrices become `type`; where its blocks do not fill a row, and for all other tensors, the source's
    own type is kept. `layers` are those of `source` that the student was made of. Raises `ConfigError` for a model
    that is not of `source`, and what `write_file` raises.
    """
    base, number = GgufModel(source), file_type(type).number
    kept = list(range(model.figures.layers)) if layers is None else list(layers)
    tensors = []
    for name, value in merged_weights(model).items():
        stored = base.tensors.get(source_name(name, kept))
        if stored is None or stored.shape != tuple(reversed(value.shape)):
            raise ConfigError(f"{source.name} has no {name} of the student's shape {tuple(value.shape)}")
        matrix = name.startswith("blk.") and value.ndim == 2 and row_bytes(type, value.shape[1]) is not None
        kind = type if matrix else stored.type
        tensors.append(NewTensor(name, kind, stored.shape, partial(_quantized, value, kind)))
    fields: dict[str, Field | Verbatim] = {key: Verbatim(raw) for key, raw in base.metadata()}
    fields[f"{base.header.architecture}.block_count"] = Field(U32, len(kept))
    fields["general.file_type"] = Field(U32, number)
    tensors += [
        NewTensor(name, each.type, each.shape, partial(_once, base.raw(name)))
        for name, each in base.tensors.items()
        if name == ROPE_FACTORS
    ]
    return write_file(out, fields, tensors, progress=progress, cancel=cancel)


def merged_weights(model: DecoderModel) -> dict[str, NDArray[np.float32]]:
    """All weights by their names in GGUF, with what adapters add to them."""
    adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}
    found = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner, _, last = name.rpartition(".")
            if last in ("lora_a", "lora_b"):
                continue
            value = parameter.detach().float().cpu()
            if (layer := adapted.get(owner.removesuffix(".base"))) is not None and last == "weight":
                value = value + layer.scale * (layer.lora_b @ layer.lora_a).float().cpu()
            found[name.replace(".base.", ".")] = value.numpy()
    return found


def _halves(name: str, weights: torch.Tensor) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        made: NDArray[np.float16] = weights.detach().cpu().float().numpy().astype(np.float16)
    if not np.isfinite(made).all():
        raise ConfigError(f"{name} has a trained weight that is no number in half precision")
    return made


def _quantized(weights: NDArray[np.float32], type: str) -> Iterator[Bytes]:
    yield quantize_rows(weights.reshape(-1, weights.shape[-1]), type)


def _once(part: NDArray[Any]) -> Iterator[NDArray[Any]]:
    yield part


def _check(written: Path, base: GgufHeader) -> None:
    read_adapter(written, base)
