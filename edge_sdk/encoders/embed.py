"""Texts to unit vectors: the `Encoder` protocol, and the encoder that runs a sentence-transformer in onnxruntime.

It knows nothing of passages or of where vectors are kept; `fingerprint` tells two encoders apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..device import default_threads
from ..errors import ConfigError, EngineError
from ..model_files.onnx_session import OnnxFile, OnnxSession, find_model
from ..model_files.tokenizer import Tokenizer

_WINDOW = 1024  # texts sorted by length together
_RUN_TOKENS = 256  # of one run, padding included: more costs memory and, beyond the CPU's caches, time
_FED = {"input_ids", "attention_mask", "token_type_ids"}
CHARACTERS_PER_TOKEN = 16
"""Natural text has about 4: what lies beyond is cut before the tokenizer sees it."""


class Encoder(Protocol):
    """Turns texts into vectors whose dot product says how close they are in meaning."""

    @property
    def fingerprint(self) -> str:
        """Vectors can be compared exactly when these are equal: 64 hexadecimal digits."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape [len(texts), dimension], in the order of the texts, each of length 1."""


class OnnxEncoder:
    """A BERT-like encoder with mean pooling over the tokens (Sentence-BERT, arXiv:1908.10084).

    A text beyond `max_tokens` (special tokens included) counts up to there: that is the model's window, and
    documents are chunked to fit it. But for rounding in the last digits, a vector does not depend on the texts
    that were encoded with it.
    """

    def __init__(self, name: str, session: OnnxSession, tokenizer: Tokenizer, max_tokens: int, pad: int) -> None:
        """Use `open`; this takes what it has loaded."""
        self.name = name
        self._session, self._tokenizer = session, tokenizer
        self._max_tokens, self._pad = max_tokens, pad
        unknown = sorted(set(session.inputs) - _FED)
        if unknown or "input_ids" not in session.inputs:
            what = f"wants {', '.join(unknown)}" if unknown else "has no input_ids"
            raise EngineError(f"{name} is not a text encoder: it {what}")
        self._output = _token_output(name, session)
        # A dynamically quantized model rounds by what shares the run: alone, a text always gives one vector.
        self._run_tokens = 1 if session.file.quantizes_activations else _RUN_TOKENS
        self._dimension = int(self._pooled([[pad]]).shape[1])  # a first run, so that a wrong model fails here
        self._fingerprint = encoder_fingerprint(session.file, max_tokens, self._dimension)

    @classmethod
    def open(
        cls, directory: Path, *, name: str | None = None, threads: int | None = None, max_tokens: int = 256
    ) -> OnnxEncoder:
        """Load the `*.onnx` file and the `tokenizer.json` of a folder. `threads` defaults to the device's cores.

        Raises `ModelNotFoundError`, `ModelDamagedError`, and `EngineError` for a model that is no text encoder.
        """
        threads = default_threads() if threads is None else threads
        if max_tokens < 8 or threads < 1:
            raise ConfigError(f"max_tokens is {max_tokens}, threads {threads}", hint="use 8 or more, 1 or more")
        tokenizer = Tokenizer.open(directory / "tokenizer.json", max_tokens=max_tokens)
        session = OnnxSession.open(find_model(directory), threads=threads)
        pad = next((found for token in ("[PAD]", "<pad>") if (found := tokenizer.id(token)) is not None), 0)
        return cls(name or directory.name, session, tokenizer, max_tokens, pad)

    @property
    def fingerprint(self) -> str:
        """The sha256 of what decides a vector: the files, the pooling, the normalisation and the window."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._dimension

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape [len(texts), dimension], L2-normalised; a text without any token gives zeros.

        Memory stays bounded however many texts there are. Raises `EngineError` when the model fails or gives
        numbers that are not finite.
        """
        windows = [self._encode_window(texts[at : at + _WINDOW]) for at in range(0, len(texts), _WINDOW)]
        return np.concatenate(windows) if windows else np.zeros((0, self._dimension), np.float32)

    def _encode_window(self, texts: Sequence[str]) -> NDArray[np.float32]:
        limit = self._max_tokens * CHARACTERS_PER_TOKEN
        tokens = [self._tokenizer.encode(text[:limit], framed=True) for text in texts]
        vectors = np.zeros((len(texts), self._dimension), np.float32)
        for run in runs_by_length([len(ids) for ids in tokens], self._run_tokens):
            means = self._pooled([tokens[at] for at in run])
            vectors[run] = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return vectors

    def _pooled(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Run the model; average the states of the real tokens, not of the padding."""
        shape = len(tokens), max(map(len, tokens))
        feeds = {
            "input_ids": np.full(shape, self._pad, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, ids in enumerate(tokens):
            feeds["input_ids"][row, : len(ids)] = ids
            feeds["attention_mask"][row, : len(ids)] = 1
        mask = feeds["attention_mask"].astype(np.float32)
        states = self._session.run([self._output], self._declared(feeds))[0].numpy()
        if states.shape[:2] != shape:
            raise EngineError(f"{self.name} gave states of shape {list(states.shape)} for {list(shape)} tokens")
        sums = np.einsum("bt,btd->bd", mask, states.astype(np.float32, copy=False))
        if not np.isfinite(sums).all():
            raise EngineError(f"{self.name} gave numbers that are not finite", hint="its file may be damaged")
        return np.asarray(sums / mask.sum(axis=1, keepdims=True))

    def _declared(self, feeds: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.integer]]:
        """Only the inputs that the model has, in the type that it wants."""
        return {name: feeds[name].astype(spec.dtype, copy=False) for name, spec in self._session.inputs.items()}


def encoder_fingerprint(file: OnnxFile, max_tokens: int, dimension: int) -> str:
    """The sha256 of what decides a vector, whichever code computes it: files, pooling, normalisation, window."""
    facts = {
        "model": [_sha256(path) for path in (file.path, *file.external)],
        "tokenizer": _sha256(file.path.parent / "tokenizer.json"),
        "pooling": "mean",
        "normalisation": "l2",
        "max_tokens": max_tokens,
        "dimension": dimension,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def runs_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of texts that share a run: alike in length, at most `budget` tokens with padding, or one text.

    Texts of length 0 are in no run.

    >>> list(runs_by_length([3, 200, 4, 0, 90, 3], budget=12))
    [[0, 5, 2], [4], [1]]
    """
    run: list[int] = []
    for at in sorted((at for at, length in enumerate(lengths) if length), key=lengths.__getitem__):
        if run and (len(run) + 1) * lengths[at] > budget:
            yield run
            run = []
        run.append(at)
    if run:
        yield run


def _token_output(name: str, session: OnnxSession) -> str:
    """The output that holds a state for each token: [batch, tokens, dimension]."""
    found = [spec.name for spec in session.outputs.values() if len(spec.shape) == 3 and spec.dtype.kind == "f"]
    for usual in ("last_hidden_state", "token_embeddings"):
        if usual in found:
            return usual
    if not found:
        raise EngineError(f"{name} is not a text encoder: none of its outputs has a state for each token")
    return found[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
