"""A question and passages to the span that answers it, or to how unlikely it is that one does; no language model.

Knows nothing of where passages come from or of what becomes of an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..device import default_threads
from ..errors import ConfigError, EngineError, ModelDamagedError
from ..model_files.onnx_session import OnnxSession, find_model
from ..model_files.tokenizer import Pieces, Tokenizer
from .description import FILE, Description
from .extract import Extract, Scores, Span
from .spans import Floats
from .windows import Window, Windows

__all__ = ["OUTPUT", "Extract", "Reader", "Span"]

OUTPUT = "scores"
"""What the model computes for each token: how well an answer starts there, how well one ends there, and, at the
first token, whether the passage holds one (log-odds)."""
_FED = {"input_ids", "token_type_ids"}


class Reader:
    """A BERT-like encoder with three scores a token. May be used from several threads.

    `fingerprint` is the sha256 of all that decides what it reads: 64 hexadecimal digits.
    """

    def __init__(
        self, name: str, session: OnnxSession, windows: Windows, description: Description, fingerprint: str
    ) -> None:
        """Use `open`; this takes what it has loaded. A first run is made, so that a wrong model fails here."""
        self.name, self.description, self.fingerprint = name, description, fingerprint
        self._session, self._windows = session, windows
        if set(session.inputs) != _FED or OUTPUT not in session.outputs:
            has = f"inputs {', '.join(session.inputs)} and outputs {', '.join(session.outputs)}"
            raise ModelDamagedError(f"{name} is no reader: it has {has}", hint="export it again")
        longest = windows.limits.window
        every = Pieces([0] * longest, [0] * longest, [0] * longest, [True] * longest)
        self._run(next(windows.cut([], every)))

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
        session = OnnxSession.open(find_model(directory), threads=threads)
        return cls(name or directory.name, session, windows, description, _fingerprint(session, directory))

    def read(self, question: str, passages: Sequence[str]) -> Extract:
        """The best span of all passages. Raises `EngineError` when the model fails."""
        told = self.description
        return self.score(question, passages).extract(told.limits.answer, told.passage_weight, told.answerability)

    def score(self, question: str, passages: Sequence[str]) -> Scores:
        """The scores of every token, before anything is chosen. Raises `EngineError` when the model fails."""
        asked = self._windows.question(question)
        pieces = [self._windows.tokenizer.pieces(passage) for passage in passages]
        windows = [window for at, each in enumerate(pieces) for window in self._windows.cut(asked, each, at)]
        return Scores(passages, pieces, windows, [self._run(window) for window in windows])

    def _run(self, window: Window) -> Floats:
        """Scores [tokens, 3]. One window a run: with 8-bit activations, what shares a run changes the rounding."""
        feeds = {"input_ids": np.array([window.ids]), "token_type_ids": np.array([window.segments])}
        scores: Floats = self._session.run([OUTPUT], feeds)[0].numpy()
        if scores.shape != (1, len(window.ids), 3):
            raise EngineError(f"{self.name} gave scores of shape {list(scores.shape)} for {len(window.ids)} tokens")
        if not np.isfinite(scores).all():
            raise EngineError(f"{self.name} gave numbers that are not finite", hint="its file may be damaged")
        return np.asarray(scores[0])


def _fingerprint(session: OnnxSession, directory: Path) -> str:
    digest = hashlib.sha256()
    for path in (session.file.path, *session.file.external, directory / "tokenizer.json", directory / FILE):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
