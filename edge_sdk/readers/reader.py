"""A question and passages to the span that answers it, or to how unlikely it is that one does; no language model.

Knows nothing of where passages come from or of what becomes of an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..device import default_threads
from ..errors import ConfigError
from ..model_files.onnx_session import OnnxFile, find_model, inspect_onnx
from ..model_files.tokenizer import Pieces, Tokenizer
from .description import FILE, Description
from .extract import Extract, Scores, Span
from .scorer import Scorer, open_scorer
from .windows import Windows

__all__ = ["Extract", "Reader", "Span"]


class Reader:
    """A BERT-like encoder with three scores a token. May be used from several threads.

    `fingerprint` is the sha256 of all that decides what it reads: 64 hexadecimal digits.
    """

    def __init__(
        self, name: str, scorer: Scorer, windows: Windows, description: Description, fingerprint: str
    ) -> None:
        """Use `open`; this takes what it has loaded. A first run is made, so that a wrong model fails here."""
        self.name, self.description, self.fingerprint = name, description, fingerprint
        self._scorer, self._windows = scorer, windows
        longest = windows.limits.window
        every = Pieces([0] * longest, [0] * longest, [0] * longest, [True] * longest)
        scorer.scores([next(windows.cut([], every))])

    @classmethod
    def open(cls, directory: Path, *, name: str | None = None, threads: int | None = None) -> Reader:
        """Load the `*.onnx` file, `tokenizer.json` and `reader.json` of a folder.

        `threads` defaults to the device's cores. Raises `ModelNotFoundError`, `ModelDamagedError`, `EngineError`.
        """
        threads = default_threads() if threads is None else threads
        if threads < 1:
            raise ConfigError(f"threads is {threads}", hint="use 1 or more")
        description = Description.read(directory)
        tokenizer = Tokenizer.open(directory / "tokenizer.json", literal=True)
        windows = Windows(tokenizer, description.limits)
        file = inspect_onnx(find_model(directory))
        scorer = open_scorer(file, description.limits.window, threads)
        return cls(name or directory.name, scorer, windows, description, _fingerprint(file, directory))

    def read(self, question: str, passages: Sequence[str]) -> Extract:
        """The best span of all passages. Raises `EngineError` when the model fails."""
        told = self.description
        return self.score(question, passages).extract(told.limits.answer, told.passage_weight, told.answerability)

    def score(self, question: str, passages: Sequence[str]) -> Scores:
        """The scores of every token, before anything is chosen. Raises `EngineError` when the model fails."""
        asked = self._windows.question(question)
        pieces = [self._windows.tokenizer.pieces(passage) for passage in passages]
        windows = [window for at, each in enumerate(pieces) for window in self._windows.cut(asked, each, at)]
        return Scores(passages, pieces, windows, self._scorer.scores(windows))


def _fingerprint(file: OnnxFile, directory: Path) -> str:
    digest = hashlib.sha256()
    for path in (file.path, *file.external, directory / "tokenizer.json", directory / FILE):
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
