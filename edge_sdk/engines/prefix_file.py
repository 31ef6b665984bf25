"""The file of one kept prefix: tokens, and what llama.cpp's memory holds after them.

Little-endian: magic, key of 32 bytes, count of tokens (u32), bytes of state (u64), SHA-256 of the state; the tokens
(i32); SHA-256 of all that; the state. Everything is checked before anything is used. Knows nothing of models, nor
of which file to read.
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

SUFFIX, PART = ".kv", ".part"
_MAGIC = b"EDGEKV1\n"
_HEAD = struct.Struct("<8s32sIQ32s")
_HASH = 32
_MOST_TOKENS = 1 << 22
_numbers = count()

Tokens = NDArray[np.int32]
State = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens, and the state of a sequence of exactly these."""

    tokens: Tokens
    state: State


def write_prefix(path: Path, key: bytes, prefix: Prefix) -> None:
    """Write the file, whole or not at all, readable to its owner only. Raises `OSError`.

    It is not forced to the disk: what a power failure leaves of it does not pass the checks.
    """
    head = _HEAD.pack(
        _MAGIC, key, len(prefix.tokens), len(prefix.state), hashlib.sha256(prefix.state.data).digest()
    )
    head += prefix.tokens.astype("<i4").tobytes()
    part = path.with_name(f"{path.stem}.{os.getpid()}-{next(_numbers)}{PART}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(part, flags, 0o600), "wb", buffering=0) as file:
            for block in (head, hashlib.sha256(head).digest(), prefix.state.data):
                view = memoryview(block)
                while view:  # unbuffered, so a full disk may take a part of a block and fail at the next
                    view = view[file.write(view) :]
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def read_tokens(path: Path, key: bytes) -> Tokens:
    """The tokens of a file; of the state only the size is checked. Raises as `read_prefix` does."""
    with path.open("rb", buffering=0) as file:
        return _read_head(file, key)[0]


def read_prefix(path: Path, key: bytes) -> Prefix:
    """Everything of a file, checked. Raises `ValueError` for one that is damaged or not of `key`, and `OSError`."""
    with path.open("rb", buffering=0) as file:
        tokens, size, digest = _read_head(file, key)
        state = np.empty(size, np.uint8)
        view = memoryview(state.data)
        while view:
            got = file.readinto(view)
            if not got:
                raise ValueError("the state is cut off")
            view = view[got:]
    if hashlib.sha256(state.data).digest() != digest:
        raise ValueError("the state is damaged")
    return Prefix(tokens, state)


def _read_head(file: BinaryIO, key: bytes) -> tuple[Tokens, int, bytes]:
    """Tokens, bytes of state and their hash; the file is then at the state."""
    fixed = file.read(_HEAD.size)
    if len(fixed) < _HEAD.size or not fixed.startswith(_MAGIC):
        raise ValueError("it is no prefix")
    _, its_key, tokens, size, digest = _HEAD.unpack(fixed)
    if its_key != key:
        raise ValueError("it is of another model or setting")
    whole = _HEAD.size + 4 * tokens + _HASH + size
    if not 0 < tokens <= _MOST_TOKENS or not size or os.fstat(file.fileno()).st_size != whole:
        raise ValueError("its size is wrong")
    rest = file.read(4 * tokens + _HASH)
    row, check = rest[: 4 * tokens], rest[4 * tokens :]
    if hashlib.sha256(fixed + row).digest() != check:
        raise ValueError("its beginning is damaged")
    return np.frombuffer(row, "<i4").astype(np.int32), size, digest
