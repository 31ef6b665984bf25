"""Makes small ONNX files for tests: just enough of onnx.proto3 to write a graph, and byte-level tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7, "bool": 9, "float16": 10}
VOCABULARY = 259  # 256 bytes and the special tokens below
SPECIAL = {"<|end|>": 256, "<|user|>": 257, "<|assistant|>": 258}


def varint(number: int) -> bytes:
    number %= 1 << 64
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*result, number])


def field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field: a number as varint, anything else length-delimited."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: NDArray[np.generic]) -> bytes:
    dims = b"".join(field(1, size) for size in array.shape)
    return dims + field(2, _TYPES[array.dtype.name]) + field(8, name) + field(9, array.tobytes())


def external_tensor(name: str, shape: Sequence[int], location: str) -> bytes:
    entry = field(13, field(1, "location") + field(2, location))
    return b"".join(field(1, size) for size in shape) + field(2, 1) + field(8, name) + entry + field(14, 1)


def node(operator: str, inputs: Sequence[str], *outputs: str, **attributes: int) -> bytes:
    parts = [*(field(1, name) for name in inputs), *(field(2, name) for name in outputs), field(4, operator)]
    parts += [field(5, field(1, name) + field(3, value) + field(20, 2)) for name, value in attributes.items()]
    return b"".join(parts)


def value(name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, _TYPES[dtype]) + field(2, dims)))


def model(
    nodes: Sequence[bytes],
    tensors: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    *,
    opset: int = 17,
) -> bytes:
    graph = [field(1, part) for part in nodes] + [field(2, "g")] + [field(5, part) for part in tensors]
    graph += [field(11, part) for part in inputs] + [field(12, part) for part in outputs]
    return field(1, 8) + field(2, "edge tests") + field(7, b"".join(graph)) + field(8, field(2, opset))


# --- models -----------------------------------------------------------------------------------------


def write_encoder(
    directory: Path, table: NDArray[np.float32], *, quantized: bool = False, types: bool = True
) -> NDArray[np.float32]:
    """An encoder whose token states are the rows of `table` [259, dimension]; returns the table."""
    gathered = "states" if quantized else "last_hidden_state"
    nodes = [node("Gather", ["table", "input_ids"], gathered)]
    if quantized:
        nodes += [
            node("DynamicQuantizeLinear", ["states"], "q", "scale", "zero"),
            node("DequantizeLinear", ["q", "scale", "zero"], "last_hidden_state"),
        ]
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    inputs = [value(name, "int64", ["batch", "tokens"]) for name in names]
    output = value("last_hidden_state", "float32", ["batch", "tokens", table.shape[1]])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(model(nodes, [tensor("table", table)], inputs, [output]))
    write_tokenizer(directory)
    return table


def decoder_tensors(seed: int = 0, width: int = 8, context: int = 256) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    shapes = {"table": (VOCABULARY, width), "places": (context, width), "head": (width, VOCABULARY)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_decoder(
    directory: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    quantized: bool = False,
    template: str | None = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>",
) -> None:
    """A decoder with a KV cache: logits = sin(sum of the embeddings so far + position) @ head.

    The attention mask scales the sum, so a mask of the wrong length fails. `quantized` rounds the sine by its
    largest value in the run.
    """
    width = tensors["table"].shape[1]
    constants = {
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "axis": np.array(2, np.int64),
        "one_three": np.array([1, 3], np.int64),
        "far": np.array([2**31 - 1], np.int64),
    }
    nodes = [
        node("Gather", ["table", "input_ids"], "embedded"),
        node("Unsqueeze", ["embedded", "one"], "key"),
        node("Concat", ["past_key_values.0.key", "key"], "present.0.key", axis=2),
        node("Neg", ["key"], "minus"),
        node("Concat", ["past_key_values.0.value", "minus"], "present.0.value", axis=2),
        node("Cast", ["attention_mask"], "weights", to=1),
        node("Unsqueeze", ["weights", "one_three"], "column"),
        node("Neg", ["present.0.value"], "plus"),
        node("Mul", ["plus", "column"], "weighed"),
        node("CumSum", ["weighed", "axis"], "sums"),
        node("Shape", ["input_ids"], "shape"),
        node("Gather", ["shape", "one"], "length"),
        node("Neg", ["length"], "start"),
        node("Slice", ["sums", "start", "far", "two"], "newest"),
        node("Squeeze", ["newest", "one"], "summed"),
        node("Gather", ["places", "position_ids"], "placed"),
        node("Add", ["summed", "placed"], "hidden"),
        node("Sin", ["hidden"], "bounded"),
        node("DynamicQuantizeLinear", ["bounded"], "q", "scale", "zero"),
        node("DequantizeLinear", ["q", "scale", "zero"], "rounded"),
        node("MatMul", ["rounded" if quantized else "bounded", "head"], "logits"),
    ]
    if not quantized:
        nodes = [part for part in nodes if b"QuantizeLinear" not in part and b"DequantizeLinear" not in part]
    past = ["batch", 1, "past", width]
    inputs = [
        value("input_ids", "int64", ["batch", "tokens"]),
        value("attention_mask", "int64", ["batch", "total"]),
        value("position_ids", "int64", ["batch", "tokens"]),
        *(value(f"past_key_values.0.{kind}", "float32", past) for kind in ("key", "value")),
    ]
    outputs = [
        value("logits", "float32", ["batch", "tokens", VOCABULARY]),
        *(value(f"present.0.{kind}", "float32", ["batch", 1, "total", width]) for kind in ("key", "value")),
    ]
    arrays = [tensor(name, array) for name, array in tensors.items()]
    arrays += [tensor(name, array) for name, array in constants.items()]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(model(nodes, arrays, inputs, outputs))
    write_tokenizer(directory, template=template)
    config = {"max_position_embeddings": int(tensors["places"].shape[0]), "eos_token_id": SPECIAL["<|end|>"]}
    (directory / "config.json").write_text(json.dumps(config))


def write_tokenizer(directory: Path, *, template: str | None = None) -> None:
    """One token a byte, and the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
    native = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    native.decoder = decoders.ByteLevel()
    native.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    native.save(str(directory / "tokenizer.json"))
    if template is not None:
        settings = {"chat_template": template, "eos_token": "<|end|>", "add_bos_token": False}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _byte_of(letter: str) -> int:
    """The byte that GPT-2's alphabet writes as this letter."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return ord(letter) if ord(letter) in plain else rest[ord(letter) - 256]
