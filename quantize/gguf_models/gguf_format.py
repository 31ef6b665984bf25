"""GGUF fields and files from nothing: metadata read with its arrays, and a file written from fields and tensors.

`edge_sdk.model_files.gguf_header` checks a file and keeps no vocabulary; here the vocabulary is what is wanted, of
files that have been checked. Knows nothing of architectures or tokenizers.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any, Final

import numpy as np

from edge_sdk.errors import ConfigError, ModelDamagedError
from edge_sdk.hub.partial import OUT, disk_full, storage_errors, sync_folder
from edge_sdk.model_files.gguf_header import TENSOR_TYPES, GgufHeader, read_header

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
_FORMATS: Final = dict(zip((0, 1, 2, 3, U32, I32, F32, BOOL, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TYPES: Final = {name: (number, block, size) for number, (name, block, size) in TENSOR_TYPES.items()}
_ALIGNMENT = 32

Update = Callable[[float, float | None, str], None]


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata value and its GGUF type; the value of an array is a list, and `kind` that of its elements."""

    kind: int
    value: Any

    def encode(self) -> bytes:
        """Type and value as they stand in a file.

        >>> Field(U32, 7).encode().hex()
        '0400000007000000'
        """
        if not isinstance(self.value, list):
            text = self.kind == STRING
            body = _string(self.value) if text else struct.pack("<" + _FORMATS[self.kind], self.value)
            return struct.pack("<I", self.kind) + body
        head = struct.pack("<IIQ", ARRAY, self.kind, len(self.value))
        if self.kind == STRING:
            return head + b"".join(map(_string, self.value))
        return head + struct.pack(f"<{len(self.value)}{_FORMATS[self.kind]}", *self.value)

    @classmethod
    def decode(cls, data: bytes) -> Field:
        """The reverse of `encode`, for bytes that have been checked; arrays of arrays are not among them."""
        (kind,) = struct.unpack_from("<I", data)
        if kind == STRING:
            return cls(STRING, data[12:].decode())
        if kind != ARRAY:
            return cls(kind, struct.unpack_from("<" + _FORMATS[kind], data, 4)[0])
        inner, count = struct.unpack_from("<IQ", data, 4)
        if inner != STRING:
            return cls(inner, list(struct.unpack_from(f"<{count}{_FORMATS[inner]}", data, 16)))
        ends, at = [16], 16
        for _ in range(count):
            at += 8 + int.from_bytes(data[at : at + 8], "little")
            ends.append(at)
        return cls(STRING, [data[start + 8 : end].decode() for start, end in pairwise(ends)])


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Type and value as they stand in another file."""

    raw: bytes

    def encode(self) -> bytes:
        return self.raw


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written: `shape` has the fastest dimension first; `parts` gives its bytes, piece by piece."""

    name: str
    type: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[np.ndarray[Any, Any]]]

    @property
    def bytes(self) -> int:
        """Size of the data.

        >>> NewTensor("output.weight", "Q8_0", (64, 10), lambda: iter(())).bytes
        680
        """
        _, block, size = _TYPES[self.type]
        return int(np.prod(self.shape, dtype=object)) // block * size


def write_file(
    out: Path,
    fields: Mapping[str, Field | Verbatim],
    tensors: Sequence[NewTensor],
    *,
    check: Callable[[Path], None] = lambda path: None,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> GgufHeader:
    """Write a GGUF file; its name is given to it when it is whole, has been read again and has passed `check`.

    Raises `DiskFullError` before anything is written where the disk is too full, `ConfigError` for contents of the
    wrong size, `KeyboardInterrupt` when cancelled, and whatever `check` raises.
    """
    head = _head({key: field for key, field in fields.items() if key != "general.alignment"}, tensors)
    total = sum(tensor.bytes for tensor in tensors)
    with temporary(out, len(head) + total + _ALIGNMENT * len(tensors)) as partial:
        with storage_errors(partial, instead=OUT), partial.open("wb") as file:
            file.write(head)
            done = 0
            for tensor in tensors:
                progress(done, total, tensor.name)
                if cancel is not None and cancel.is_set():
                    raise KeyboardInterrupt
                size = 0
                for part in tensor.parts():
                    file.write(np.ascontiguousarray(part).data.cast("B"))
                    size += part.nbytes
                if size != tensor.bytes:
                    raise ConfigError(f"{tensor.name} came as {size} bytes of {tensor.type}, not {tensor.bytes}")
                file.write(bytes(-size % _ALIGNMENT))
                done += size
            file.flush()
            os.fsync(file.fileno())
        written = read_header(partial, model="general.architecture" in fields)
        expected = [(tensor.name, tensor.type, tensor.shape) for tensor in tensors]
        if [(each.name, each.type, each.shape) for each in written.tensors] != expected:
            raise ModelDamagedError(f"{out.name} does not read back as it was written", hint="check the disk")
        check(partial)
    progress(total, total, out.name)
    return written


def _head(fields: Mapping[str, Field | Verbatim], tensors: Sequence[NewTensor]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    parts += [_string(key) + field.encode() for key, field in fields.items()]
    offset = 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts.append(_string(tensor.name) + shape + struct.pack("<IQ", _TYPES[tensor.type][0], offset))
        offset += tensor.bytes + -tensor.bytes % _ALIGNMENT
    head = b"".join(parts)
    return head + bytes(-len(head) % _ALIGNMENT)


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


@contextmanager
def temporary(out: Path, expected: int) -> Iterator[Path]:
    """A name beside `out` that becomes `out` when the block ends well, and vanishes otherwise.

    Raises `DiskFullError` before the block where fewer than `expected` bytes are free.
    """
    folder = out.absolute().parent
    partial = folder / f".{out.name}.{os.getpid()}.partial"
    with storage_errors(folder, instead=OUT):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < expected:
            need = f"{out.name} takes {expected / 1e6:,.0f} MB"
            raise disk_full(f"{folder} has {free / 1e6:,.0f} MB free, {need}", instead=OUT)
        try:
            yield partial
            partial.replace(out)
            sync_folder(folder)
        finally:
            partial.unlink(missing_ok=True)
