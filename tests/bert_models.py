"""Makes small BERT encoders for tests: random weights, and ONNX files of them in three spellings of exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx_files import field, model, node, tensor, value, varint, write_tokenizer

from edge_sdk.encoders.bert_graph import quantize
from edge_sdk.kernel_faces import bert

Spelling = Literal["fused", "plain", "int8"]


def random_weights(
    *, hidden: int, heads: int, inner: int, layers: int, words: int, positions: int, seed: int = 0
) -> bert.BertWeights:
    random = np.random.default_rng(seed)

    def floats(*shape: int, scale: float = 1.0, around: float = 0.0) -> NDArray[np.float32]:
        return (random.normal(size=shape) * scale + around).astype(np.float32)

    def linear(inputs: int, outputs: int) -> bert.Linear:
        return bert.Linear(*quantize(floats(inputs, outputs, scale=inputs**-0.5), 1), floats(outputs, scale=0.1))

    def norm() -> bert.Norm:
        return bert.Norm(floats(hidden, scale=0.1, around=1.0), floats(hidden, scale=0.1))

    def layer() -> bert.Layer:
        square = [linear(hidden, hidden) for _ in range(4)]
        return bert.Layer(*square, linear(hidden, inner), linear(inner, hidden), norm(), norm())

    codes, scales = quantize(floats(words, hidden), 0)
    every = tuple(layer() for _ in range(layers))
    return bert.BertWeights(heads, 1e-12, codes, scales, floats(positions, hidden, scale=0.3), norm(), every)


def write_bert(directory: Path, weights: bert.BertWeights, spelling: Spelling) -> None:
    """The encoder as ONNX with a byte-level tokenizer: `fused` operators, `plain` ones, or `int8` weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(BertWriter(weights, spelling).file())
    write_tokenizer(directory)


class BertWriter:
    def __init__(self, weights: bert.BertWeights, spelling: Spelling) -> None:
        self.weights, self.spelling = weights, spelling
        self.nodes: list[bytes] = []
        self.tensors: list[bytes] = []
        self.count = 0

    def file(self) -> bytes:
        weights, hidden = self.weights, self.weights.words.shape[1]
        self.store("one", np.array([1], np.int64))
        self.store("two", np.array([1, 2], np.int64))
        self.store("zero", np.array([0], np.int64))
        self.store("half", np.array(0.5, np.float32))
        self.store("unit", np.array(1.0, np.float32))
        self.store("root", np.array(2**0.5, np.float32))
        self.store("epsilon", np.array([weights.epsilon], np.float32))
        self.store("scale", np.array((hidden / weights.heads) ** -0.25, np.float32))
        self.store("places", np.arange(len(weights.positions), dtype=np.int64)[None])
        size = hidden // weights.heads
        self.store("split", np.array([0, 0, weights.heads, size], np.int64))
        self.store("join", np.array([0, 0, hidden], np.int64))
        length = self.add("Slice", self.add("Shape", "input_ids"), "one", self.stored(np.array([2], np.int64)))
        places = self.add("Slice", "places", "zero", length, "one")
        words = self.table(weights.words, weights.word_scales)
        types = self.stored(
            np.stack([weights.positions[0], weights.positions[0]])
        )  # part of the position, for type 0
        rest = self.stored(weights.positions - weights.positions[0])
        x = self.add("Add", self.add("Gather", words, "input_ids"), self.add("Gather", types, "token_type_ids"))
        x = self.norm(self.add("Add", x, self.add("Gather", rest, places)), weights.embedded)
        mask = self.add("Unsqueeze", self.add("Cast", "attention_mask", to=1), "two")
        mask = self.add("Mul", self.add("Sub", "unit", mask), self.stored(np.array(-1e30, np.float32)))
        for layer in weights.layers:
            x = self.layer(x, mask, layer)
        self.nodes.append(node("Identity", [x], "last_hidden_state"))
        inputs = [
            value(name, "int64", ["batch", "tokens"]) for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        output = value("last_hidden_state", "float32", ["batch", "tokens", hidden])
        opset = (
            20 if self.spelling == "fused" else 17
        )  # the first with Gelu; the last whose ReduceMean has attributes
        return model(self.nodes, self.tensors, inputs, [output], opset=opset)

    def layer(self, x: str, mask: str, layer: bert.Layer) -> str:
        query, key, content = (
            self.add("Transpose", self.add("Reshape", self.linear(x, part), "split"), perm=order)
            for part, order in ((layer.query, (0, 2, 1, 3)), (layer.key, (0, 2, 3, 1)), (layer.value, (0, 2, 1, 3)))
        )
        scores = self.add("MatMul", self.add("Mul", query, "scale"), self.add("Mul", key, "scale"))
        shares = self.add("Softmax", self.add("Add", scores, mask), axis=3)
        mixed = self.add("Transpose", self.add("MatMul", shares, content), perm=(0, 2, 1, 3))
        out = self.linear(self.add("Reshape", mixed, "join"), layer.output)
        x = self.norm(self.add("Add", out, x), layer.attended)
        inner = self.gelu(self.linear(x, layer.up))
        return self.norm(self.add("Add", x, self.linear(inner, layer.down)), layer.fed)

    def gelu(self, x: str) -> str:
        if self.spelling == "fused":
            return self.add("Gelu", x)
        phi = self.add("Mul", "half", self.add("Add", self.add("Erf", self.add("Div", x, "root")), "unit"))
        return self.add("Mul", x, phi)

    def norm(self, x: str, by: bert.Norm) -> str:
        gamma, beta = self.stored(by.gamma), self.stored(by.beta)
        if self.spelling != "plain":
            return self.add("LayerNormalization", x, gamma, beta, axis=2, epsilon=self.weights.epsilon)
        centred = self.add("Sub", x, self.add("ReduceMean", x, axes=(2,)))
        square = self.add("ReduceMean", self.add("Mul", centred, centred), axes=(2,))
        divided = self.add("Div", centred, self.add("Sqrt", self.add("Add", square, "epsilon")))
        return self.add("Add", self.add("Mul", divided, gamma), beta)

    def linear(self, x: str, by: bert.Linear) -> str:
        product = self.add("MatMul", x, self.table(by.codes, by.scales[None]))
        return self.add("Add", self.stored(by.bias), product)

    def table(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> str:
        rows = scales[:, None] if scales.ndim == 1 else scales
        if self.spelling == "int8":
            return self.add("Mul", self.add("Cast", self.stored(codes), to=1), self.stored(rows))
        return self.stored(codes.astype(np.float32) * rows)

    def add(self, operator: str, *inputs: str, **attributes: int | float | tuple[int, ...]) -> str:
        self.count += 1
        whole = {key: number for key, number in attributes.items() if isinstance(number, int)}
        made = node(operator, inputs, f"n{self.count}", **whole)
        for key, number in attributes.items():
            if isinstance(number, float):
                made += field(5, field(1, key) + varint(2 << 3 | 5) + np.float32(number).tobytes() + field(20, 1))
            elif isinstance(number, tuple):
                made += field(5, field(1, key) + b"".join(field(8, one) for one in number) + field(20, 7))
        self.nodes.append(made)
        return f"n{self.count}"

    def stored(self, array: NDArray[np.generic]) -> str:
        self.count += 1
        return self.store(f"t{self.count}", array)

    def store(self, name: str, array: NDArray[np.generic]) -> str:
        self.tensors.append(tensor(name, np.ascontiguousarray(array)))
        return name
