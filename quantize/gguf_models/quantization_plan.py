"""What llama.cpp's quantizer is going to do with a model, as its dry run says: each tensor's type, each fallback.

Sizes are computed here to the byte. Knows nothing of processes, and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from edge_sdk.errors import EngineError
from edge_sdk.model_files.gguf_header import GgufHeader, TensorInfo

from .file_types import FileType
from .ggml import requires_importance, row_bytes
from .tensors import GgufModel

ALIGNMENT = 32
_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (.+?) +- \[.*?\], +type = +(\S+), size = .*?(?:\((\w+)\))?$")
_FALLBACK = re.compile(r"warning: (.+?) +- ncols .*\(required for type +(\w+)\).*-> falling back to +(\w+)")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
# Of llama.cpp's `tensor_requires_imatrix`; embeddings and output may do without, but not in all types.
_LEAN = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"))
_WRITTEN = {"general.quantization_version": 2, "general.file_type": 0}  # whole numbers that the quantizer sets
_DROPPED = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class TypeShare:
    """How much of a file has one type."""

    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tensors that cannot have the type that the rule gives them, for their rows do not divide into its blocks."""

    asked: str
    got: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class QuantizationPlan:
    """The type of every tensor, by name in the order of the source, and `asked` where it is not the one wanted."""

    header: GgufHeader
    types: Mapping[str, str]
    asked: Mapping[str, str]
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors; metadata and padding do not count, as in llama.cpp."""
        return bits_per_weight(self.header, self.types)

    @cached_property
    def shares(self) -> Mapping[str, TypeShare]:
        """Each type's part of the file, the largest first."""
        return shares(self.header, self.types)

    @cached_property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """Types that were asked for and could not be, the largest part first."""
        found: dict[tuple[str, str], list[int]] = {}
        for tensor in self.header.tensors:
            if asked := self.asked.get(tensor.name):
                found.setdefault((asked, self.types[tensor.name]), []).append(
                    _size(tensor, self.types[tensor.name])
                )
        rows = [Fallback(asked, got, len(sizes), sum(sizes)) for (asked, got), sizes in found.items()]
        return tuple(sorted(rows, key=lambda row: -row.bytes))

    def lacking_importance(self, type: FileType, known: frozenset[str]) -> tuple[str, ...]:
        """Tensors whose type llama.cpp makes only with an importance matrix, and that `known` does not name."""
        lean = _LEAN | {"Q2_K"} if type.name == "Q2_K_S" else _LEAN
        return tuple(
            tensor.name
            for tensor in self.header.tensors
            if tensor.name not in known
            and (new := self.types[tensor.name]) in lean
            and new != tensor.type
            and (tensor.name not in _EMBEDDINGS or requires_importance(new))
        )


def read_plan(
    source: GgufModel,
    lines: Sequence[str],
    type: FileType,
    *,
    metadata: Mapping[str, str | int],
    overridden: Collection[str] = (),
) -> QuantizationPlan:
    """The plan in the log `lines` of a dry run of `source`.

    `metadata` is what will be added to the file, `overridden` names tensors whose type the user has given.

    Raises `EngineError` with the version of the package where the lines do not speak of every tensor.
    """
    matches = [match for line in lines if (match := _TENSOR.fullmatch(line))]
    types = {match[1]: (match[3] or match[2]).upper() for match in matches}
    tensors = source.header.tensors
    if types.keys() != {tensor.name for tensor in tensors} or len(matches) != len(tensors):
        raise EngineError(
            f"llama-cpp-python {version('llama-cpp-python')} tells of {len(types)} of the {len(tensors)} tensors",
            hint="pip install 'llama-cpp-python>=0.3.36,<0.4'",
        )
    asked = {match[1]: match[2].upper() for line in lines if (match := _FALLBACK.search(line))}
    asked = _silent_fallbacks(tensors, types, type, overridden) | asked
    return QuantizationPlan(source.header, types, asked, _file_bytes(source, types, metadata))


def bits_per_weight(header: GgufHeader, types: Mapping[str, str] | None = None) -> float:
    """Bits of a weight on average; `types` by name replaces the types that the tensors have."""
    sizes = sum(_size(tensor, types[tensor.name] if types else tensor.type) for tensor in header.tensors)
    return 8 * sizes / max(1, sum(_weights(tensor) for tensor in header.tensors))


def shares(header: GgufHeader, types: Mapping[str, str] | None = None) -> dict[str, TypeShare]:
    """Each type's part of the tensors, the largest first."""
    found: dict[str, list[int]] = {}
    for tensor in header.tensors:
        new = types[tensor.name] if types else tensor.type
        found.setdefault(new, []).append(_size(tensor, new))
    rows = {name: TypeShare(len(sizes), sum(sizes)) for name, sizes in found.items()}
    return dict(sorted(rows.items(), key=lambda row: -row[1].bytes))


def working_memory(plan: QuantizationPlan, limit: int) -> int:
    """Bytes of the buffers that the quantizer works in, where it may take `limit`: some rows of one tensor."""
    most = 0
    for tensor in plan.header.tensors:
        columns, rows = tensor.shape[0], _weights(tensor) // tensor.shape[0]
        row = tensor.bytes // rows + (row_bytes(plan.types[tensor.name], columns) or 0) + 4 * columns
        most = max(most, row * max(1, min(rows, limit // row)))
    return most


def _silent_fallbacks(
    tensors: Sequence[TensorInfo], types: Mapping[str, str], type: FileType, overridden: Collection[str]
) -> dict[str, str]:
    """The output matrix, which llama.cpp makes Q8_0 without a word where the file's base type does not fit."""
    names = {tensor.name for tensor in tensors}
    output = "output.weight" if "output.weight" in names else "token_embd.weight"
    columns = next((tensor.shape[0] for tensor in tensors if tensor.name == output), 0)
    if not columns or output in overridden or row_bytes(type.base, columns) is not None or types[output] != "Q8_0":
        return {}
    return {output: "Q5_K" if type.base.startswith(("IQ1", "IQ2")) or type.name == "IQ3_XXS" else "Q6_K"}


def _file_bytes(source: GgufModel, types: Mapping[str, str], metadata: Mapping[str, str | int]) -> int:
    """Size of the file: its head as llama.cpp writes it, and its tensors, each padded."""
    added: dict[str, str | int] = {**_WRITTEN, **metadata}
    head = 24 + sum(
        8 + len(key.encode()) + len(raw) for key, raw in source.metadata() if key not in {*added, *_DROPPED}
    )
    for key, value in added.items():
        head += 8 + len(key.encode()) + 4 + (4 if isinstance(value, int) else 8 + len(value.encode()))
    for tensor in source.header.tensors:
        dimensions = max((at for at, length in enumerate(tensor.shape, 1) if length > 1), default=1)
        head += 8 + len(tensor.name.encode()) + 4 + 8 * dimensions + 12
    return _padded(head) + sum(_padded(_size(tensor, types[tensor.name])) for tensor in source.header.tensors)


def _size(tensor: TensorInfo, type: str) -> int:
    size = row_bytes(type, tensor.shape[0])
    assert size is not None, f"{tensor.name} of {tensor.shape[0]} columns as {type}"
    return size * (_weights(tensor) // tensor.shape[0])


def _weights(tensor: TensorInfo) -> int:
    weights = 1
    for length in tensor.shape:
        weights *= length
    return weights


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
