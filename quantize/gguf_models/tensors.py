"""GGUF files as tensors in numpy: read as they lie on the disk, and written again with some of them replaced.

What the file says about itself is copied byte for byte. Knows nothing of what the tensors are for.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import Event

import numpy as np

from edge_sdk.errors import ConfigError, ModelDamagedError
from edge_sdk.hub.partial import disk_full, storage_errors, sync_folder
from edge_sdk.model_files.gguf_header import TENSOR_TYPES, GgufHeader, TensorInfo, read_header

from .ggml import Bytes, Floats, dequantize_rows, row_bytes

Update = Callable[[float, float | None, str], None]

_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
_ALIGNMENT = 32
_COPIED = 1 << 24  # bytes at once
_KINDS = {bool: 7, int: 4, float: 6, str: 8}  # of metadata values that are written


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
        """Each key with its value as the file spells both, type and length included."""
        data = memoryview(self._map.data)
        (count,) = struct.unpack_from("<Q", data, 16)
        at = 24
        for _ in range(count):
            start = at
            (length,) = struct.unpack_from("<Q", data, at)
            key = bytes(data[at + 8 : at + 8 + length]).decode("utf-8")
            (kind,) = struct.unpack_from("<I", data, at + 8 + length)
            at = _after_value(data, at + 12 + length, kind)
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


def write_gguf(
    source: GgufModel,
    out: Path,
    types: Mapping[str, str],
    blocks: Callable[[str, str], Bytes],
    *,
    metadata: Mapping[str, bool | int | float | str] | None = None,
    dropped: frozenset[str] = frozenset(),
    threads: int = 1,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> GgufHeader:
    """Write `source` to `out` with the tensors of `types` made anew by `blocks`, called with a name and its type.

    `dropped` tensors are left out; `metadata` replaces or adds keys. `threads` tensors are made at a time. The
    file has a temporary name until it is whole, on the disk and read again. Raises `ConfigError` for a tensor that
    is not there or whose rows the type does not fill, `DiskFullError` before anything is written where the disk is
    too full, and `KeyboardInterrupt` when cancelled.
    """
    for name, type in types.items():
        if name not in source.tensors or row_bytes(type, source.tensors[name].shape[0]) is None:
            raise ConfigError(f"{source.path.name} has no tensor {name} that blocks of {type} would fill")
    kept = [
        tensor
        if tensor.name not in types
        else replace(tensor, type=types[tensor.name], bytes=tensor_bytes(tensor, types[tensor.name]))
        for tensor in source.header.tensors
        if tensor.name not in dropped
    ]
    head = _head(source, kept, metadata or {})
    with temporary(out, len(head) + sum(_padded(each.bytes) for each in kept)) as partial:
        with partial.open("wb") as file, ThreadPoolExecutor(threads) as workers:
            file.write(head)
            ahead = deque[tuple[TensorInfo, Future[Bytes] | None]]()
            waiting = iter(kept)
            for number in range(len(kept)):
                while len(ahead) <= threads and (tensor := next(waiting, None)) is not None:
                    known = tensor.name in types
                    ahead.append((tensor, workers.submit(blocks, tensor.name, tensor.type) if known else None))
                tensor, made = ahead.popleft()
                progress(number, len(kept), tensor.name)
                if cancel is not None and cancel.is_set():
                    workers.shutdown(cancel_futures=True)
                    raise KeyboardInterrupt
                raw = source.raw(tensor.name) if made is None else made.result()
                if raw.size != tensor.bytes:
                    raise ConfigError(
                        f"{tensor.name} came as {raw.size} bytes of {tensor.type}, not {tensor.bytes}"
                    )
                for start in range(0, raw.size, _COPIED):
                    file.write(raw.reshape(-1)[start : start + _COPIED].tobytes())
                file.write(bytes(_padded(raw.size) - raw.size))
            file.flush()
            os.fsync(file.fileno())
        written = read_header(partial)
        if [(each.name, each.type, each.shape) for each in written.tensors] != [
            (each.name, each.type, each.shape) for each in kept
        ]:
            raise ModelDamagedError(f"{out.name} does not read back as it was written", hint="check the disk")
    progress(len(kept), len(kept), "")
    return read_header(out)


def tensor_bytes(tensor: TensorInfo, type: str) -> int:
    """Bytes that a tensor takes in another type, whose blocks must fill its rows."""
    return prod(tensor.shape[1:]) * (row_bytes(type, tensor.shape[0]) or 0)


def _head(source: GgufModel, kept: Sequence[TensorInfo], metadata: Mapping[str, bool | int | float | str]) -> bytes:
    """All that stands before the tensors' data."""
    changed = {**metadata, "general.alignment": _ALIGNMENT}
    pairs = [pair for key, pair in source.metadata() if key not in changed]
    pairs += [_string(key) + _value(value) for key, value in changed.items()]
    infos, offset = [], 0
    for tensor in kept:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos.append(_string(tensor.name) + shape + struct.pack("<IQ", _NUMBERS[tensor.type], offset))
        offset += _padded(tensor.bytes)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(kept), len(pairs)) + b"".join(pairs) + b"".join(infos)
    return head + bytes(_padded(len(head)) - len(head))


def _value(value: bool | int | float | str) -> bytes:
    kind = _KINDS[type(value)]
    number = struct.pack("<I", kind)
    if isinstance(value, str):
        return number + _string(value)
    return number + struct.pack({7: "<?", 4: "<I", 6: "<f"}[kind], value)


def _string(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@contextmanager
def temporary(out: Path, expected: int) -> Iterator[Path]:
    """A name beside `out` that becomes `out` when the block ends well, and vanishes otherwise.

    Raises `DiskFullError` before the block where fewer than `expected` bytes are free.
    """
    folder = out.absolute().parent
    partial = folder / f".{out.name}.{os.getpid()}.partial"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < expected:
            raise disk_full(f"{folder} has {free / 1e6:,.0f} MB free, {out.name} takes {expected / 1e6:,.0f} MB")
        try:
            yield partial
            partial.replace(out)
            sync_folder(folder)
        finally:
            partial.unlink(missing_ok=True)
