"""Reads the graph of an ONNX file in plain Python: nodes with their attributes, and tensors as numpy arrays.

For files that `inspect_onnx` has passed, which may be hostile all the same: time and memory are in proportion to
the file. It runs nothing and knows nothing of what a graph computes, but for the few operators with which exporters
write a stored tensor.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelDamagedError
from .onnx_session import OnnxFile

Array = NDArray[Any]
Attribute = int | float | bytes | tuple[int, ...] | Array

# Numbers of element types in onnx.proto3, little-endian as the format stores them.
_TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
MOVES = ("Identity", "Cast", "Dropout")
"""Operators that leave the numbers as they are."""
_FOLDED = ("Identity", "Cast", "Transpose", "Mul", "DequantizeLinear")
_MOST_FOLDED = 8  # operators between a tensor and what is stored; exporters write up to four
_MOST_PACKED = 1 << 20  # bytes of a list of numbers, each of which becomes an object


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. An input that is left out is ""."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


class OnnxGraph:
    """The main graph of a file: `nodes` by the names of their outputs, `inputs` and `outputs` by name.

    Tensors are views of the mapped `file`: copy what has to stay. `size` is in bytes, of all its parts.
    """

    def __init__(self, file: OnnxFile) -> None:
        """Raises `ModelDamagedError` where the numbers in the file do not fit together."""
        self.file = file
        self._maps: dict[Path, memoryview] = {}
        self.nodes: dict[str, Node] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._tensors: dict[str, Array] = {}
        self._foldable: dict[str, tuple[tuple[int, ...], int]] = {}  # shape and number of operators
        try:
            for number, part in _fields(self._map(file.path)):
                if number == 7 and isinstance(part, memoryview):
                    self._read(part)
        except (ValueError, TypeError, LookupError, ArithmeticError, OSError, struct.error) as error:
            raise ModelDamagedError(
                f"the graph of {file.path} cannot be read: {error}", hint="pull the model again"
            ) from error
        self.inputs = [name for name in self.inputs if name not in self._tensors]

    @property
    def size(self) -> int:
        return sum(map(len, self._maps.values()))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of what `constant` would give, without the work; None where it would."""
        return self._tensors[name].shape if name in self._tensors else self._foldable.get(name, (None,))[0]

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that is stored in the file, perhaps behind casts, scales or a transposition."""
        if name in self._tensors or name not in self._foldable:
            return self._tensors.get(name)
        node = self.nodes[name]
        return _folded(node, [part for name in node.inputs if (part := self.constant(name)) is not None])

    def origin(self, name: str) -> str:
        """The name behind operators that change nothing."""
        while (node := self.nodes.get(name)) is not None and node.operator in MOVES:
            name = node.inputs[0]
        return name

    def stored_above(self, name: str) -> Iterator[Array]:
        """Stored tensors that go into `name`."""
        for above in self.above(name, lambda operator: True):
            node = self.nodes.get(above)
            value = self.constant(above) if node is None or node.operator == "Constant" else None
            if value is not None:
                yield value

    def inputs_above(self, name: str) -> set[str]:
        """Inputs of the graph whose values, and not only whose shapes, go into `name`."""
        return self.above(name, lambda operator: operator != "Shape") & set(self.inputs)

    def above(self, name: str, past: Callable[[str], bool]) -> set[str]:
        """`name` and all that goes into it through operators that are `past`."""
        seen: set[str] = set()
        todo = [name]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                node = self.nodes.get(name)
                if node is not None and past(node.operator):
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
            self._store(node)

    def _store(self, node: Node) -> None:
        """Note the node where it gives what is stored in the file."""
        if node.operator == "Constant" and node.outputs:
            found = [
                node.attributes[key] for key in ("value", "value_float", "value_int") if key in node.attributes
            ]
            if found and not isinstance(found[0], bytes):
                self._tensors[node.outputs[0]] = np.asarray(found[0])
        elif node.operator in _FOLDED and node.inputs and node.outputs:
            shapes = [shape for part in node.inputs if (shape := self.shape(part)) is not None]
            operators = 1 + sum(self._foldable.get(part, ((), 0))[1] for part in node.inputs)
            shape = _folded_shape(node, shapes) if len(shapes) == len(node.inputs) else None
            if shape is not None and operators <= _MOST_FOLDED:
                self._foldable[node.outputs[0]] = shape, operators

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
        too_long = False
        for number, value in _fields(data):
            if number == 1:
                shape += _integers(value)
            elif number == 2 and isinstance(value, int):
                dtype = _TYPES.get(value, "V")
            elif number in (5, 7):
                too_long |= not isinstance(value, int) and len(value) > _MOST_PACKED
                integers += [] if too_long else _integers(value)
            elif number == 8:
                name = _text(value)
            elif number in (4, 9, 10) and isinstance(value, memoryview):
                content = value
            elif number == 13 and isinstance(value, memoryview):
                entry = {key: _text(part) for key, part in _fields(value)}
                external[entry[1]] = entry.get(2, "")
        if dtype == "V" or too_long:
            return name, np.empty(0, "V1")
        if integers:  # halves are stored as their bits
            numbers = np.array(integers, "<u2").view(dtype) if dtype == "<f2" else np.array(integers, dtype)
            return name, numbers.reshape(shape)
        if external:
            content = self._map(self.file.path.parent / external["location"])[int(external.get("offset", 0)) :]
            content = content[: int(external["length"])] if "length" in external else content
        count = int(np.prod(shape, dtype=np.int64))
        return name, np.frombuffer(content, dtype, count).reshape(shape)

    def _map(self, path: Path) -> memoryview:
        if path not in (self.file.path, *self.file.external):  # `inspect_onnx` has seen no such name
            raise ValueError(f"it names {str(path)!r} in a way that is not allowed")
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._maps[path]


def _order(node: Node, dimensions: int) -> tuple[int, ...]:
    """What a Transpose puts where; by default it turns the dimensions around."""
    order = node.attributes.get("perm")
    return order if isinstance(order, tuple) else tuple(reversed(range(dimensions)))


def _folded_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that `_folded` gives; None where it would fail, or be larger than all that it is made of."""
    try:
        if node.operator == "Transpose":
            order = _order(node, len(shapes[0]))
            return tuple(shapes[0][at] for at in order) if sorted(order) == [*range(len(shapes[0]))] else None
        if node.operator == "Mul":
            whole = np.broadcast_shapes(*shapes)
            return whole if whole in shapes else None
        axis = node.attributes.get("axis", 1)
        fit = all(math.prod(shape) == 1 or math.prod(shape) == shapes[0][axis] for shape in shapes[1:])  # type: ignore[index]
        return shapes[0] if fit else None
    except (ValueError, LookupError, TypeError):
        return None


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
    result = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
    raise ValueError("a number does not end")


def _integers(value: int | memoryview) -> list[int]:
    """A repeated integer field, one number or packed."""
    if isinstance(value, int):
        return [_signed(value)]
    if len(value) > _MOST_PACKED:
        raise ValueError(f"a list of numbers takes {len(value)} bytes")
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _text(value: int | memoryview) -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""
