"""Small GGUF files made for tests: a writer, and a one-layer Llama with random weights that llama.cpp really loads.

Written from the format's specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), not with the
code under test. A name that a test may change is an argument; everything else is fixed by the seed.
"""

from __future__ import annotations

import math
import random
import struct
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMAT = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
    " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Field(NamedTuple):
    """A metadata value; for an array `kind` is the type of its elements and `value` a sequence."""

    kind: int
    value: object


class Weights(NamedTuple):
    """A tensor: dimensions in GGUF order (fastest first), ggml type, and its bytes."""

    shape: tuple[int, ...]
    kind: int
    data: bytes


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: object) -> bytes:
    return string(value) if kind == STRING else struct.pack("<" + _FORMAT[kind], value)  # type: ignore[arg-type]


def field_bytes(field: Field) -> bytes:
    if isinstance(field.value, (list, tuple)):
        body = b"".join(scalar(field.kind, item) for item in field.value)
        return struct.pack("<IIQ", ARRAY, field.kind, len(field.value)) + body
    return struct.pack("<I", field.kind) + scalar(field.kind, field.value)


def gguf_bytes(
    metadata: Mapping[str, Field] | Sequence[tuple[str, Field]],
    tensors: Mapping[str, Weights] | Sequence[tuple[str, Weights]] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """The file's bytes. Sequences of pairs instead of mappings allow duplicate names."""
    fields = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    weights = list(tensors.items()) if isinstance(tensors, Mapping) else list(tensors)
    header = [b"GGUF", struct.pack("<IQQ", version, len(weights), len(fields))]
    header += [string(key) + field_bytes(field) for key, field in fields]
    data = b""
    for name, (shape, kind, content) in weights:
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header.append(string(name) + dimensions + struct.pack("<IQ", kind, len(data)))
        data += content + bytes(-len(content) % alignment)
    head = b"".join(header)
    return head + bytes(-len(head) % alignment) * bool(weights) + data


def byte_alphabet() -> list[str]:
    """The 256 characters by which GPT-2's byte-level BPE writes the bytes 0 to 255, in byte order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


WORDS = ("th", "the", "Ġthe", "in", "er", "an", "Ġa", "and")
MERGES = ("t h", "th e", "Ġ the", "i n", "e r", "a n", "Ġ a", "an d")
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_llama(
    path: Path,
    *,
    seed: int = 1,
    context: int = 512,
    template: str | None = CHATML,
    extra: Mapping[str, Field] | None = None,
    drop: Sequence[str] = (),
    embed: int = 32,
    feed: int = 64,
    experts: int = 0,
    layers: int = 1,
) -> Path:
    """Write a Llama with layers of 32 dimensions over the 256 bytes, eight words and three control tokens.

    With `experts`, two of them are used for each token.
    """
    heads = 2
    tokens = [*CONTROL, *byte_alphabet(), *WORDS]
    metadata = {
        "general.architecture": Field(STRING, "llama"),
        "general.name": Field(STRING, "tiny"),
        "llama.block_count": Field(U32, layers),
        "llama.context_length": Field(U32, context),
        "llama.embedding_length": Field(U32, embed),
        "llama.feed_forward_length": Field(U32, feed),
        "llama.attention.head_count": Field(U32, heads),
        "llama.attention.head_count_kv": Field(U32, heads),
        "llama.attention.layer_norm_rms_epsilon": Field(F32, 1e-5),
        "llama.rope.dimension_count": Field(U32, embed // heads),
        "tokenizer.ggml.model": Field(STRING, "gpt2"),
        "tokenizer.ggml.pre": Field(STRING, "gpt-2"),
        "tokenizer.ggml.tokens": Field(STRING, tokens),
        "tokenizer.ggml.token_type": Field(I32, [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL))),
        "tokenizer.ggml.merges": Field(STRING, list(MERGES)),
        "tokenizer.ggml.bos_token_id": Field(U32, 0),
        "tokenizer.ggml.eos_token_id": Field(U32, 2),
        "tokenizer.ggml.add_bos_token": Field(BOOL, 0),
    }
    if experts:
        metadata["llama.expert_count"], metadata["llama.expert_used_count"] = Field(U32, experts), Field(U32, 2)
    if template is not None:
        metadata["tokenizer.chat_template"] = Field(STRING, template)
    metadata.update(extra or {})
    for key in drop:
        del metadata[key]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (embed, len(tokens)), "output_norm.weight": (embed,)}
    suffix, stack = ("_exps", (experts,)) if experts else ("", ())
    for layer in range(layers):
        if experts:
            shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (embed, experts)
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (embed,),
            f"blk.{layer}.attn_q.weight": (embed, embed),
            f"blk.{layer}.attn_k.weight": (embed, embed),
            f"blk.{layer}.attn_v.weight": (embed, embed),
            f"blk.{layer}.attn_output.weight": (embed, embed),
            f"blk.{layer}.ffn_norm.weight": (embed,),
            f"blk.{layer}.ffn_gate{suffix}.weight": (embed, feed, *stack),
            f"blk.{layer}.ffn_up{suffix}.weight": (embed, feed, *stack),
            f"blk.{layer}.ffn_down{suffix}.weight": (feed, embed, *stack),
        }
    pick = random.Random(seed)
    tensors = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        norm = "norm" in name
        values = array("f", (1.0 if norm else pick.gauss(0, 0.3) for _ in range(size)))
        tensors[name] = Weights(shape, 0, values.tobytes())
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path
