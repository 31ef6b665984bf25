"""Reads the graph of an ONNX file in plain Python: nodes with their attributes, and tensors as numpy arrays.

For files that `inspect_onnx` has passed. It runs nothing and knows nothing of what a graph computes, but for the
few operators with which exporters write a stored tensor.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelDamagedError
from .onnx_session import OnnxFile

Array = NDArray[Any]
Attribute = int | float | bytes | tuple[int, ...] | Array

# Numbers of element types in onnx.proto3, little-endian as the format stores them.
_TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
MOVES = ("Identity", "Cast", "Dropout")
"""Operators that leave the numbers as they are."""
_FOLDED = ("Identity", "Cast", "Transpose", "Mul", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. An input that is left out is ""."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


class OnnxGraph:
    """The main graph of a file: `nodes` by the names of their outputs, `inputs` and `outputs` by name.

    Tensors are views of the mapped files: copy what has to stay.
    """

    def __init__(self, file: OnnxFile) -> None:
        """Raises `ModelDamagedError` where the numbers in the file do not fit together."""
        self._file = file
        self._maps: dict[Path, memoryview] = {}
        self.nodes: dict[str, Node] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._tensors: dict[str, Array] = {}
        try:
            for number, part in _fields(self._map(file.path)):
                if number == 7 and isinstance(part, memoryview):
                    self._read(part)
        except (ValueError, KeyError, IndexError, struct.error) as error:
            raise ModelDamagedError(
                f"the graph of {file.path} cannot be read: {error}", hint="pull the model again"
            ) from error
        self.inputs = [name for name in self.inputs if name not in self._tensors]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of what `constant` would give, without the work; None where it would."""
        if name in self._tensors:
            return self._tensors[name].shape
        node = self.nodes.get(name)
        if node is None or node.operator not in _FOLDED:
            value = self.constant(name)
            return None if value is None else value.shape
        shapes = [self.shape(part) for part in node.inputs]
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(shapes):
            return None
        if node.operator == "Transpose":
            order = _order(node, len(known[0]))
            return tuple(known[0][at] for at in order)
        return np.broadcast_shapes(*known) if node.operator == "Mul" else known[0]

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that is stored in the file, perhaps behind casts, scales or a transposition."""
        if name in self._tensors:
            return self._tensors[name]
        node = self.nodes.get(name)
        if node is None:
            return None
        if node.operator == "Constant":
            value = node.attributes.get(
                "value", node.attributes.get("value_float", node.attributes.get("value_int"))
            )
            return None if value is None or isinstance(value, bytes) else np.asarray(value)
        if node.operator not in _FOLDED:
            return None
        parts = [self.constant(part) for part in node.inputs]
        if any(part is None for part in parts):
            return None
        return _folded(node, [part for part in parts if part is not None])

    def origin(self, name: str) -> str:
        """The name behind operators that change nothing."""
        while (node := self.nodes.get(name)) is not None and node.operator in MOVES:
            name = node.inputs[0]
        return name

    def stored_above(self, name: str) -> Iterator[Array]:
        """Stored tensors that go into `name`."""
        for above in self._above(name, through_shapes=True):
            node = self.nodes.get(above)
            value = self.constant(above) if node is None or node.operator == "Constant" else None
            if value is not None:
                yield value

    def inputs_above(self, name: str) -> set[str]:
        """Inputs of the graph whose values, and not only whose shapes, go into `name`."""
        return self._above(name, through_shapes=False) & set(self.inputs)

    def _above(self, name: str, *, through_shapes: bool) -> set[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                node = self.nodes.get(name)
                if node is not None and (through_shapes or node.operator != "Shape"):
                    todo += node.inputs
        return seen

    def _read(self, graph: memoryview) -> None:
        nodes: list[Node] = []
        for number, part in _fields(graph):
            if not isinstance(part, memoryview):
                continue
            if number == 1:
                nodes.append(self._node(part))
            elif number == 5:
                name, array = self._tensor(part)
                self._tensors[name] = array
            elif number in (11, 12):
                names = self.inputs if number == 11 else self.outputs
                names.extend(_text(value) for key, value in _fields(part) if key == 1)
        every = {name for node in nodes for name in node.outputs if name}
        for node in nodes:  # in the order that the format demands, so that walking up always ends
            if any(name in every and name not in self.nodes for name in node.inputs):
                raise ValueError(f"a {node.operator} stands before its input")
            if not self.nodes.keys().isdisjoint(node.outputs):
                raise ValueError(f"a {node.operator} gives what is there already")
            self.nodes.update((name, node) for name in node.outputs if name)

    def _node(self, data: memoryview) -> Node:
        inputs, outputs, operator, attributes = [], [], "", {}
        for number, value in _fields(data):
            if number == 1:
                inputs.append(_text(value))
            elif number == 2:
                outputs.append(_text(value))
            elif number == 4:
                operator = _text(value)
            elif number == 5 and isinstance(value, memoryview):
                name, attribute = self._attribute(value)
                if attribute is not None:
                    attributes[name] = attribute
        return Node(operator, tuple(inputs), tuple(outputs), attributes)

    def _attribute(self, data: memoryview) -> tuple[str, Attribute | None]:
        name, found, numbers = "", None, []
        for number, value in _fields(data):
            if number == 1:
                name = _text(value)
            elif number == 2 and isinstance(value, memoryview):
                (found,) = struct.unpack("<f", value)
            elif number == 3 and isinstance(value, int):
                found = _signed(value)
            elif number == 4 and isinstance(value, memoryview):
                found = bytes(value)
            elif number == 5 and isinstance(value, memoryview):
                found = self._tensor(value)[1]
            elif number == 8:
                numbers += _integers(value)
        return name, tuple(numbers) if numbers else found

    def _tensor(self, data: memoryview) -> tuple[str, Array]:
        shape: list[int] = []
        name, dtype, content, external = "", "", memoryview(b""), {}
        integers: list[int] = []
        for number, value in _fields(data):
            if number == 1:
                shape += _integers(value)
            elif number == 2 and isinstance(value, int):
                dtype = _TYPES.get(value, "V")
            elif number in (5, 7):
                integers += _integers(value)
            elif number == 8:
                name = _text(value)
            elif number in (4, 9, 10) and isinstance(value, memoryview):
                content = value
            elif number == 13 and isinstance(value, memoryview):
                entry = {key: _text(part) for key, part in _fields(value)}
                external[entry[1]] = entry.get(2, "")
        if dtype == "V":
            return name, np.empty(0, "V1")
        if integers:
            return name, np.array(integers, dtype).reshape(shape)
        if external:
            content = self._map(self._file.path.parent / external["location"])[int(external.get("offset", 0)) :]
            content = content[: int(external["length"])] if "length" in external else content
        count = int(np.prod(shape, dtype=np.int64))
        return name, np.frombuffer(content, dtype, count).reshape(shape)

    def _map(self, path: Path) -> memoryview:
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._maps[path]


def _order(node: Node, dimensions: int) -> tuple[int, ...]:
    """What a Transpose puts where; by default it turns the dimensions around."""
    order = node.attributes.get("perm")
    return order if isinstance(order, tuple) else tuple(reversed(range(dimensions)))


def _folded(node: Node, parts: list[Array]) -> Array:
    """What an operator of stored tensors gives, in single precision unless it only moves numbers."""
    if node.operator == "Identity":
        return parts[0]
    if node.operator == "Cast":
        return parts[0].astype(_TYPES[int(node.attributes["to"])])  # type: ignore[arg-type]
    if node.operator == "Transpose":
        return parts[0].transpose(_order(node, parts[0].ndim))
    if node.operator == "Mul":
        return np.asarray(parts[0] * parts[1])
    axis = node.attributes.get("axis", 1)
    shape = [-1 if at == axis % parts[0].ndim else 1 for at in range(parts[0].ndim)]  # type: ignore[operator]
    scale, *zero = (part.reshape(shape) if part.size > 1 else part.reshape(()) for part in parts[1:])
    codes = parts[0].astype(np.float32)
    return np.asarray((codes - zero[0].astype(np.float32) if zero else codes) * scale)


# --- protobuf ---------------------------------------------------------------------------------------


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: varints as integers, all else as its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            size, at = _varint(data, at)
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return result, at


def _integers(value: int | memoryview) -> list[int]:
    """A repeated integer field, one number or packed."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _text(value: int | memoryview) -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""
