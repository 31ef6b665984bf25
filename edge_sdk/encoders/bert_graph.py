"""Finds a BERT encoder in an ONNX graph, by what its operations do and not by names, and takes out its weights.

Understood are post-norm encoders with learned positions, full attention and exact GELU, as exporters of PyTorch
and onnxruntime write them, in floats or 8 bits. For any other graph it says why not. It runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..kernel_faces import bert
from ..model_files.onnx_graph import MOVES, Array, Node, OnnxGraph

_SHAPES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_MOST_NODES, _MOST_MASKS = 20_000, 16  # far more than any encoder has, and soon walked
_GELU = (math.sqrt(2), math.sqrt(0.5), 1.0, 0.5)  # the constants of x * 0.5 * (1 + erf(x / sqrt 2))


class NotBertError(ValueError):
    """The graph is not one that the kernel computes; one line says what was found instead."""


@dataclass(frozen=True, slots=True)
class _Projection:
    source: str
    weights: str
    bias: str


@dataclass(slots=True)
class _Path:
    """What was met between a tensor and the projections above it."""

    found: dict[str, _Projection] = field(default_factory=dict)
    factor: float = 1.0
    constants: list[float] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)
    shape: str = ""


def read_bert(graph: OnnxGraph) -> bert.BertWeights:
    """The weights of the encoder that the graph computes. Raises `NotBertError`."""
    return _read(_Reader(graph))


def read_float_bert(graph: OnnxGraph) -> bert.BertWeights:
    """The same with every matrix as it is: float32 in place of codes, all scales 1.

    For training; the kernel refuses them. Raises `NotBertError`.
    """
    return _read(_FloatReader(graph))


@np.errstate(invalid="ignore", over="ignore")  # damaged numbers are found by what they lead to
def _read(reader: _Reader) -> bert.BertWeights:
    if len(reader.graph.nodes) > _MOST_NODES:
        raise NotBertError(f"it has {len(reader.graph.nodes)} operations")
    try:
        return reader.read()
    except NotBertError:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise NotBertError(f"its graph is not sound: {error}") from error


def quantize(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric 8-bit codes with one scale for each index along `axis`.

    Of weights that were such codes times scales, the codes come back.

    >>> codes, scales = quantize(np.array([[0.5, -2.0], [1.0, 1.0]], np.float32), axis=1)
    >>> codes.tolist(), (scales * 127).tolist()
    ([[64, -127], [127, 64]], [1.0, 2.0])
    """
    scales = np.abs(weights).max(axis=1 - axis, keepdims=True).astype(np.float32) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8), scales.reshape(-1)


class _Reader:
    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self.heads = 0
        self.taken = 0  # numbers copied out of the file, each of which may be taken once

    def read(self) -> bert.BertWeights:
        unknown = sorted(set(self.graph.inputs) - _INPUTS)
        if unknown:
            raise NotBertError(f"it wants {', '.join(unknown)}")
        usual = [name for name in ("last_hidden_state", "token_embeddings") if name in self.graph.outputs]
        if not usual:
            raise NotBertError("it has no output named last_hidden_state")
        state, layers, epsilons = self.graph.origin(usual[0]), [], set()
        while True:
            norm, epsilon, total = self.norm(state)
            epsilons.add(epsilon)
            if not any(map(self.projection, self.node(total).inputs)):
                break
            state, layer, epsilon = self.layer(norm, total)
            epsilons.add(epsilon)
            layers.append(layer)
        if not layers or len(epsilons) > 1:
            raise NotBertError("its layers are not all alike")
        words, positions = self.embeddings(total)
        codes, scales = self.codes(words, 0)
        if not all(np.isfinite(part).all() for part in (scales, positions, norm.gamma, norm.beta)):
            raise NotBertError("its embeddings are not finite")
        return bert.BertWeights(
            heads=self.heads,
            epsilon=epsilons.pop(),
            words=codes,
            word_scales=scales,
            positions=positions,
            embedded=norm,
            layers=tuple(reversed(layers)),
        )

    def layer(self, fed: bert.Norm, total: str) -> tuple[str, bert.Layer, float]:
        """The layer whose last sum is `total`; its input, itself, and the epsilon of the norm within."""
        down, middle = self.residual(total)
        path = self.climb(down.source, ("Mul", "Div", "Add", "Erf", "Gelu"))
        up = self.only(path)
        operators = path.operators - set(MOVES)
        known = all(any(math.isclose(found, one, rel_tol=1e-3) for one in _GELU) for found in path.constants)
        if operators != {"Gelu"} and not (known and "Erf" in operators <= {"Mul", "Div", "Add", "Erf"}):
            raise NotBertError(f"its activation is made of {', '.join(sorted(path.operators))}")
        attended, epsilon, total = self.norm(middle)
        output, state = self.residual(total)
        query, key, value = self.attention(output.source)
        sources = {self.graph.origin(part.source) for part in (query, key, value)}
        if sources != {state} or self.graph.origin(up.source) != middle:
            raise NotBertError("its layers do not follow each other")
        found = bert.Layer(
            query=self.linear(query),
            key=self.linear(key),
            value=self.linear(value),
            output=self.linear(output),
            up=self.linear(up),
            down=self.linear(down),
            attended=attended,
            fed=fed,
        )
        return state, found, epsilon

    # --- parts of a layer ---------------------------------------------------------------------------

    def norm(self, name: str) -> tuple[bert.Norm, float, str]:
        """A layer normalisation, as one operator or spelled out: its weights, its epsilon, its input."""
        node = self.node(name)
        if node.operator == "LayerNormalization" and len(node.inputs) == 3:
            number = float(node.attributes.get("epsilon", 1e-5))  # type: ignore[arg-type]
            return bert.Norm(*map(self.vector, node.inputs[1:])), number, self.graph.origin(node.inputs[0])
        scaled, beta = self.with_constant(node, "Add")
        divided, gamma = self.with_constant(self.node(scaled), "Mul")
        division = self.node(divided)
        if division.operator != "Div":
            raise NotBertError(f"a {division.operator} stands where a normalisation should divide")
        centred, root = self.node(division.inputs[0]), self.node(division.inputs[1])
        if (centred.operator, root.operator) != ("Sub", "Sqrt"):
            raise NotBertError("a normalisation is spelled in an unknown way")
        _, epsilon = self.with_constant(self.node(root.inputs[0]), "Add")
        return bert.Norm(_flat(gamma), _flat(beta)), epsilon.item(), self.graph.origin(centred.inputs[0])

    def residual(self, total: str) -> tuple[_Projection, str]:
        """A sum of a projection and of what went around it."""
        node = self.node(total)
        sides = [(self.projection(name), self.graph.origin(other)) for name, other in _pairs(node)]
        found = [(side, other) for side, other in sides if side is not None]
        if node.operator != "Add" or len(found) != 1:
            raise NotBertError(f"a {node.operator} stands where a layer should add its input")
        return found[0]

    def attention(self, name: str) -> tuple[_Projection, _Projection, _Projection]:
        """The projections to queries, keys and values of what `name` is the result of."""
        node = self.node(name, *_SHAPES)
        if node.operator == "MultiHeadAttention" and not any(node.inputs[3:5]):
            query, key, value = (self.climb(part, _SHAPES) for part in node.inputs[:3])
            self.set_heads(int(node.attributes.get("num_heads", 0)), query)  # type: ignore[arg-type]
            factor = float(node.attributes.get("scale", 0.0)) or None  # type: ignore[arg-type]
        elif node.operator == "MatMul":
            softmax, values = self.node(node.inputs[0], "Where"), node.inputs[1]
            if softmax.operator != "Softmax":
                raise NotBertError(f"a {softmax.operator} stands where attention should have its softmax")
            product, factor = self.scores(softmax.inputs[0])
            query, key = (self.climb(part, (*_SHAPES, "Mul", "Div")) for part in product.inputs)
            value = self.climb(values, _SHAPES)
            dynamic = "Sqrt" in query.operators | key.operators  # computed from the size of a head
            factor = None if dynamic or factor is None else factor * query.factor * key.factor
            self.set_heads(0, query)
        else:
            raise NotBertError(f"its attention is a {node.operator}")
        width = self.width(self.only(query))
        if factor is not None and not math.isclose(factor, math.sqrt(self.heads / width), rel_tol=1e-3):
            raise NotBertError(f"its attention is scaled by {factor:g}")
        return self.only(query), self.only(key), self.only(value)

    def scores(self, name: str) -> tuple[Node, float | None]:
        """The product of queries and keys under masks that add nothing learned, and by what it is scaled."""
        factor: float | None = 1.0
        for _ in range(_MOST_MASKS):
            node = self.node(name)
            if node.operator == "MatMul":
                return node, factor
            if node.operator not in ("Add", "Where", "Mul", "Div"):
                raise NotBertError(f"a {node.operator} stands between scores and softmax")
            leads = [part for part in node.inputs if self.leads_to_product(part)]
            if len(leads) != 1:
                raise NotBertError("its attention scores are not one product")
            others = [part for part in node.inputs if part != leads[0]]
            if node.operator in ("Mul", "Div"):
                by = self.graph.constant(others[0])
                factor = None if by is None or factor is None else _scaled(factor, node, float(by.reshape(-1)[0]))
            elif any(self.learned(part) for part in others):
                raise NotBertError("its attention scores have a learned bias")
            name = leads[0]
        raise NotBertError("its attention scores have too many masks")

    def set_heads(self, heads: int, query: _Path) -> None:
        """Read the number of heads from the shape that queries are given, [batch, tokens, heads, size of one]."""
        if not heads:
            node = self.graph.nodes.get(query.shape)
            stored = self.graph.constant(query.shape)
            ends = [int(n) for n in stored.reshape(-1)] if stored is not None else []
            if node is not None and node.operator == "Concat":
                parts = [self.graph.constant(part) for part in node.inputs]
                ends = [0 if part is None else int(part.reshape(-1)[0]) for part in parts]
            if len(ends) == 4:
                heads = ends[2] if ends[2] > 0 else self.width(self.only(query)) // ends[3] if ends[3] > 0 else 0
        if heads < 1 or self.heads not in (0, heads):
            raise NotBertError("the number of its attention heads cannot be read")
        self.heads = heads

    def embeddings(self, total: str) -> tuple[str, NDArray[np.float32]]:
        """The name of the word table; the position table with the embedding of token type 0 added."""
        words, positions, types = [], [], []
        for table, index in islice(self.gathers(total), 4):  # a sum of sums may have more terms than can be counted
            above = self.graph.inputs_above(index)
            if self.graph.origin(index) == "input_ids":
                words.append(table)
            elif "input_ids" in above or not above <= {"token_type_ids"}:
                raise NotBertError("its positions depend on the tokens")
            elif above or (self.graph.shape(table) or (0,))[0] <= 4:
                types.append(self.table(table)[0])
            elif self.counts_up(index):
                positions.append(self.table(table))
            else:
                raise NotBertError("its positions do not count from zero")
        widths = {table.shape[-1] for table in (*positions, *types)}
        if (len(words), len(positions), len(widths)) != (1, 1, 1) or len(types) > 1:
            raise NotBertError(f"its embeddings are {len(words)} of words and {len(positions)} of positions")
        return words[0], np.ascontiguousarray(positions[0] + sum(types), np.float32)

    # --- walking ------------------------------------------------------------------------------------

    def node(self, name: str, *through: str) -> Node:
        """What computes `name`, behind what changes nothing and the operators `through` (Where: last input)."""
        while (node := self.graph.nodes.get(self.graph.origin(name))) is not None and node.operator in through:
            name = node.inputs[2 if node.operator == "Where" else 0]
        if node is None:
            raise NotBertError(f"{name} is not computed")
        return node

    def projection(self, name: str) -> _Projection | None:
        """The product with a stored matrix plus a stored vector that `name` is, if it is one."""
        node = self.graph.nodes.get(self.graph.origin(name))
        for product, bias in _pairs(node) if node is not None and node.operator == "Add" else ():
            inner = self.graph.nodes.get(self.graph.origin(product))
            if inner is None or inner.operator != "MatMul":
                continue
            shapes = self.graph.shape(inner.inputs[1]), self.graph.shape(bias)
            if [len(shape or ()) for shape in shapes] == [2, 1]:
                return _Projection(inner.inputs[0], inner.inputs[1], bias)
        return None

    def climb(self, name: str, through: tuple[str, ...]) -> _Path:
        """All projections above `name` behind certain operators, with the constants that those apply."""
        path, seen = _Path(), set()
        todo = [name]
        while todo:
            name = todo.pop()
            node = self.graph.nodes.get(name)
            if name in seen or node is None:
                continue
            seen.add(name)
            projection = self.projection(name)
            if projection is not None:
                path.found[self.graph.origin(name)] = projection
                continue
            exact = node.attributes.get("approximate", b"none") == b"none"
            path.operators.add(node.operator if exact else f"approximate {node.operator}")
            if node.operator not in (*through, *MOVES):
                continue
            for part in node.inputs[:1] if node.operator in (*_SHAPES, *MOVES) else node.inputs:
                shape = self.graph.shape(part)
                if shape is None:
                    todo.append(part)
                elif math.prod(shape) == 1 and (constant := self.graph.constant(part)) is not None:
                    by = float(constant.reshape(-1)[0])
                    path.constants.append(by)
                    path.factor = _scaled(path.factor, node, by)
            if node.operator == "Reshape" and self.projection(node.inputs[0]) is not None:
                path.shape = node.inputs[1]
        return path

    def only(self, path: _Path) -> _Projection:
        if len(path.found) != 1:
            raise NotBertError(f"{len(path.found)} projections stand where one should")
        return next(iter(path.found.values()))

    def leads_to_product(self, name: str) -> bool:
        """Whether a product of two computed tensors is behind a mask or a scale."""
        above = self.graph.above(name, {"Add", "Where", "Mul", "Div", *MOVES}.__contains__)
        products = [node for part in above if (node := self.graph.nodes.get(part)) and node.operator == "MatMul"]
        return any(all(self.graph.shape(part) is None for part in node.inputs) for node in products)

    def learned(self, name: str) -> bool:
        """Whether a stored tensor of more than one float goes into `name`."""
        return any(value.dtype.kind == "f" and value.size > 1 for value in self.graph.stored_above(name))

    def gathers(self, name: str) -> Iterator[tuple[str, str]]:
        """Tables and indices of the lookups that a sum adds up."""
        node = self.node(name)
        if node.operator == "Gather":
            yield node.inputs[0], node.inputs[1]
        elif node.operator == "Add":
            for part in node.inputs:
                yield from self.gathers(part)
        else:
            raise NotBertError(f"a {node.operator} goes into its embeddings")

    def counts_up(self, index: str) -> bool:
        """Whether an index is 0, 1, 2, ...: a stored sequence cut to length, or a range from 0."""
        node = self.graph.nodes.get(index)
        if node is None:
            stored = self.graph.constant(index)
            return stored is not None and np.array_equal(stored.reshape(-1), np.arange(stored.size))
        if node.operator == "Range":
            start, step = self.graph.constant(node.inputs[0]), self.graph.constant(node.inputs[2])
            return start is not None and step is not None and (int(start), int(step)) == (0, 1)
        starts = self.graph.constant(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get("starts")
        if node.operator == "Slice" and (starts is None or np.any(starts)):
            return False
        return node.operator in (*MOVES, *_SHAPES, "Slice", "Expand") and self.counts_up(node.inputs[0])

    def width(self, projection: _Projection) -> int:
        return (self.graph.shape(projection.weights) or (0, 0))[1]

    # --- tensors ------------------------------------------------------------------------------------

    def with_constant(self, node: Node, operator: str) -> tuple[str, Array]:
        """The computed and the stored input of a sum or product."""
        for computed, stored in _pairs(node) if node.operator == operator else ():
            value = self.graph.constant(stored)
            if value is not None:
                return computed, self.once(value)
        raise NotBertError(f"a {node.operator} stands where an {operator} of stored weights should")

    def vector(self, name: str) -> NDArray[np.float32]:
        value = self.graph.constant(name)
        if value is None:
            raise NotBertError(f"{name} is not stored")
        return _flat(self.once(value))

    def table(self, name: str) -> NDArray[np.float32]:
        value = self.graph.constant(name)
        if value is None or value.ndim != 2:
            raise NotBertError(f"{name} is no table of embeddings")
        return self.once(value).astype(np.float32, copy=False)

    def once(self, value: Array) -> Array:
        """The value; refused where more is taken than is stored, as a small file could fill any memory."""
        self.taken += value.size
        if self.taken > self.graph.size:
            raise NotBertError("it uses the same weights several times")
        return value

    def linear(self, projection: _Projection) -> bert.Linear:
        codes, scales = self.codes(projection.weights, 1)
        bias = self.vector(projection.bias)
        if not np.isfinite(scales).all() or not np.isfinite(bias).all():
            raise NotBertError(f"{projection.weights} is not finite")
        return bert.Linear(codes, scales, bias)

    def codes(self, name: str, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """8-bit codes of a matrix with a scale for each index along `axis`: those of the file where it has such."""
        node = self.graph.nodes.get(name)
        if node is not None and node.operator == "Mul":
            stored, scale = (self.graph.constant(self.graph.origin(part)) for part in node.inputs)
            if stored is not None and scale is not None and stored.dtype == np.int8 and stored.ndim == 2:
                wanted = tuple(size if at == axis else 1 for at, size in enumerate(stored.shape))
                if scale.shape == wanted and stored.min() > -128:
                    return np.ascontiguousarray(self.once(stored)), _flat(scale)
        return quantize(self.table(name), axis)


class _FloatReader(_Reader):
    def codes(self, name: str, axis: int) -> tuple[Array, NDArray[np.float32]]:
        weights = np.array(self.table(name))
        if not np.isfinite(weights).all():
            raise NotBertError(f"{name} is not finite")
        return weights, np.ones(weights.shape[axis], np.float32)


def _pairs(node: Node) -> tuple[tuple[str, str], ...]:
    """Both orders of the inputs of an operation of two."""
    return ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])) if len(node.inputs) == 2 else ()


def _scaled(factor: float, node: Node, by: float) -> float:
    return factor / by if node.operator == "Div" else factor * by if node.operator == "Mul" else factor


def _flat(value: Array) -> NDArray[np.float32]:
    return np.ascontiguousarray(value.reshape(-1), np.float32)
