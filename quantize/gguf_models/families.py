"""What a decoder is made of, said in Hugging Face's words and in GGUF's: figures, tensor names, the order of rows.

One `Decoder` stands between the two, so that both directions are read from the same tables. Knows no files.
The families are those of llama.cpp's `llama` and `qwen2`; another is an error that lists them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError, ModelDamagedError

from .gguf_format import F32, STRING, U32, Field

# transformers' class to llama.cpp's name; only of `llama` are query and key rows turned around.
FAMILIES: Final = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
_CLASSES: Final = {family: name for name, family in FAMILIES.items()}
ROPE_FACTORS = "rope_freqs.weight"
_BLOCK: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary positions are stretched; `low` and `high` belong to `llama3` alone."""

    kind: str
    factor: float
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor under both names. `shape` is Hugging Face's, slowest dimension first; `heads` where rows turn."""

    huggingface: str
    gguf: str
    shape: tuple[int, ...]
    heads: int = 0

    def order(self, *, back: bool = False) -> NDArray[np.intp] | None:
        """Which row of the source comes where, for rotary positions in pairs instead of halves, or `back`."""
        return rope_order(self.heads, self.shape[0], back=back) if self.heads else None


@dataclass(frozen=True, slots=True)
class Decoder:
    """The figures of a decoder. `biased` names what has biases, of `qkv`, `o` and `mlp`."""

    family: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    context: int
    rope_base: float
    epsilon: float
    tied: bool
    biased: frozenset[str] = frozenset()
    rope: RopeScaling | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Decoder:
        """From `config.json`. Raises `ConfigError` for what is not supported, `ModelDamagedError` for nonsense."""
        names = config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        if not isinstance(name, str) or name not in FAMILIES:
            hint = f"only {', '.join(FAMILIES)}"
            raise ConfigError(f"models of the architecture {name!r} are not supported", hint=hint)
        family = FAMILIES[name]
        for key, fine in (("hidden_act", "silu"), ("use_sliding_window", False), ("partial_rotary_factor", 1)):
            if config.get(key) is not None and config[key] != fine:
                raise ConfigError(f"{name} with {key} = {config[key]!r} is not supported")
        heads, hidden = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            _nonsense("rope_scaling", scaling)
        base = scaling.get("rope_theta") or config.get("rope_theta") or 10_000.0
        biased = {"qkv"} if family == "qwen2" else {"qkv", "o"} if config.get("attention_bias") else set()
        found = cls(
            family=family,
            vocabulary=_whole(config, "vocab_size"),
            hidden=hidden,
            layers=_whole(config, "num_hidden_layers", most=512),
            heads=heads,
            kv_heads=_whole(config, "num_key_value_heads", otherwise=heads),
            head_size=_whole(config, "head_dim", otherwise=hidden // heads),
            feed_forward=_whole(config, "intermediate_size"),
            context=_whole(config, "max_position_embeddings"),
            rope_base=_number({"rope_theta": base}, "rope_theta"),
            epsilon=_number(config, "rms_norm_eps"),
            tied=config.get("tie_word_embeddings") is True,
            biased=frozenset(biased | ({"mlp"} if config.get("mlp_bias") else set())),
            rope=_scaling(scaling),
        )
        if found.heads % found.kv_heads or found.head_size % 2:
            raise ModelDamagedError(
                f"config.json: {heads} heads, {found.kv_heads} of keys and values, of {found.head_size} dimensions"
            )
        return found

    @classmethod
    def from_fields(cls, fields: Mapping[str, Field], tensors: Mapping[str, tuple[int, ...]], name: str) -> Decoder:
        """From a GGUF file's metadata and the shapes of its tensors, fastest dimension first."""
        family = fields["general.architecture"].value
        if family not in _CLASSES:
            hint = f"only {', '.join(_CLASSES)} are supported"
            raise ConfigError(f"{name} is of the architecture {family!r}", hint=hint)
        values = {key.removeprefix(f"{family}."): field.value for key, field in fields.items()}
        heads, hidden = _whole(values, "attention.head_count"), _whole(values, "embedding_length")
        embedding = tensors.get("token_embd.weight", ())
        if len(embedding) != 2:
            raise ModelDamagedError(f"{name} has no token embeddings", hint="fetch the model again")
        kind = values.get("rope.scaling.type", "none")
        if kind not in ("none", "linear", "yarn"):
            raise ConfigError(f"{name} scales rotary positions by {kind!r}", hint="only linear and yarn are known")
        biases = {"qkv": "attn_q", "o": "attn_output", "mlp": "ffn_up"}
        return cls(
            family=family,
            vocabulary=embedding[1],
            hidden=hidden,
            layers=_whole(values, "block_count"),
            heads=heads,
            kv_heads=_whole(values, "attention.head_count_kv", otherwise=heads),
            head_size=_whole(values, "attention.key_length", otherwise=hidden // heads),
            feed_forward=_whole(values, "feed_forward_length"),
            context=_whole(values, "context_length"),
            rope_base=_number({"rope_theta": values.get("rope.freq_base", 10_000.0)}, "rope_theta"),
            epsilon=_number(values, "attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in tensors,
            biased=frozenset(what for what, part in biases.items() if f"blk.0.{part}.bias" in tensors),
            rope=None
            if kind == "none"
            else RopeScaling(
                kind,
                _number(values, "rope.scaling.factor"),
                _whole(values, "rope.scaling.original_context_length", otherwise=_whole(values, "context_length")),
            ),
        )

    def tensors(self) -> Iterator[NamedTensor]:
        """Every tensor that the model has, but for the rotary factors."""
        width, hidden, feed = self.heads * self.head_size, self.hidden, self.feed_forward
        keys = self.kv_heads * self.head_size
        shapes = {
            "attn_q": (width, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden),
            "attn_output": (hidden, width), "ffn_gate": (feed, hidden), "ffn_up": (feed, hidden),
            "ffn_down": (hidden, feed), "attn_norm": (hidden,), "ffn_norm": (hidden,),
        }  # fmt: skip
        turned = {"attn_q": self.heads, "attn_k": self.kv_heads} if self.family == "llama" else {}
        owner = {"attn_q": "qkv", "attn_k": "qkv", "attn_v": "qkv", "attn_output": "o"}
        yield NamedTensor("model.embed_tokens.weight", "token_embd.weight", (self.vocabulary, hidden))
        for layer in range(self.layers):
            for theirs, ours in _BLOCK.items():
                names, heads = (f"model.layers.{layer}.{theirs}", f"blk.{layer}.{ours}"), turned.get(ours, 0)
                yield NamedTensor(f"{names[0]}.weight", f"{names[1]}.weight", shapes[ours], heads)
                if len(shapes[ours]) == 2 and owner.get(ours, "mlp") in self.biased:
                    yield NamedTensor(f"{names[0]}.bias", f"{names[1]}.bias", shapes[ours][:1], heads)
        yield NamedTensor("model.norm.weight", "output_norm.weight", (hidden,))
        if not self.tied:
            yield NamedTensor("lm_head.weight", "output.weight", (self.vocabulary, hidden))

    def fields(self) -> dict[str, Field]:
        """The metadata that llama.cpp's converter writes for the same model."""
        found = {
            "block_count": Field(U32, self.layers),
            "context_length": Field(U32, self.context),
            "embedding_length": Field(U32, self.hidden),
            "feed_forward_length": Field(U32, self.feed_forward),
            "attention.head_count": Field(U32, self.heads),
            "attention.head_count_kv": Field(U32, self.kv_heads),
            "rope.freq_base": Field(F32, self.rope_base),
            "attention.layer_norm_rms_epsilon": Field(F32, self.epsilon),
            "vocab_size": Field(U32, self.vocabulary),
            "rope.dimension_count": Field(U32, self.head_size),
        }
        if self.head_size * self.heads != self.hidden:
            found |= {f"attention.{part}_length": Field(U32, self.head_size) for part in ("key", "value")}
        if self.rope and self.rope.kind != "llama3":
            found["rope.scaling.type"] = Field(STRING, self.rope.kind)
            found["rope.scaling.factor"] = Field(F32, self.rope.factor)
            if self.rope.original_context:
                found["rope.scaling.original_context_length"] = Field(U32, self.rope.original_context)
        return {f"{self.family}.{key}": field for key, field in found.items()}

    def config(self) -> dict[str, object]:
        """The `config.json`, without token ids."""
        scaling: dict[str, object] | None = None
        if rope := self.rope:
            scaling = {"rope_type": rope.kind, "factor": rope.factor}
            scaling |= {"original_max_position_embeddings": rope.original_context} if rope.original_context else {}
            scaling |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high} if self._bands else {}
        biases = {"attention_bias": "o" in self.biased, "mlp_bias": "mlp" in self.biased}
        return {
            "architectures": [_CLASSES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            **({"head_dim": self.head_size} if self.head_size * self.heads != self.hidden else {}),
            "intermediate_size": self.feed_forward,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_base,
            "rope_scaling": scaling,
            "rms_norm_eps": self.epsilon,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            **(biases if self.family == "llama" else {}),
        }

    @property
    def _bands(self) -> bool:
        return self.rope is not None and self.rope.kind == "llama3"

    def rope_factors(self) -> NDArray[np.float32] | None:
        """What llama.cpp divides each rotary frequency by, for the scaling of Llama 3; None for all others."""
        if self.rope is None or not self._bands:
            return None
        rope = self.rope
        wavelengths = 2 * math.pi * self.rope_base ** (np.arange(0, self.head_size, 2) / self.head_size)
        smooth = np.clip((rope.original_context / wavelengths - rope.low) / (rope.high - rope.low), 0, 1)
        return np.asarray(1 / ((1 - smooth) / rope.factor + smooth), np.float32)

    def with_rope_factors(self, factors: NDArray[np.float32]) -> Decoder:
        """The decoder with the scaling that gives these factors, if it is one that Llama 3 models have."""
        for original in (8_192, 4_096, 16_384, 32_768):
            found = replace(self, rope=RopeScaling("llama3", float(factors.max()), original))
            made = found.rope_factors()
            if made is not None and made.shape == factors.shape and np.allclose(made, factors, rtol=1e-4):
                return found
        raise ConfigError("the factors of the rotary frequencies are not those of a Llama 3 scaling")


def rope_order(heads: int, rows: int, *, back: bool = False) -> NDArray[np.intp]:
    """The order that brings each head's rows from halves, (i, i + d/2), to pairs, (2i, 2i + 1), or back.

    >>> rope_order(1, 6).tolist(), rope_order(1, 6, back=True).tolist()
    ([0, 3, 1, 4, 2, 5], [0, 2, 4, 1, 3, 5])
    """
    shape = (heads, rows // heads // 2, 2) if back else (heads, 2, rows // heads // 2)
    return np.arange(rows).reshape(shape).swapaxes(1, 2).reshape(-1)


def _scaling(values: Mapping[str, Any]) -> RopeScaling | None:
    kind = values.get("rope_type", values.get("type", "default"))
    if kind in (None, "default"):
        return None
    values = {key: value for key, value in values.items() if value is not None}
    known = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"}
    known |= {"low_freq_factor", "high_freq_factor"} if kind == "llama3" else set()
    if kind not in ("linear", "yarn", "llama3") or (more := [key for key in values if key not in known]):
        what = repr(kind) if kind not in ("linear", "yarn", "llama3") else f"{kind!r} with {more[0]}"
        raise ConfigError(f"rotary positions scaled by {what} are not supported", hint="linear, yarn, llama3 are")
    original = "original_max_position_embeddings"
    if kind != "llama3":
        return RopeScaling(kind, _number(values, "factor"), 0 if kind == "linear" else _whole(values, original))
    low, high = _number(values, "low_freq_factor"), _number(values, "high_freq_factor")
    if low >= high:
        _nonsense("high_freq_factor", high)
    return RopeScaling(kind, _number(values, "factor"), _whole(values, original), low, high)


def _whole(values: Mapping[str, Any], key: str, *, otherwise: int | None = None, most: int = 1 << 27) -> int:
    value = otherwise if values.get(key) is None else values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        _nonsense(key, value)
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        _nonsense(key, value)
    return float(value)


def _nonsense(key: str, value: object) -> NoReturn:
    raise ModelDamagedError(f"the model's configuration says {key} = {value!r}", hint="save the model again")
