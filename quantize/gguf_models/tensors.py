"""GGUF files as tensors in numpy: read as they lie on the disk, and written again with some of them replaced.

What the file says about itself is copied byte for byte. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from threading import Event

import numpy as np

from edge_sdk.errors import ConfigError
from edge_sdk.model_files.gguf_header import GgufHeader, TensorInfo, read_header

from .ggml import Bytes, Floats, dequantize_rows, row_bytes
from .gguf_format import Field, NewTensor, Update, Verbatim, write_file


class GgufModel:
    """An open GGUF file. Tensors are views of the mapped file; rows are the slowest dimensions together."""

    def __init__(self, path: Path) -> None:
        """Raises `ModelDamagedError` or `ModelNotFoundError` as `read_header` does."""
        self.path, self.header = path, read_header(path)
        self.tensors: dict[str, TensorInfo] = {tensor.name: tensor for tensor in self.header.tensors}
        self._map = np.memmap(path, np.uint8, "r")

    def raw(self, name: str) -> Bytes:
        """Blocks of a tensor [rows, bytes]."""
        tensor = self.tensors[name]
        rows = tensor.bytes // (row_bytes(tensor.type, tensor.shape[0]) or tensor.bytes)
        part: Bytes = self._map[tensor.offset : tensor.offset + tensor.bytes].reshape(rows, -1)
        return part

    def floats(self, name: str) -> Floats:
        """A tensor's weights [rows, columns]."""
        tensor = self.tensors[name]
        return dequantize_rows(self.raw(name), tensor.type, tensor.shape[0])

    def metadata(self) -> Iterator[tuple[str, bytes]]:
        """Each key with its value as the file spells it, type included."""
        data = memoryview(self._map.data)
        (count,) = struct.unpack_from("<Q", data, 16)
        at = 24
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", data, at)
            key = bytes(data[at + 8 : at + 8 + length]).decode("utf-8")
            (kind,) = struct.unpack_from("<I", data, at + 8 + length)
            start, at = at + 8 + length, _after_value(data, at + 12 + length, kind)
            yield key, bytes(data[start:at])


def _after_value(data: memoryview, at: int, kind: int) -> int:
    """Where a value of this kind that begins at `at` ends; the header has been checked already."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    if kind in sizes:
        return at + sizes[kind]
    if kind == 8:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in sizes:
        return at + int(count) * sizes[inner]
    for _ in range(count):
        at = _after_value(data, at, inner)
    return at


def read_fields(model: GgufModel) -> dict[str, Field]:
    """All metadata of a file, vocabularies included, in the order of the file."""
    return {key: Field.decode(raw) for key, raw in model.metadata()}


def write_gguf(
    source: GgufModel,
    out: Path,
    types: Mapping[str, str],
    blocks: Callable[[str, str], Bytes],
    *,
    metadata: Mapping[str, Field] | None = None,
    dropped: frozenset[str] = frozenset(),
    threads: int = 1,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> GgufHeader:
    """Write `source` to `out` with the tensors of `types` made anew by `blocks`, called with a name and its type.

    `dropped` tensors are left out; `metadata` replaces or adds keys. `threads` tensors are made at a time. Raises
    `ConfigError` for a tensor that is not there or whose rows the type does not fill, and as `write_file` does.
    """
    for name, type in types.items():
        if name not in source.tensors or row_bytes(type, source.tensors[name].shape[0]) is None:
            raise ConfigError(f"{source.path.name} has no tensor {name} that blocks of {type} would fill")
    fields = {key: Verbatim(raw) for key, raw in source.metadata()} | dict(metadata or {})
    with ThreadPoolExecutor(threads) as workers:
        kept = [tensor for tensor in source.header.tensors if tensor.name not in dropped]
        made = _Ahead(
            workers, blocks, ((each.name, types[each.name]) for each in kept if each.name in types), threads
        )
        tensors = [
            NewTensor(each.name, types[each.name], each.shape, partial(made.take, each.name))
            if each.name in types
            else NewTensor(each.name, each.type, each.shape, partial(_copied, source, each.name))
            for each in kept
        ]
        try:
            return write_file(out, fields, tensors, progress=progress, cancel=cancel)
        finally:
            workers.shutdown(cancel_futures=True)


def tensor_bytes(tensor: TensorInfo, type: str) -> int:
    """Bytes that a tensor takes in another type, whose blocks must fill its rows."""
    return prod(tensor.shape[1:]) * (row_bytes(type, tensor.shape[0]) or 0)


class _Ahead:
    """Tensors made by other threads while those before them are written, a few at a time."""

    def __init__(
        self,
        workers: ThreadPoolExecutor,
        blocks: Callable[[str, str], Bytes],
        jobs: Iterator[tuple[str, str]],
        depth: int,
    ) -> None:
        self._workers, self._blocks, self._jobs, self._depth = workers, blocks, jobs, depth
        self._waiting: deque[tuple[str, Future[Bytes]]] = deque()

    def take(self, name: str) -> Iterator[Bytes]:
        """The contents of the next tensor, which must be `name`."""
        while len(self._waiting) <= self._depth and (job := next(self._jobs, None)) is not None:
            self._waiting.append((job[0], self._workers.submit(self._blocks, *job)))
        found, future = self._waiting.popleft()
        assert found == name, f"{name} is asked for before {found}"
        yield future.result()


def _copied(source: GgufModel, name: str) -> Iterator[Bytes]:
    yield source.raw(name)
