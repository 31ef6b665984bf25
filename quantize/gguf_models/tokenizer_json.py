"""Byte-level BPE between Hugging Face's `tokenizer.json` and GGUF's tokens, types and merges.

llama.cpp does not read how a text is split into words; it knows splits by name. So the definition is compared with
those known here, and an unknown one is an error rather than a model that misreads. Knows nothing of weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from edge_sdk.errors import ConfigError, ModelDamagedError, ModelNotFoundError
from edge_sdk.model_files.tokenizer import Tokenizer

from .gguf_format import BOOL, I32, STRING, Field
from .safetensors_files import parse_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
TOKENIZER = "tokenizer.json"

Step = tuple[object, ...]

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKED: Final = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"


def _split(pattern: str) -> tuple[Step, ...]:
    return ("Split", f"{_CONTRACTIONS}|{pattern}|{_SPACES}", "Isolated", False), ("ByteLevel", False, False)


# llama.cpp's name to the steps of the definition, and whether a word of the vocabulary is taken without merging.
PRE_TOKENIZERS: Final[Mapping[str, tuple[tuple[Step, ...], bool]]] = {
    "gpt-2": ((("ByteLevel", False, True),), False),
    "smollm": ((("Digits", True), ("ByteLevel", False, True)), False),
    "qwen2": (_split(rf"{_WORD}|\p{{N}}|{_SIGNS}"), False),
    "qwen35": (_split(_MARKED), False),
    "llama-bpe": (_split(rf"{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}"), True),
    "smaug-bpe": (_split(rf"{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}"), False),
}
_ALIASES: Final = {
    "starcoder": "smollm", "refact": "smollm", "command-r": "smollm", "codeshell": "smollm", "mellum": "gpt-2",
    "phi-2": "gpt-2", "deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe", "lfm2": "llama-bpe",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ByteBpe:
    """A vocabulary as llama.cpp takes it. A merge is its two parts with a space between them."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str

    def fields(self) -> dict[str, Field]:
        """The metadata of a GGUF file."""
        return {
            "tokenizer.ggml.model": Field(STRING, "gpt2"),
            "tokenizer.ggml.pre": Field(STRING, self.pre),
            "tokenizer.ggml.tokens": Field(STRING, self.tokens),
            "tokenizer.ggml.token_type": Field(I32, self.types),
            "tokenizer.ggml.merges": Field(STRING, self.merges),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Field], name: str) -> ByteBpe:
        """The vocabulary of a GGUF file, whose header has been checked. Raises `ConfigError` for another kind."""

        def value(key: str) -> Any:
            return fields[f"tokenizer.ggml.{key}"].value if f"tokenizer.ggml.{key}" in fields else None

        if value("model") != "gpt2" or not isinstance(value("merges"), list) or not value("tokens"):
            kind = value("model")
            raise ConfigError(f"the vocabulary of {name} is of the kind {kind!r}, only byte-level BPE is known")
        tokens, merges = value("tokens"), value("merges")
        if any(not merge.partition(" ")[2] for merge in merges):
            raise ModelDamagedError(f"{name}: a merge does not have two parts", hint="fetch the model again")
        return cls(tokens, value("token_type") or [NORMAL] * len(tokens), merges, value("pre") or "default")


def read_tokenizer(folder: Path, size: int, pre: str | None = None) -> ByteBpe:
    """The vocabulary of `tokenizer.json`, filled up to `size` tokens with unused ones.

    `pre` names the pre-tokenizer where its definition is not one that is known. Raises `ConfigError` for what
    llama.cpp's byte-level BPE cannot do, `ModelDamagedError` for a file that is no tokenizer.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise ModelNotFoundError(f"there is no file {path}", hint="save the tokenizer beside the model")
    content = parse_json(path.read_bytes(), path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ModelDamagedError(f"{path.name} holds no tokenizer", hint="save the tokenizer again")
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece-like BPE" if model.get("byte_fallback") else model.get("type")
        _refuse(path, f"has a vocabulary of the kind {kind}, only byte-level BPE is supported")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        _refuse(path, "marks the parts of words, which byte-level BPE does not")
    merges = _merges(path, model)
    Tokenizer.open(path)  # it checks all else; with a prefix, or merges of unknown tokens, it may panic
    normalizer = content.get("normalizer")
    if normalizer is not None and normalizer.get("type") not in ("NFC", None):
        _refuse(path, f"normalizes texts by {normalizer.get('type')}, which llama.cpp does not")
    pre = pre or find_pre_tokenizer(content.get("pre_tokenizer"), bool(model.get("ignore_merges")), path)
    names: dict[int, tuple[str, int]] = {}
    for token, at in model["vocab"].items():
        if at in names:
            _refuse(path, f"gives {token!r} and {names[at][0]!r} the same id {at}")
        names[at] = token, NORMAL
    for added in content.get("added_tokens") or ():
        token = added["content"]
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            _refuse(path, f"lets the added token {token!r} take spaces or stand alone, which llama.cpp does not")
        special = added.get("special") or re.fullmatch(r"<\|.*\|>|<pad>|<mask>", token, re.DOTALL)
        names[added["id"]] = token, CONTROL if special else USER_DEFINED
    if names and max(names) >= size:
        raise ModelDamagedError(
            f"{path.name} has the token id {max(names)}, config.json a vocabulary of {size}",
            hint="call `model.resize_token_embeddings(len(tokenizer))` before saving",
        )
    filled = [names.get(at, (f"[PAD{at}]", UNUSED)) for at in range(size)]
    return ByteBpe([token for token, _ in filled], [kind for _, kind in filled], merges, pre)


def _merges(path: Path, model: Mapping[str, Any]) -> list[str]:
    """The merges in GGUF's spelling, every part and every result a token."""
    vocabulary, found = model.get("vocab"), []
    if not isinstance(vocabulary, dict) or not isinstance(model.get("merges"), list):
        raise ModelDamagedError(f"{path.name} has no vocabulary with merges", hint="save the tokenizer again")
    for merge in model["merges"]:
        parts = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not (
            isinstance(parts, list)
            and len(parts) == 2
            and all(isinstance(part, str) and " " not in part for part in parts)
        ):
            raise ModelDamagedError(f"{path.name} holds the merge {str(merge)[:60]!r}, which is no pair of tokens")
        if not {*parts, "".join(parts)} <= vocabulary.keys():
            raise ModelDamagedError(f"{path.name} merges {parts}, which are not all in its vocabulary")
        found.append(" ".join(parts))
    return found


def find_pre_tokenizer(definition: Any, ignore_merges: bool, path: Path = Path(TOKENIZER)) -> str:
    """llama.cpp's name of a pre-tokenizer, from its definition in `tokenizer.json`.

    >>> find_pre_tokenizer({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, False)
    'gpt-2'
    """
    steps = tuple(_steps(definition))
    for name, known in PRE_TOKENIZERS.items():
        if known == (steps, ignore_merges):
            return name
    raise ConfigError(
        f"{path.name} splits texts in a way that is not known to be one of llama.cpp's: {str(definition)[:160]}",
        hint=f"known are {', '.join(PRE_TOKENIZERS)}; name one with --pre, and what it does is compared",
    )


def _steps(definition: Any) -> list[Step]:
    """The steps of a definition, without what does not change the tokens."""
    kind = definition.get("type") if isinstance(definition, dict) else None
    if kind == "Sequence":
        return [step for inner in definition.get("pretokenizers") or () for step in _steps(inner)]
    if kind == "ByteLevel":
        return [("ByteLevel", definition.get("add_prefix_space", True), definition.get("use_regex", True))]
    if kind == "Digits":
        return [("Digits", definition.get("individual_digits", False))]
    if kind == "Split" and isinstance(definition.get("pattern"), dict):
        pattern = definition["pattern"].get("Regex")
        return [("Split", pattern, definition.get("behavior"), definition.get("invert", False))]
    return [(kind, str(definition))]


def tokenizer_json(bpe: ByteBpe, begin: int | None = None) -> dict[str, object]:
    """The `tokenizer.json` of a vocabulary; `begin` is the token that every text begins with, if one does.

    It tokenizes as llama.cpp does, so there is no normalizer where the model's first one had one. Raises
    `ConfigError` for a pre-tokenizer whose definition is not known.
    """
    known = PRE_TOKENIZERS.get(_ALIASES.get(bpe.pre, bpe.pre))
    if known is None:
        raise ConfigError(
            f"the pre-tokenizer {bpe.pre!r} has no known definition", hint=f"known are {', '.join(PRE_TOKENIZERS)}"
        )
    steps, ignore_merges = known
    added = [
        {"id": at, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": kind == CONTROL}
        for at, (token, kind) in enumerate(zip(bpe.tokens, bpe.types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    # Added tokens too: `tokenizers` gives those that the vocabulary lacks ids of its own choice.
    padding = {at for at, kind in enumerate(bpe.types) if kind == UNUSED and bpe.tokens[at] == f"[PAD{at}]"}
    vocabulary = {token: at for at, token in enumerate(bpe.tokens) if at not in padding}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_definition(step) for step in steps]},
        "post_processor": None if begin is None else _begins_with(bpe.tokens[begin], begin),
        "decoder": _definition(("ByteLevel", False, True)),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocabulary,
            "merges": [merge.partition(" ")[::2] for merge in bpe.merges],
        },
    }


def _definition(step: Step) -> dict[str, object]:
    if step[0] == "Digits":
        return {"type": "Digits", "individual_digits": step[1]}
    if step[0] == "Split":
        return {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": step[2], "invert": step[3]}
    return {"type": "ByteLevel", "add_prefix_space": step[1], "trim_offsets": True, "use_regex": step[2]}


def _begins_with(token: str, at: int) -> dict[str, object]:
    special, first, second = ({"SpecialToken": {"id": token, "type_id": 0}}, *_SEQUENCES)
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [at], "tokens": [token]}},
    }


_SEQUENCES = ({"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}})


def special_fields(ids: Mapping[str, int | None], adds_begin: bool) -> dict[str, Field]:
    """Metadata of special tokens: names such as `bos`, `eos` or `padding` to ids.

    >>> [key for key in special_fields({"eos": 2, "bos": None}, False)]
    ['tokenizer.ggml.eos_token_id', 'tokenizer.ggml.add_bos_token']
    """
    found = {f"tokenizer.ggml.{name}_token_id": Field(4, at) for name, at in ids.items() if at is not None}
    return found | {"tokenizer.ggml.add_bos_token": Field(BOOL, adds_begin)}


def _refuse(path: Path, message: str) -> NoReturn:
    raise ConfigError(f"{path.name} {message}")
