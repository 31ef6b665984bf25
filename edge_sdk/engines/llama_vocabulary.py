"""Text and tokens of a model that llama.cpp has loaded: its tokenizer, its special tokens, the bytes of each token.

Knows nothing of contexts or of what is evaluated. Any thread may tokenize.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from ..errors import EngineError

_SPECIAL = 1 << 0 | 1 << 3  # LLAMA_TOKEN_ATTR_UNKNOWN and _CONTROL: what is parsed as a special token


class Vocabulary:
    """`vocabulary` is llama.cpp's, `size` how many tokens it has."""

    def __init__(self, lib: Any, model: Any) -> None:
        """That of a loaded model, which has to live longer."""
        self._lib = lib
        self.vocabulary = lib.llama_model_get_vocab(model)
        self.size = int(lib.llama_vocab_n_tokens(self.vocabulary))
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: bytes, *, special: bool = True) -> list[int]:
        """Tokens of UTF-8 text; what spells a `special` token becomes that token, or stays text. None is added."""
        # A token has a byte at least, and some vocabularies put a space before the first.
        tokens = (ctypes.c_int32 * (len(text) + 8))()
        count = self._lib.llama_tokenize(self.vocabulary, text, len(text), tokens, len(tokens), False, special)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(text)} bytes")
        return tokens[:count]

    def begin(self) -> int | None:
        """The token that every prompt has to begin with, if one has to."""
        lib = self._lib
        return self._known(lib.llama_vocab_bos) if lib.llama_vocab_get_add_bos(self.vocabulary) else None

    def start(self) -> int | None:
        """A token that stands for an empty prompt."""
        begin = self._known(self._lib.llama_vocab_bos)
        return self._known(self._lib.llama_vocab_eos) if begin is None else begin

    def special(self) -> tuple[str, str]:
        """How the vocabulary spells the beginning and the end of a text, "" where it has none."""
        begin, end = self._known(self._lib.llama_vocab_bos), self._known(self._lib.llama_vocab_eos)
        return self._spelled(begin), self._spelled(end)

    def control_tokens(self) -> list[str]:
        """All texts that `tokenize` turns into special tokens."""
        attributes = self._lib.llama_vocab_get_attr
        return [self._spelled(at) for at in range(self.size) if attributes(self.vocabulary, at) & _SPECIAL]

    def ends(self) -> tuple[int, ...]:
        """The tokens with which an answer ends: of a text, or of a turn."""
        known = map(self._known, (self._lib.llama_vocab_eos, self._lib.llama_vocab_eot))
        return tuple(dict.fromkeys(token for token in known if token is not None and self.is_end(token)))

    def tokenize_inside(self, text: bytes) -> list[int]:
        """Tokens of a text behind a line break, without any space before it, where none is a special token."""
        before, whole = (self.tokenize(each, special=False) for each in (b"\n", b"\n" + text))
        return whole[len(before) :] if whole[: len(before)] == before else self.tokenize(text, special=False)

    def is_end(self, token: int) -> bool:
        """Whether the model says with `token` that it has finished."""
        return bool(self._lib.llama_vocab_is_eog(self.vocabulary, token))

    def piece(self, token: int) -> bytes:
        """The bytes of a token in the answer; control tokens have none."""
        found = self._pieces.get(token)
        if found is None:
            buffer, size = ctypes.create_string_buffer(64), 64
            count = self._lib.llama_token_to_piece(self.vocabulary, token, buffer, size, 0, False)
            if count < 0:
                buffer, size = ctypes.create_string_buffer(-count), -count
                count = self._lib.llama_token_to_piece(self.vocabulary, token, buffer, size, 0, False)
            found = self._pieces[token] = buffer.raw[:count]
        return found

    def _known(self, which: Callable[[Any], int]) -> int | None:
        token = which(self.vocabulary)
        return None if token < 0 else token

    def _spelled(self, token: int | None) -> str:
        if token is None:
            return ""
        return bytes(self._lib.llama_vocab_get_text(self.vocabulary, token)).decode("utf-8", "replace")
