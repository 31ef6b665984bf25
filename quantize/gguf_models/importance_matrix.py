"""An importance matrix, and the file that it is kept in: llama.cpp's own GGUF format, for its tools to read too.

Knows nothing of how it is collected or what a quantizer does with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError, ModelDamagedError
from edge_sdk.model_files.gguf_header import GgufHeader, TensorInfo, read_header

from .gguf_format import STRING, U32, Field, NewTensor, write_file

Floats = NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_AGAIN = "collect it again with --calibration-text; llama.cpp's older .dat files are not read"
_UNSEEN, _LEAST_SHARE = 1.0, 1e-6


@dataclass(frozen=True, slots=True)
class Importance:
    """Mean squares of what each input column of a weight was multiplied with: `squares[name]`, float32 [columns].

    A stack of experts has [experts, columns]. `counts[name]` holds the rows seen by each, and `products[name]`
    the mean of x xᵀ [columns, columns], where it was asked for; matrices with the same input share one array.
    """

    squares: Mapping[str, Floats]
    tokens: int
    source: str
    context: int = 512
    counts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    products: Mapping[str, Floats] = field(default_factory=dict)

    def weights(self, name: str) -> Floats | None:
        """What the quantizer takes for a tensor: one figure a column, those of all experts in a row; or None.

        ggml makes a block zero whose columns all weigh nothing, and so loses what this text did not use: such
        columns weigh a millionth of the mean here, and those of an expert that no token reached 1, as in llama.cpp.
        """
        if (squares := self.squares.get(name)) is None:
            return None
        rows = np.atleast_2d(squares).astype(np.float64)
        means = rows.mean(axis=1, keepdims=True)
        weights = np.where(means > 0, np.maximum(rows, _LEAST_SHARE * means), _UNSEEN)
        return np.ascontiguousarray(weights, np.float32).reshape(-1)

    def check(self, header: GgufHeader) -> None:
        """Raise `ConfigError` unless this is sound and was measured on a model with the tensors of `header`."""
        tensors = {tensor.name: tensor for tensor in header.tensors}
        for name, squares in self.squares.items():
            tensor = tensors.get(name)
            if not (np.isfinite(squares).all() and (squares >= 0).all()):
                raise ConfigError(
                    f"the importance matrix has impossible figures for {name}", hint="collect it again"
                )
            if tensor is not None and squares.size != tensor.shape[0] * math.prod(tensor.shape[2:]):
                raise ConfigError(
                    f"the importance matrix has {squares.size} columns for {name}, the model {tensor.shape[0]}",
                    hint="collect it with this model, by --calibration-text",
                )
        if not self.squares.keys() & tensors.keys():
            raise ConfigError(
                "the importance matrix names none of the model's tensors", hint="it is of another model"
            )

    def save(self, path: Path) -> None:
        """Write it in llama.cpp's format, without the products. Nothing is at `path` before all is written.

        Raises `DiskFullError` and, where the folder cannot be written, `ModelError`.
        """
        fields = {
            "general.type": Field(STRING, "imatrix"),
            "imatrix.datasets": Field(STRING, [self.source]),
            "imatrix.chunk_count": Field(U32, -(-self.tokens // self.context)),
            "imatrix.chunk_size": Field(U32, self.context),
        }
        write_file(path, fields, list(_sums_and_counts(self)))

    @classmethod
    def load(cls, path: Path) -> Importance:
        """Read llama.cpp's format. Raises `ModelDamagedError` for any other file, `ModelNotFoundError` for none."""
        try:
            header = read_header(path, model=False)
        except ModelDamagedError as error:
            raise ModelDamagedError(error.message, hint=_AGAIN) from error
        tensors = {tensor.name: tensor for tensor in header.tensors}
        squares, counts = {}, {}
        for key in sorted(tensors):
            if not key.endswith(_SUMS):
                continue
            name = key.removesuffix(_SUMS)
            if name + _COUNTS not in tensors:
                raise ModelDamagedError(f"{path.name} has sums but no counts for {name}", hint=_AGAIN)
            seen, sums = _floats(path, tensors[name + _COUNTS]).reshape(-1), _floats(path, tensors[key])
            if sums.size % seen.size or (sums < 0).any() or (seen < 0).any():
                raise ModelDamagedError(f"{path.name} has impossible figures for {name}", hint=_AGAIN)
            means = sums.reshape(seen.size, -1) / np.maximum(seen, 1)[:, None]
            counts[name] = seen.round().astype(np.int64)
            squares[name] = (means if seen.size > 1 else means[0]).astype(np.float32)
        if not squares:
            raise ModelDamagedError(
                f"{path.name} is no importance matrix in llama.cpp's GGUF format",
                hint=_AGAIN,
            )
        size, datasets = header.metadata.get("imatrix.chunk_size"), header.metadata.get("imatrix.datasets")
        return cls(
            squares,
            tokens=max(int(each.max()) for each in counts.values()),
            source=", ".join(map(str, datasets)) if isinstance(datasets, tuple) else path.name,
            context=size if isinstance(size, int) and size > 0 else 512,
            counts=counts,
        )


def _sums_and_counts(importance: Importance) -> Iterator[NewTensor]:
    for name in sorted(importance.squares):
        squares = np.atleast_2d(importance.squares[name])
        counts = importance.counts.get(name, np.full(len(squares), importance.tokens))[:, None]
        for key, matrix in ((name + _SUMS, squares * counts), (name + _COUNTS, counts)):
            part = matrix.astype("<f4")
            yield NewTensor(key, "F32", part.shape[::-1], partial(iter, [part]))


def _floats(path: Path, tensor: TensorInfo) -> Floats:
    if tensor.type != "F32":
        raise ModelDamagedError(f"{path.name} keeps {tensor.name} as {tensor.type}, not F32", hint=_AGAIN)
    values = np.fromfile(path, "<f4", tensor.bytes // 4, offset=tensor.offset)
    if values.size != tensor.bytes // 4 or not np.isfinite(values).all():
        raise ModelDamagedError(f"{path.name} has figures that are no numbers in {tensor.name}", hint=_AGAIN)
    return values
