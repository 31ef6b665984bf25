"""Texts to unit vectors without a transformer: the weighted sum of one vector for each token, in a few megabytes.

Static embeddings (model2vec, https://github.com/MinishLab/model2vec) with weights by frequency (Arora, Liang and
Ma: A simple but tough-to-beat baseline for sentence embeddings, ICLR 2017). It reads a folder that
`quantize.static_encoder` has made and knows nothing of how; no onnxruntime and no kernel take part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ModelDamagedError, ModelNotFoundError
from ..model_files.tokenizer import Tokenizer
from .embed import CHARACTERS_PER_TOKEN

STATIC_FILE = "static.npz"
"""What makes a folder one of a static encoder: `codes` int8 [tokens, dimension] and `scales` float32 [tokens]."""
DESCRIPTION_FILE = "static.json"
"""Beside it: `format` (1), `name`, `dimension`, and where it comes from."""
FORMAT = 1
LARGEST_SCALE = 1000.0
"""Keeps sums of any text finite; those of unit vectors are far below 1."""
_REMEMBERED_WORDS = 20_000
_REMEMBERED_LENGTH = 32  # characters of a word; longer ones seldom come back


class WordTokens(dict[str, bytes]):
    """Token ids of texts, cut at white space: each word on its own, so that most are only looked up.

    The tokenizer would take longer than all the rest together. So a text's tokens are those of its words, whatever
    the tokenizer would do across white space. The dictionary holds the ids of a word as the bytes of int32 numbers.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        super().__init__()
        self._tokenizer, self._max_tokens = tokenizer, max_tokens

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._tokenizer.encode(word), np.int32).tobytes()
        if len(self) < _REMEMBERED_WORDS and len(word) <= _REMEMBERED_LENGTH:
            self[word] = ids
        return ids

    def ids(self, text: str) -> NDArray[np.int32]:
        """The first `max_tokens` ids of a text."""
        words = text[: self._max_tokens * CHARACTERS_PER_TOKEN].split()
        return np.frombuffer(b"".join(map(self.__getitem__, words)), np.int32)[: self._max_tokens]


class StaticEncoder:
    """An encoder whose vectors do not depend on the order of words: thousands of passages a second.

    A text beyond `max_tokens` counts up to there. A vector has the same bits whatever texts were encoded with it.
    """

    def __init__(
        self,
        name: str,
        codes: NDArray[np.int8],
        scales: NDArray[np.float32],
        words: WordTokens,
        fingerprint: str,
    ) -> None:
        """Use `open`; this takes what it has loaded."""
        self.name = name
        self._codes, self._scales = codes, scales
        self._words, self._fingerprint = words, fingerprint

    @classmethod
    def open(cls, directory: Path, *, name: str | None = None, max_tokens: int = 256) -> StaticEncoder:
        """Load `static.npz`, `static.json` and `tokenizer.json` of a folder.

        Raises `ModelNotFoundError`, and `ModelDamagedError` for files that are not what `quantize.static_encoder`
        writes or do not belong together.
        """
        if max_tokens < 8:
            raise ConfigError(f"max_tokens is {max_tokens}", hint="use 8 or more")
        table, description = _read(directory / STATIC_FILE), _read(directory / DESCRIPTION_FILE)
        tokenizer_file = directory / "tokenizer.json"
        tokenizer = Tokenizer.open(tokenizer_file)
        codes, scales = _table(table, directory / STATIC_FILE)
        told = _described(description, directory / DESCRIPTION_FILE)
        if told != codes.shape[1]:
            raise _damaged(directory / DESCRIPTION_FILE, f"it says {told} dimensions, there are {codes.shape[1]}")
        if tokenizer.size > len(codes):
            raise _damaged(tokenizer_file, f"it has {tokenizer.size} tokens, {STATIC_FILE} has {len(codes)}")
        facts = {
            "files": [hashlib.sha256(content).hexdigest() for content in (table, _read(tokenizer_file))],
            "pooling": "sum of words",
            "max_tokens": max_tokens,
        }
        fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return cls(name or directory.name, codes, scales, WordTokens(tokenizer, max_tokens), fingerprint)

    @property
    def fingerprint(self) -> str:
        """The sha256 of what decides a vector: the token vectors, the tokenizer, the pooling and the window."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._codes.shape[1])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape [len(texts), dimension], L2-normalised; a text without any known token gives zeros."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            ids = self._words.ids(text)
            # One text at a time: its rows stay in the CPU's caches, and its vector cannot depend on the others.
            rows = self._codes.take(ids, axis=0).astype(np.float32)
            np.matmul(self._scales.take(ids), rows, out=vector)
            vector /= np.sqrt(vector @ vector) or 1
        return vectors


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}", hint="run `edge distill static` again") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _table(content: bytes, path: Path) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    try:
        with ZipFile(BytesIO(content)) as archive:  # made uncompressed: more is a bomb
            if any(member.file_size > len(content) for member in archive.infolist()):
                raise ValueError("it unpacks to more than its size")
        with np.load(BytesIO(content), allow_pickle=False) as arrays:  # checks the CRC-32 of what it reads
            codes, scales = arrays["codes"], arrays["scales"]
    except Exception as error:  # zipfile and numpy raise whatever the bytes lead them to
        raise _damaged(path, str(error) or type(error).__name__) from error
    if codes.dtype != np.int8 or codes.ndim != 2 or not codes.size:
        raise _damaged(path, f"its codes are {codes.dtype} of shape {list(codes.shape)}")
    if scales.dtype != np.float32 or scales.shape != codes.shape[:1]:
        raise _damaged(path, f"its scales are {scales.dtype} of shape {list(scales.shape)}")
    if not ((scales >= 0) & (scales <= LARGEST_SCALE)).all():
        raise _damaged(path, f"not all of its scales are from 0 to {LARGEST_SCALE}")
    return np.ascontiguousarray(codes), scales


def _described(content: bytes, path: Path) -> int:
    """The dimension that `static.json` tells."""
    try:
        description = json.loads(content)
        made, dimension = description["format"], int(description["dimension"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error
    if made != FORMAT:
        raise _damaged(path, f"its format is {made}, this version reads {FORMAT}")
    return dimension


def _damaged(path: Path, what: str) -> ModelDamagedError:
    return ModelDamagedError(f"{path} is no static encoder: {what[:200]}", hint="run `edge distill static` again")
