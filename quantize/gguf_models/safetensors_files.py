"""Safetensors, read and written with numpy alone: the weights of a Hugging Face folder, one file or several.

The format is a length, a JSON header and raw data (https://github.com/huggingface/safetensors). A header is
believed in nothing: every length, offset and type is checked before data is touched. Pickles are refused, for
reading one runs what it says. Knows nothing of architectures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ModelDamagedError, ModelNotFoundError

Floats = NDArray[np.float32]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SIZES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_MAX_HEADER = 32 << 20
_SLICE = 1 << 24  # weights that are turned into floats at once


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: its slowest dimension first, `start` and `end` counted from the file's first byte."""

    type: str
    shape: tuple[int, ...]
    start: int
    end: int


class Weights:
    """Tensors by name, over all files of a folder. Nothing is read until it is asked for."""

    def __init__(self, places: Mapping[str, tuple[Path, Entry]]) -> None:
        self._places = places
        self.shapes: Mapping[str, tuple[int, ...]] = {name: entry.shape for name, (_, entry) in places.items()}

    def floats(self, name: str, order: NDArray[np.intp] | None = None) -> Iterator[Floats]:
        """A tensor's rows [some, columns], slice by slice; with `order` its rows in that order.

        A tensor of one dimension is one row. Raises `ModelDamagedError` for one that holds no floating-point
        numbers, or numbers that are not finite.
        """
        path, entry = self._places[name]
        if entry.type not in ("F64", "F32", "F16", "BF16"):
            raise ModelDamagedError(f"{name} in {path.name} holds {entry.type}, not floating-point weights")
        columns = entry.shape[-1] if entry.shape else 1
        raw = np.memmap(path, np.uint8, "r", entry.start, (entry.end - entry.start,)).reshape(
            -1, columns * _SIZES[entry.type]
        )
        step = max(_SLICE // max(columns, 1), 1)
        for start in range(0, len(raw), step):
            rows = raw[start : start + step] if order is None else raw[order[start : start + step]]
            values = to_floats(np.ascontiguousarray(rows), entry.type)
            if not np.isfinite(values).all():
                raise ModelDamagedError(f"{name} in {path.name} holds numbers that are not finite")
            yield values


def open_weights(folder: Path) -> Weights:
    """The weights of a folder: `model.safetensors`, or the files that `model.safetensors.index.json` names.

    Raises `ModelNotFoundError` where there is neither, `ModelDamagedError` for files that are not whole.
    """
    if (folder / SINGLE).is_file():
        return Weights({name: (folder / SINGLE, entry) for name, entry in read_entries(folder / SINGLE).items()})
    if not (folder / INDEX).is_file():
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise ModelDamagedError(
                f"{folder} holds weights only as pickles ({pickles[0]}), and reading a pickle runs code",
                hint="save the model again with `save_pretrained(folder, safe_serialization=True)`",
            )
        raise ModelNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    return Weights(_places(folder))


def _places(folder: Path) -> dict[str, tuple[Path, Entry]]:
    content = parse_json((folder / INDEX).read_bytes()[: _MAX_HEADER + 1], folder / INDEX)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        _fail(folder / INDEX, "has no `weight_map`")
    entries: dict[str, dict[str, Entry]] = {}
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            _fail(folder / INDEX, f"names the file {file!r}, which is no .safetensors file of the folder")
        if file not in entries:
            entries[file] = read_entries(folder / file)
    for name, file in files.items():
        if name not in entries[file]:
            _fail(folder / file, f"lacks the tensor {name!r} that {INDEX} promises")
    extra = [name for file in entries for name in entries[file] if files.get(name) != file]
    if extra:
        _fail(folder / INDEX, f"does not place the tensor {extra[0]!r}")
    return {name: (folder / file, entries[file][name]) for name, file in files.items()}


def read_entries(path: Path) -> dict[str, Entry]:
    """What a file holds: names to types, shapes and places, checked to fill the file without gap or overlap.

    Raises `ModelDamagedError` for anything else, `ModelNotFoundError` where there is no such file.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                _fail(path, f"is no safetensors file: {size} bytes, a header of {length}")
            content = parse_json(file.read(length), path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise ModelDamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict):
        _fail(path, "has a header that is no JSON object")
    content.pop("__metadata__", None)
    base = 8 + length
    entries = {name: _entry(path, name, value, base) for name, value in content.items()}
    at = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            _fail(path, f"has a gap or an overlap before {name!r}: byte {entry.start} follows byte {at}")
        at = entry.end
    if at != size:
        _fail(path, f"has {size} bytes, its tensors end at {at}")
    return entries


def _entry(path: Path, name: str, value: object, base: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"describes {name!r} by something else than dtype, shape and data_offsets")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in _SIZES:
        _fail(path, f"gives {name!r} the unknown type {kind!r}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_whole, shape)):
        _fail(path, f"gives {name!r} the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_whole, offsets)):
        _fail(path, f"gives {name!r} the offsets {offsets!r}")
    needed = _SIZES[kind]
    for dimension in shape:
        needed *= dimension
    if offsets[1] - offsets[0] != needed:
        _fail(path, f"gives {name!r} {offsets[1] - offsets[0]} bytes, its shape needs {needed}")
    return Entry(kind, tuple(shape), base + offsets[0], base + offsets[1])


def parse_json(data: bytes, path: Path) -> Any:
    """JSON without what Python alone allows: names that come twice, NaN. Raises `ModelDamagedError`."""

    def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name comes twice")
        return found

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(data, object_pairs_hook=no_name_twice, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error)[:120]
        raise ModelDamagedError(f"{path.name} is not JSON: {reason}", hint="save the model again") from error


def write_safetensors(
    path: Path, tensors: Sequence[tuple[str, tuple[int, ...], Callable[[], Iterator[Floats]]]], type: str
) -> None:
    """Write tensors of one type, `F32` or `BF16`: names, shapes, and functions that give their values in pieces."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape, _ in tensors:
        size = int(np.prod(shape, dtype=object)) * _SIZES[type]
        header[name] = {"dtype": type, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligned data, as the format asks
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, pieces in tensors:
            for values in pieces():
                file.write(
                    to_bf16(values).data.cast("B") if type == "BF16" else values.astype("<f4").data.cast("B")
                )
        file.flush()
        os.fsync(file.fileno())


def to_floats(raw: NDArray[np.uint8], type: str) -> Floats:
    """Rows of bytes [rows, bytes] as float32 [rows, columns]; all but F64 without loss.

    >>> to_floats(np.array([[0x80, 0x3F]], np.uint8), "BF16").tolist()
    [[1.0]]
    """
    if type == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return np.asarray(raw.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[type]), np.float32)


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """The nearest bfloat16 of finite values, ties to even.

    >>> [hex(code) for code in to_bf16(np.array([1.0, 1.00390625, -2.5], np.float32))]
    ['0x3f80', '0x3f80', '0xc020']
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _fail(path: Path, message: str) -> NoReturn:
    raise ModelDamagedError(f"{path.name} {message}", hint="fetch or save the model again")
