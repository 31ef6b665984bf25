"""Reads the header of a GGUF file and refuses whatever does not add up, before native code sees the file.

llama.cpp answers many malformed files with `abort()`, which no `except` can catch; so every count, length, type,
offset and size is checked here against the size of the file, in Python integers. Follows the specification,
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, for versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from operator import sub
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from ..errors import ModelDamagedError, ModelNotFoundError

_MAX_FIELDS, _MAX_TENSORS = 4_096, 16_384
_MAX_STRING, _MAX_ELEMENTS, _MAX_TOKEN, _MAX_NAME = 8 << 20, 4 << 20, 1_024, 63
_KEPT_ELEMENTS = 1_024  # longer arrays (vocabularies) are checked but not kept
_NO_TOKEN = (1 << 32) - 1  # how some writers say "none"
_STRING, _ARRAY, _BOOL, _FLOAT, _BYTE_TOKEN = 8, 9, 7, 6, 6
_ROPE_SCALING = ("none", "linear", "yarn", "longrope")
_SCALARS: Final = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_ELEMENTS: Final = {"tokenizer.ggml.scores": (6,), "tokenizer.ggml.token_type": (4, 5)}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# ggml's types as name, weights in a block, bytes of a block; `tests` compare them with the library's own figures.
TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """A long metadata array, checked but not kept. `longest` is the most bytes of one string."""

    kind: int
    count: int
    longest: int = 0


Value = int | float | bool | str | tuple[int | float | bool | str, ...] | ArrayInfo


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's place: `offset` counts from the start of the file. `shape` has the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself. A figure that it does not state is None (lengths: 0)."""

    version: int
    file_bytes: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    architecture: str
    name: str | None
    chat_template: str | None
    context_length: int | None
    n_layer: int | None
    n_embd: int | None
    n_head: int | None
    n_head_kv: tuple[int, ...] = field(default=())  # one figure a layer
    head_bytes: int = 0  # key and value of one head and one position, in half precision
    vocabulary: int = 0
    longest_token: int = 0  # bytes
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def kv_bytes(self, context: int) -> int:
        """Bytes of a half-precision KV cache for `context` positions; 0 where the header does not tell."""
        return sum(self.n_head_kv) * self.head_bytes * context


def read_header(path: Path, *, model: bool = True) -> GgufHeader:
    """Read and check the header of `path`; the weights are not read. What is no `model` needs no architecture.

    Raises `ModelDamagedError` for anything that is not a whole, consistent GGUF file, `ModelNotFoundError` where
    there is no such file. A vocabulary of 150,000 tokens takes about a tenth of a second.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise ModelDamagedError(f"{path} is not a GGUF file: it has {size} bytes")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header(model)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise ModelDamagedError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    """A cursor over the file. Every step checks that what it takes lies within the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0
        self.tokens: list[bytes] = []
        self.token_types = b""

    def fail(self, message: str) -> NoReturn:
        raise ModelDamagedError(f"{self.path.name}: {message}", hint="fetch the model again")

    def take(self, count: int, what: str) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > self.size:
            self.fail(f"the file ends at byte {self.size}, inside {what} that needs {self.at}")
        return self.data[start : self.at]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str, most: int, least_bytes: int) -> int:
        """A number of things to come, of at least `least_bytes` each."""
        value = self.u64(what)
        if value > most or value * least_bytes > self.size - self.at:
            self.fail(f"{what} is {value}, more than the file can hold or than {most}")
        return value

    def text(self, what: str, most: int) -> str:
        length = self.count(f"the length of {what}", most, 1)
        raw = self.take(length, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8 ({raw[:32]!r})")

    def scalar(self, kind: int, what: str) -> int | float | bool | str:
        if kind == _STRING:
            return self.text(what, _MAX_STRING)
        form = _SCALARS.get(kind)
        if form is None:
            self.fail(f"{what} has the unknown type {kind}")
        value: int | float = form.unpack(self.take(form.size, what))[0]
        if kind == _BOOL:
            if value > 1:
                self.fail(f"{what} is a boolean of value {value}")
            return bool(value)
        return value

    # --- metadata ---------------------------------------------------------------------------------------

    def metadata(self, fields: int) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for _ in range(fields):
            key = self.text("a metadata key", 65_535)
            if not key:
                self.fail("a metadata key is empty")
            if key in result:
                self.fail(f"the metadata key {key!r} comes twice")
            kind = self.u32(f"the type of {key}")
            if key == "adapter.lora.alpha" and kind != _FLOAT:  # llama.cpp asserts that it is one
                self.fail(f"{key} has the type {kind}")
            result[key] = self.array(key) if kind == _ARRAY else self.scalar(kind, key)
        return result

    def array(self, key: str) -> Value:
        kind = self.u32(f"the element type of {key}")
        if kind != _STRING and kind not in _SCALARS:
            self.fail(f"{key} is an array of the type {kind}")
        width = 8 if kind == _STRING else _SCALARS[kind].size
        count = self.count(f"the length of {key}", _MAX_ELEMENTS, width)
        if count <= _KEPT_ELEMENTS and not key.startswith("tokenizer."):
            return tuple(self.scalar(kind, key) for _ in range(count))
        if kind == _STRING:
            return self.strings(key, count)
        content = self.take(count * width, key)
        if kind not in _ELEMENTS.get(key, (kind,)):
            self.fail(f"{key} is an array of the type {kind}")
        if kind == _BOOL and content.translate(None, b"\0\1"):
            self.fail(f"{key} holds a boolean that is neither 0 nor 1")
        if key == "tokenizer.ggml.token_type":
            self.token_types = content
        return ArrayInfo(kind, count)

    def strings(self, key: str, count: int) -> ArrayInfo:
        """Check an array of strings: the one loop over hundreds of thousands of items, so it is kept bare."""
        data, at, size, unpack = self.data, self.at, self.size, _U64.unpack_from
        most = _MAX_TOKEN if key.startswith("tokenizer.") else _MAX_STRING
        ends = [at]
        try:
            for _ in range(count):
                length = unpack(data, at)[0]
                if length > most:
                    self.fail(f"string {len(ends)} of {key} has {length} bytes, more than {most}")
                at += 8 + length
                ends.append(at)
        except struct.error:
            at = size + 1
        if at > size:
            self.fail(f"the file ends at byte {size}, inside {key}")
        self.at = at
        longest = max(map(sub, ends[1:], ends), default=8) - 8
        if key == "tokenizer.ggml.tokens":
            content = data[ends[0] : at]
            base = ends[0] - 8
            self.tokens = [content[start - base : end - base - 8] for start, end in pairwise(ends)]
            try:
                b"\n".join(self.tokens).decode()
            except UnicodeDecodeError:
                self.fail(f"{key} holds text that is not UTF-8")
        return ArrayInfo(_STRING, count, longest)

    # --- tensors ----------------------------------------------------------------------------------------

    def tensors(self, count: int, alignment: int) -> tuple[TensorInfo, ...]:
        found: list[tuple[str, tuple[int, ...], str, int, int]] = []
        names: set[str] = set()
        end = 0
        for _ in range(count):
            name = self.text("a tensor's name", _MAX_NAME)
            if not name or name in names:
                self.fail(f"the tensor name {name!r} is empty or comes twice")
            names.add(name)
            dimensions = self.u32(f"the number of dimensions of {name}")
            if not 1 <= dimensions <= 4:
                self.fail(f"{name} has {dimensions} dimensions")
            shape = tuple(self.u64(f"the shape of {name}") for _ in range(dimensions))
            kind = self.u32(f"the type of {name}")
            if kind not in TENSOR_TYPES:
                self.fail(f"{name} has the unknown tensor type {kind}")
            label, weights, width = TENSOR_TYPES[kind]
            elements = math.prod(shape)
            if not elements or shape[0] % weights:
                self.fail(f"the shape {shape} of {name} does not fit blocks of {weights} ({label})")
            length, offset = elements // weights * width, self.u64(f"the offset of {name}")
            if offset != end:
                self.fail(f"{name} starts at {offset} of the data and not at {end}")
            if length > self.size:
                self.fail(f"{name} has {length} bytes, the file has {self.size}")
            end = offset + length + -length % alignment
            found.append((name, shape, label, offset, length))
        base = self.at + -self.at % alignment
        used = base + found[-1][3] + found[-1][4] if found else self.at
        if used > self.size:
            self.fail(f"the file has {self.size} bytes, its tensors need {used}")
        if self.size - used >= alignment:
            self.fail(f"{self.size - used} bytes follow the last tensor")
        return tuple(TensorInfo(name, shape, label, base + at, size) for name, shape, label, at, size in found)

    # --- the whole --------------------------------------------------------------------------------------

    def header(self, model: bool) -> GgufHeader:
        if self.take(4, "the magic number") != b"GGUF":
            self.fail("not a GGUF file: it does not begin with `GGUF`")
        version = self.u32("the version")
        if version not in (2, 3):
            order = " (big-endian)" if version and not version & 0xFFFF else ""
            self.fail(f"GGUF version {version}{order} is not supported, only 2 and 3, little-endian")
        # The bounds of the second count hold for both: a tensor needs 33 bytes, a field 13.
        tensors = self.count("the number of tensors", _MAX_TENSORS, 33)
        metadata = self.metadata(self.count("the number of metadata fields", _MAX_FIELDS, 13))
        alignment = self.integer(metadata, "general.alignment", 8, 1 << 16) or 32
        if alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment}, not a power of two")
        if (self.integer(metadata, "split.count", 0, 1 << 16) or 0) > 1:
            self.fail("one part of a model that is split over several files, which is not supported")
        self.check_tokens(metadata)
        found = self.tensors(tensors, alignment)
        architecture = metadata.get("general.architecture") if model else ""
        pattern = r"[a-z0-9][a-z0-9_.-]{0,63}" if model else ""
        if not isinstance(architecture, str) or not re.fullmatch(pattern, architecture):
            self.fail(f"general.architecture is {architecture!r}")
        return self.describe(version, metadata, found, architecture)

    def integer(self, metadata: Mapping[str, Value], key: str, least: int, most: int) -> int | None:
        if (value := metadata.get(key)) is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.fail(f"{key} is {value!r}, not a whole number from {least} to {most}")
        return value

    def string(self, metadata: Mapping[str, Value], key: str) -> str | None:
        value = metadata.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(f"{key} is {value!r}, not text")
        return value

    def check_tokens(self, metadata: Mapping[str, Value]) -> None:
        """The vocabulary is unique, its side arrays have its length, and special ids point into it."""
        tokens, count = self.tokens, len(self.tokens)
        # llama.cpp takes names as C strings and then asserts that they differ; empty ones it renames.
        named = [token.partition(b"\0")[0] for token in tokens if token]
        if len(set(named)) != len(named):
            self.fail("the vocabulary holds a token twice")
        for key in _ELEMENTS:
            value = metadata.get(key)
            if value is not None and (not isinstance(value, ArrayInfo) or value.count != count):
                self.fail(f"{key} does not have one entry for each of the {count} tokens")
        kinds = array("i", self.token_types)
        if sys.byteorder == "big":
            kinds.byteswap()
        if kinds and not 0 <= min(kinds) <= max(kinds) <= _BYTE_TOKEN:
            self.fail("tokenizer.ggml.token_type holds an unknown type")
        if _BYTE_TOKEN in kinds:
            for kind, token in zip(kinds, tokens, strict=True):
                if kind == _BYTE_TOKEN and not re.fullmatch(rb"<0x[0-9A-F]{2}>", token):
                    self.fail(f"the byte token {token!r} is not written as <0x00>")
        if metadata.get("tokenizer.ggml.model") == "llama":  # its tokenizer throws where a byte has no token
            lacking = {b"<0x%02X>" % byte for byte in range(256)}.difference(tokens)
            if any(bytes([int(name[3:5], 16)]) not in named for name in lacking):
                self.fail("the vocabulary has no tokens for single bytes")
        for key in metadata:
            if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
                self.token_id(metadata, key)

    def token_id(self, metadata: Mapping[str, Value], key: str) -> int | None:
        value = self.integer(metadata, key, 0, _NO_TOKEN)
        if value is None or value == _NO_TOKEN:
            return None
        if value >= len(self.tokens):
            self.fail(f"{key} is {value}, the vocabulary has {len(self.tokens)} tokens")
        return value

    def describe(
        self, version: int, metadata: dict[str, Value], tensors: tuple[TensorInfo, ...], architecture: str
    ) -> GgufHeader:
        def number(name: str, least: int = 1, most: int = 1 << 24) -> int | None:
            return self.integer(metadata, f"{architecture}.{name}", least, most)

        # Values on which llama.cpp asserts, and `abort()` cannot be caught.
        layers = number("block_count", most=512)
        number("nextn_predict_layers", 0, layers or 0)
        experts = number("expert_count", 0, 512) or 0
        used = max(self.per_layer(metadata, f"{architecture}.expert_used_count", layers or 0, least=0), default=0)
        if used > experts or (experts and not used):
            self.fail(f"{architecture}: {used} of {experts} experts are used")
        if metadata.get(f"{architecture}.rope.scaling.type", "none") not in _ROPE_SCALING:
            self.fail(f"{architecture}.rope.scaling.type is unknown")
        for key, value in metadata.items():
            if key.endswith("_epsilon") and not (isinstance(value, float) and 0 <= value < math.inf):
                self.fail(f"{key} is {value!r}")

        embedding = number("embedding_length")
        key = f"{architecture}.attention.head_count"
        heads = self.per_layer(metadata, key, layers or 0, least=1)
        kv_heads = self.per_layer(metadata, key + "_kv", layers or 0, least=0) or heads
        widest = max(heads, default=0)
        head = (embedding or 0) // (widest or 1)
        widths = (number("attention.key_length") or head) + (number("attention.value_length") or head)
        return GgufHeader(
            version=version,
            file_bytes=self.size,
            metadata=MappingProxyType(metadata),
            tensors=tensors,
            architecture=architecture,
            name=self.string(metadata, "general.name"),
            chat_template=self.string(metadata, "tokenizer.chat_template"),
            context_length=number("context_length", most=1 << 27),
            n_layer=layers,
            n_embd=embedding,
            n_head=widest or None,
            n_head_kv=kv_heads,
            head_bytes=2 * widths,
            vocabulary=len(self.tokens),
            longest_token=max(map(len, self.tokens), default=0),
            bos_token_id=self.token_id(metadata, "tokenizer.ggml.bos_token_id"),
            eos_token_id=self.token_id(metadata, "tokenizer.ggml.eos_token_id"),
        )

    def per_layer(self, metadata: Mapping[str, Value], key: str, layers: int, least: int) -> tuple[int, ...]:
        """A figure that is one number for all layers, or one for each."""
        if isinstance(value := metadata.get(key), tuple):
            if len(value) != layers:
                self.fail(f"{key} has {len(value)} entries for {layers} layers")
            return tuple(self.integer({key: item}, key, 0, 1 << 16) or 0 for item in value)
        number = self.integer(metadata, key, least, 1 << 16)
        return () if number is None else (number,) * layers
