"""llama.cpp's own tokenizer for a GGUF file, loaded without the weights.

The one judge of how a file tokenizes: what is converted or pruned is compared with it. Knows nothing of weights.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_sdk.engines.llama_library import library
from edge_sdk.errors import EngineError
from edge_sdk.model_files.gguf_header import read_header


class NativeVocabulary:
    """The vocabulary of a file, open until it is closed. Not for two threads at once."""

    def __init__(self, path: Path) -> None:
        """Raises `MissingExtraError` without llama-cpp-python, `ModelError` or `EngineError` for a useless file."""
        self._lib = lib = library()
        header = read_header(path)
        settings = lib.llama_model_default_params()
        settings.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode("utf-8", "surrogateescape"), settings)
        if not self._model:
            raise EngineError(
                f"llama.cpp cannot use the vocabulary of {path.name} (pre-tokenizer "
                f"{header.metadata.get('tokenizer.ggml.pre')!r})",
                hint="choose another pre-tokenizer with --pre",
            )
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self.size = int(lib.llama_vocab_n_tokens(self._vocabulary))
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; what spells a special token becomes that token. None is added."""
        content = text.encode("utf-8", "replace")
        tokens = (ctypes.c_int32 * (len(content) + 8))()
        count = self._lib.llama_tokenize(self._vocabulary, content, len(content), tokens, len(tokens), False, True)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(content)} bytes")
        return list(tokens[:count])

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """The bytes that tokens stand for in running text, special ones spelled out."""
        return b"".join(map(self._piece, tokens))

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            size, count = 32, -1
            while count < 0:
                buffer = ctypes.create_string_buffer(size)
                count = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, True)
                size = -count
            self._pieces[token] = buffer.raw[:count]
        return self._pieces[token]

    def close(self) -> None:
        """Free it; again does nothing."""
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
