"""Reads the header of a LoRA adapter in GGUF and refuses what does not fit its model, before native code sees it.

Where the file says nonsense llama.cpp may `abort()`; where a pair of matrices is of another model, or stands beside
one that it does not multiply with, the adapter would do nothing or end the process. Follows what llama.cpp's
`convert_lora_to_gguf.py` writes (https://github.com/ggml-org/llama.cpp); LoRA is arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ..errors import ModelDamagedError, ModelError
from .gguf_header import GgufHeader, TensorInfo, read_header

_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")  # what llama.cpp multiplies with any activations
_UNADAPTED: Final = ("token_embd.weight", "position_embd.weight", "token_types.weight")  # looked up, not multiplied
_A, _B = ".lora_a", ".lora_b"
PROMPT_TOKENS, EVIDENCE_TOKENS = "edge.prompt_tokens", "edge.evidence_tokens"
NUMBERED, EXTRACTIVE, BASE = "edge.numbered", "edge.extractive", "edge.base_model"
"""Keys by which an adapter says how it was taught to read documents (see `prompt.Reading`), and on which model."""


@dataclass(frozen=True, slots=True)
class AdapterHeader:
    """What an adapter says about itself. `adapted` are the model's tensors to which it adds `alpha / rank * B A`.

    `prompt_tokens` and `numbered` are None where it does not say how it reads documents, `evidence_tokens` 0 where
    it was taught with whole passages, `extractive` False where it does not say that its answers are a passage's
    words; `base`, the name of the model that it was trained on, is None where it does not say that.
    """

    architecture: str
    name: str | None
    alpha: float
    rank: int  # the largest
    adapted: tuple[str, ...]
    file_bytes: int
    prompt_tokens: int | None = None
    numbered: bool | None = None
    base: str | None = None
    evidence_tokens: int = 0
    extractive: bool = False


def read_adapter(path: Path, model: GgufHeader | None = None) -> AdapterHeader:
    """Read and check the header of the adapter at `path`, and that it fits `model`, where one is given.

    Raises `ModelDamagedError` for what is no whole, consistent adapter, `ModelNotFoundError` where there is no such
    file, and `ModelError` for an adapter of another model.
    """
    header = read_header(path)
    metadata, name = header.metadata, path.name
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        if metadata.get(key) != expected:
            _damaged(name, f"no LoRA adapter: {key} is {metadata.get(key)!r}")
    if "adapter.alora.invocation_tokens" in metadata:
        _damaged(name, "an adapter that is switched on by tokens, which is not supported")
    alpha = metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha < 0:
        _damaged(name, f"adapter.lora.alpha is {alpha!r}")
    tokens, chosen = _tokens(name, metadata, PROMPT_TOKENS, 64), _tokens(name, metadata, EVIDENCE_TOKENS, 0)
    numbered, extractive = _flag(name, metadata, NUMBERED), _flag(name, metadata, EXTRACTIVE)
    base = metadata.get(BASE)
    if base is not None and not isinstance(base, str):
        _damaged(name, f"{BASE} is {base!r}")
    pairs = _pairs(name, header.tensors)
    found = AdapterHeader(
        architecture=header.architecture,
        name=header.name,
        alpha=alpha,
        rank=max(a.shape[1] for a, _ in pairs.values()),
        adapted=tuple(pairs),
        file_bytes=header.file_bytes,
        prompt_tokens=tokens,
        numbered=numbered,
        base=base,
        evidence_tokens=chosen or 0,
        extractive=extractive or False,
    )
    if model is not None:
        _check_fit(name, found, pairs, model)
    return found


def _tokens(name: str, metadata: Mapping[str, object], key: str, least: int) -> int | None:
    """A number of tokens of at least `least`, or None where there is none."""
    value = metadata.get(key)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 20
    ):
        _damaged(name, f"{key} is {value!r}")
    return value


def _flag(name: str, metadata: Mapping[str, object], key: str) -> bool | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, bool):
        _damaged(name, f"{key} is {value!r}")
    return value


def _pairs(name: str, tensors: tuple[TensorInfo, ...]) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """The two matrices of each adapted tensor, A [rank, columns] and B [rows, rank] in C's order of dimensions."""
    halves = {tensor.name: tensor for tensor in tensors}
    pairs = {}
    for tensor in tensors:
        base, half = tensor.name[: -len(_A)], tensor.name[-len(_A) :]
        if half not in (_A, _B):
            _damaged(name, f"the tensor {tensor.name} is neither {_A} nor {_B} of another")
        if tensor.type not in _TYPES or len(tensor.shape) != 2:
            _damaged(name, f"{tensor.name} is no matrix of {', '.join(_TYPES)}: {tensor.type} {tensor.shape}")
        a, b = halves.get(base + _A), halves.get(base + _B)
        if a is None or b is None:
            _damaged(name, f"{tensor.name} lacks its other half")
        if half == _A:
            pairs[base] = (a, b)
            if a.shape[1] != b.shape[0]:
                _damaged(name, f"the halves of {base} have the ranks {a.shape[1]} and {b.shape[0]}")
    if not pairs:
        _damaged(name, "an adapter without tensors")
    return pairs


def _check_fit(
    name: str, adapter: AdapterHeader, pairs: dict[str, tuple[TensorInfo, TensorInfo]], model: GgufHeader
) -> None:
    hint = "use the adapter with the model that it was trained on"
    if adapter.architecture != model.architecture:
        raise ModelError(f"{name} is for {adapter.architecture}, the model is {model.architecture}", hint=hint)
    known = {tensor.name: tensor.shape for tensor in model.tensors}
    for base, (a, b) in pairs.items():
        if base not in known or base in _UNADAPTED or len(known[base]) != 2:
            raise ModelError(f"{name} adapts {base}, which the model does not have or multiply with", hint=hint)
        if known[base] != (a.shape[0], b.shape[1]):
            raise ModelError(
                f"{name} is for a {base} of {a.shape[0]} x {b.shape[1]}, the model's is "
                f"{' x '.join(map(str, known[base]))}",
                hint=hint,
            )


def _damaged(name: str, message: str) -> NoReturn:
    raise ModelDamagedError(f"{name}: {message}", hint="get the adapter again")
