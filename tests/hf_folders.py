"""Small Hugging Face folders made for tests, a forward pass in plain numpy, and llama.cpp's logits to compare.

Written from the formats' specifications and from transformers' conventions, not with the code under test.
"""

from __future__ import annotations

import ctypes
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf_files import CHATML, CONTROL, MERGES, WORDS, byte_alphabet
from numpy.typing import NDArray

from edge_sdk.engines.llama_library import library

Floats = NDArray[np.float32]

QWEN2_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
SMOLLM = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
QWEN2 = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ],
}
VOCABULARY = 288  # of the configuration: more than there are tokens, as in Qwen's files


def tokenizer(pre: Mapping[str, Any] = SMOLLM) -> dict[str, Any]:
    """A byte-level BPE of three control tokens, the 256 bytes and eight words."""
    tokens = [*CONTROL, *byte_alphabet(), *WORDS]
    added = [
        {"id": at, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": True}
        for at, token in enumerate(CONTROL)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": dict(pre),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: at for at, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def config(architecture: str = "LlamaForCausalLM", **changes: Any) -> dict[str, Any]:
    """A model of two layers; the heads share their keys two by two."""
    return {
        "architectures": [architecture],
        "model_type": "llama" if architecture.startswith("Llama") else "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
    } | changes


def weights(config: Mapping[str, Any], seed: int = 1) -> dict[str, Floats]:
    """Random weights under transformers' names."""
    pick = np.random.default_rng(seed)
    hidden, feed, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    width, keys = heads * head, config["num_key_value_heads"] * head
    qwen2 = config["model_type"] == "qwen2"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        parts = {"q": (width, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, width)}
        for part, shape in parts.items():
            shapes[f"{block}self_attn.{part}_proj.weight"] = shape
            if (qwen2 and part != "o") or config.get("attention_bias"):
                shapes[f"{block}self_attn.{part}_proj.bias"] = shape[:1]
        for part, shape in {"gate": (feed, hidden), "up": (feed, hidden), "down": (hidden, feed)}.items():
            shapes[f"{block}mlp.{part}_proj.weight"] = shape
        shapes[f"{block}input_layernorm.weight"] = shapes[f"{block}post_attention_layernorm.weight"] = (hidden,)
    return {
        name: np.asarray(pick.normal(float("norm" in name), 0.2 if "norm" in name else 0.15, shape), np.float32)
        for name, shape in shapes.items()
    }


def safetensors_bytes(tensors: Mapping[str, NDArray[Any]], types: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of these arrays, as the specification says."""
    names = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16", "int64": "I64"}
    header, data = {}, b""
    for name, values in tensors.items():
        kind = (types or {}).get(name, names[values.dtype.name])
        content = values.tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path: Path) -> dict[str, Floats]:
    """The tensors of a file of float32."""
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = np.asarray(data[start:end]).view(np.float32).reshape(entry["shape"])
    return found


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    *,
    tokenizer_json: Mapping[str, Any] | None = None,
    words: Mapping[str, Any] | None = None,
) -> Path:
    """A folder as `save_pretrained` leaves it."""
    folder.mkdir(parents=True)
    said = {"bos_token": CONTROL[0], "eos_token": CONTROL[2], "chat_template": CHATML} if words is None else words
    files = {"config.json": config, "tokenizer.json": tokenizer_json or tokenizer(), "tokenizer_config.json": said}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


def frequencies(config: Mapping[str, Any]) -> Floats:
    """The rotary frequencies [head / 2], with the scalings `linear` and `llama3`."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    plain = 1.0 / config["rope_theta"] ** (np.arange(0, head, 2) / head)
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":
        plain = plain / scaling["factor"]
    if scaling["rope_type"] == "llama3":
        factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
        original, scaled = scaling["original_max_position_embeddings"], []
        for frequency in plain:
            wavelength = 2 * math.pi / frequency
            smooth = (original / wavelength - low) / (high - low)
            if wavelength < original / high:
                scaled.append(frequency)
            elif wavelength > original / low:
                scaled.append(frequency / factor)
            else:
                scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
        plain = np.array(scaled)
    return np.asarray(plain, np.float32)


def forward(config: Mapping[str, Any], tensors: Mapping[str, Floats], tokens: Sequence[int]) -> Floats:
    """Logits [tokens, vocabulary] as transformers' Llama and Qwen2 compute them: halves of a head are rotated."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    angles = np.outer(np.arange(len(tokens)), frequencies(config))
    cosine, sine = (np.concatenate([each, each], 1)[:, None] for each in (np.cos(angles), np.sin(angles)))

    def norm(x: Floats, name: str) -> Floats:
        return x / np.sqrt((x * x).mean(1, keepdims=True) + config["rms_norm_eps"]) * tensors[name]

    def linear(x: Floats, name: str) -> Floats:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", np.float32(0))

    def rotate(x: Floats) -> Floats:
        turned = np.concatenate([-x[..., head // 2 :], x[..., : head // 2]], -1)
        return x * cosine + turned * sine

    x = tensors["model.embed_tokens.weight"][list(tokens)]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        inside = norm(x, f"{block}input_layernorm.weight")
        query, key, value = (
            linear(inside, f"{block}self_attn.{part}_proj").reshape(len(tokens), -1, head) for part in "qkv"
        )
        query, key = rotate(query), np.repeat(rotate(key), heads // groups, 1)
        scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(head)
        scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", chances, np.repeat(value, heads // groups, 1))
        x = x + linear(mixed.reshape(len(tokens), -1), f"{block}self_attn.o_proj")
        inside = norm(x, f"{block}post_attention_layernorm.weight")
        gate = linear(inside, f"{block}mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(inside, f"{block}mlp.up_proj"), f"{block}mlp.down_proj")
    output = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return np.asarray(norm(x, "model.norm.weight") @ output.T)


def native_logits(path: Path, tokens: Sequence[int]) -> Floats:
    """llama.cpp's logits [tokens, vocabulary], with keys and values in full precision so that they compare well."""
    lib = library()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    assert model, path
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 256, 1, 1
    settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
    settings.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED: it rounds queries to half precision
    context = lib.llama_init_from_model(model, settings)
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = []
    try:
        for token in tokens:
            single = (ctypes.c_int32 * 1)(token)
            assert lib.llama_decode(context, lib.llama_batch(n_tokens=1, token=single)) == 0
            rows.append(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (size,)).copy())
    finally:
        lib.llama_free(context)
        lib.llama_model_free(model)
    return np.array(rows)
