"""Text to token ids and ids to bytes, from a `tokenizer.json`; the only module that knows `tokenizers`.

Padding and truncation stored in the file are ignored: callers say what they want. Texts go in one by one, so
no thread pool is started behind the app's back. It knows nothing of models or templates.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import EngineError, ModelDamagedError, ModelNotFoundError

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # SentencePiece's spelling of a byte that it has no letter for
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tokens of a text, each with the characters `text[start:end]` it stands for, and whether it begins a word."""

    ids: list[int]
    starts: list[int]
    ends: list[int]
    leads: list[bool]

    @property
    def trails(self) -> list[bool]:
        """Whether a token ends a word."""
        return [*self.leads[1:], True] if self.leads else []


class Tokenizer:
    """A loaded `tokenizer.json`.

    Lone surrogates, which UTF-8 cannot carry, become U+FFFD; every other text is taken as it is.
    """

    def __init__(self, native: Any) -> None:
        self._native = native
        self._added = native.get_added_tokens_decoder()
        self._pieces: dict[int, bytes] = {}
        self._read_decoder: str | None = None

    @classmethod
    def open(cls, path: Path, *, max_tokens: int | None = None, literal: bool = False) -> Tokenizer:
        """Load the file. With `max_tokens` an encoding ends there, special tokens included.

        `literal` takes special tokens that a text spells out as the text that they are. Raises `ModelNotFoundError`
        or `ModelDamagedError`.
        """
        try:
            from tokenizers import Tokenizer as Native
        except ImportError as error:
            raise EngineError(
                f"tokenizers cannot be imported: {error}", hint="run `pip install tokenizers`"
            ) from error
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"there is no file {path}", hint="pull the model again") from error
        except OSError as error:
            raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
        try:
            _check_merges(content)
            native = Native.from_buffer(content)
            native.no_padding()
            if max_tokens is None:
                native.no_truncation()
            else:
                native.enable_truncation(max_tokens)
            native.encode_special_tokens = literal
        except Exception as error:  # the package raises bare Exception
            reason = str(error)[:200]
            raise ModelDamagedError(f"{path} is no tokenizer: {reason}", hint="pull the model again") from error
        return cls(native)

    def encode(self, text: str, *, framed: bool = False) -> list[int]:
        """Ids of a text; special tokens spelled out in it are recognised.

        `framed` adds what the tokenizer puts around a sequence, such as `[CLS]` and `[SEP]`.
        """
        return list(self._native.encode(_encodable(text), add_special_tokens=framed).ids)

    def pieces(self, text: str) -> Pieces:
        """Tokens with their places in the text; words are what the tokenizer cuts a text into first.

        Offsets count the characters of `text` as it was given: every surrogate counts as one.
        """
        found = self._native.encode(_SURROGATE.sub("\ufffd", text), add_special_tokens=False)
        words = found.word_ids
        starts, ends = zip(*found.offsets, strict=True) if found.offsets else ((), ())
        leads = [at == 0 or word is None or word != words[at - 1] for at, word in enumerate(words)]
        return Pieces(list(found.ids), list(starts), list(ends), leads)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for in running text; none for a special token or an unknown id.

        Byte-level BPE and SentencePiece vocabularies are understood; another raises `EngineError`.
        """
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._spell(token)
        return found

    def id(self, token: str) -> int | None:
        """The id of a token by its exact spelling."""
        found = self._native.token_to_id(token)
        return None if found is None else int(found)

    def spelling(self, token: int) -> str | None:
        """The exact spelling of a token, as `id` takes it."""
        found = self._native.id_to_token(token)
        return None if found is None else str(found)

    @cached_property
    def size(self) -> int:
        """Rows that a table with one for each token has: one more than the highest id."""
        return max(self._native.get_vocab().values(), default=-1) + 1

    @cached_property
    def longest(self) -> int:
        """Characters that one token can stand for at most, and so a bound on how few tokens a text has."""
        return max(map(len, self._native.get_vocab()), default=1)

    def special_spellings(self) -> frozenset[str]:
        """Texts that `encode` turns into a special token wherever they stand."""
        return frozenset(str(token.content) for token in self._added.values() if token.special)

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else str(added.content).encode()
        spelling = self.spelling(token)
        if spelling is None:
            return b""
        if self._scheme() == "bytes":
            return b"".join(_BYTE_OF.get(letter) or letter.encode() for letter in spelling)
        if byte := _BYTE_TOKEN.fullmatch(spelling):
            return bytes.fromhex(byte[1])
        return spelling.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def _scheme(self) -> str:
        """How vocabulary entries spell bytes: GPT-2's letters for `bytes`, `▁` and `<0x0A>` for `blocks`."""
        if self._read_decoder is None:
            state = self._native.decoder.__getstate__() if self._native.decoder is not None else b"{}"
            types = set(_types(json.loads(state)))
            if "ByteLevel" in types:
                self._read_decoder = "bytes"
            elif types & {"Metaspace", "ByteFallback", "Replace"}:
                self._read_decoder = "blocks"
            else:
                kind = ", ".join(sorted(types)) or "none"
                raise EngineError(f"tokens of this vocabulary cannot be spelled: its decoder is {kind}")
        return self._read_decoder


def _types(state: Any) -> list[str]:
    """The types of a decoder and of those within it."""
    if not isinstance(state, dict):
        return []
    inner = [name for part in state.get("decoders") or () for name in _types(part)]
    return [name for name in (state.get("type"), *inner) if name]


def _encodable(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _letters() -> dict[str, bytes]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(256 + at): bytes([byte]) for at, byte in enumerate(others)
    }


_BYTE_OF = _letters()


def _check_merges(content: bytes) -> None:
    """Raise `ValueError` for merges at which the package does not raise but ends the process.

    It cuts the prefix off the second part of each merge, wherever that falls in a character.
    """
    if b'"BPE"' not in content:
        return
    model = json.loads(content).get("model") or {}
    if model.get("continuing_subword_prefix"):
        raise ValueError("it has a continuing_subword_prefix, which no model here uses")
    vocabulary = model.get("vocab") or {}
    for merge in model.get("merges") or ():
        parts = merge.split(" ", 1) if isinstance(merge, str) else merge
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocabulary.keys():
            raise ValueError(f"it merges {str(merge)[:60]!r}, which are not all tokens")
