"""A reference model's results at some positions, kept once, so that many candidates are compared with it cheaply.

What is kept are the logits less their largest, in half precision, in an unnamed temporary file: for SmolLM2 1,024
positions take 101 MB. The rounding moved a mean KL divergence of 0.24 by 2e-7 (SmolLM2, 1,020 positions) and one of
0.28 by 4e-6 (Qwen2.5-1.5B, 127 positions). Knows nothing of where candidates come from.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Event as Flag
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device import free_disk
from edge_sdk.errors import ConfigError, DiskFullError, EngineError

from ..collection import Update
from .divergence import CONTEXT, Divergence, TokenFigures, first_scored, kl_divergence, summarise
from .window_logits import Floats, LogitModel, Tokens, check_same_vocabulary, open_models

Halves = NDArray[np.float16]

POSITIONS = 1024
"""Scored positions unless another number is given."""


class Reference:
    """What model A says at the scored positions of some windows; use `of`.

    >>> with Reference.of(Path("model.gguf"), text) as reference:  # doctest: +SKIP
    ...     print(reference.compare(Path("smaller.gguf")).kld_mean)
    """

    def __init__(
        self, path: Path, windows: Tokens, first: int, texts: tuple[bytes, ...], threads: int | None, folder: Path
    ) -> None:
        """Room in `folder` for the results of `windows`; raises `DiskFullError` where there is too little."""
        self.path, self.windows, self.first, self.threads = path, windows, first, threads
        self._texts, self._scored = texts, int(windows.shape[1]) - 1 - first
        self._bytes = path.stat().st_size
        shape = (self.positions, len(texts))
        self._file = _reserved(folder, 2 * shape[0] * shape[1])
        self._logits: Halves = np.memmap(self._file, np.float16, "w+", shape=shape)
        self._logprobs, self._best = np.zeros(shape[0], np.float32), np.zeros(shape[0], np.int64)

    @property
    def positions(self) -> int:
        """How many positions a candidate is compared at."""
        return len(self.windows) * self._scored

    @classmethod
    def of(
        cls,
        path: Path,
        text: str | Sequence[int],
        *,
        positions: int = POSITIONS,
        context: int = CONTEXT,
        warmup: int | None = None,
        threads: int | None = None,
        folder: Path | None = None,
        progress: Update = lambda done, total, detail: None,
        cancel: Flag | None = None,
    ) -> Self:
        """Evaluate `path` on windows spread evenly over a text, as many as give about `positions` scored ones.

        `context` and `warmup` are those of `measure_divergence`; shorter windows and a shorter warm-up cost less a
        position. Where the text is shorter, all of it is taken. `threads` are for the candidates too; `folder` is
        where the temporary file goes. Raises as `measure_divergence` does, and `DiskFullError`.
        """
        first = first_scored(context, warmup)
        if positions < 1:
            raise ConfigError(f"{positions} positions", hint="use 1 or more")
        with open_models(path, context=context, threads=threads) as (model,):
            windows = _spread(model.windows(text, context), max(1, round(positions / (context - 1 - first))))
            self = cls(path, windows, first, model.texts(), threads, folder or Path(tempfile.gettempdir()))
            try:
                self._fill(model, progress, cancel)
            except BaseException:
                self.close()
                raise
        return self

    def compare(
        self,
        candidate: Path,
        *,
        progress: Update = lambda done, total, detail: None,
        cancel: Flag | None = None,
    ) -> Divergence:
        """How far a candidate is from the reference; see `measure_windows`."""
        figures = self.measure_windows(candidate, progress=progress, cancel=cancel)
        return summarise(figures, bytes_a=self._bytes, bytes_b=candidate.stat().st_size)

    def measure_windows(
        self,
        candidate: Path,
        *,
        progress: Update = lambda done, total, detail: None,
        cancel: Flag | None = None,
    ) -> list[TokenFigures]:
        """The figures of every window, for comparing candidates window by window.

        Raises `ConfigError` for another vocabulary and `KeyboardInterrupt` once `cancel` is set: a part of the
        windows could not be compared with other candidates.
        """
        if self._file.closed:
            raise EngineError(f"what was kept of {self.path.name} is deleted", hint="make the reference anew")
        with open_models(candidate, context=self.windows.shape[1], threads=self.threads) as (model,):
            check_same_vocabulary(self._texts, model.texts(), candidate.name)
            found = []
            for number, window in enumerate(self.windows):
                progress(number, len(self.windows), candidate.name)
                parts, start = [], number * self._scored
                for logits, following in model.logits(window, self.first, cancel):
                    parts.append(self._compared(slice(start, start + len(logits)), logits, following))
                    start += len(logits)
                found.append(TokenFigures.joined(parts))
        return found

    def close(self) -> None:
        """Delete what was kept; again does nothing."""
        self._logits = np.zeros((0, 0), np.float16)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self, model: LogitModel, progress: Update, cancel: Flag | None) -> None:
        start = 0
        for number, window in enumerate(self.windows):
            progress(number, len(self.windows), self.path.name)
            for logits, following in model.logits(window, self.first, cancel):
                rows = slice(start, start + len(logits))
                self._logits[rows] = _halved(logits)
                self._logprobs[rows] = kl_divergence(self._logits[rows], logits, following)[2]
                self._best[rows] = logits.argmax(axis=1)
                start = rows.stop

    def _compared(self, rows: slice, logits: Floats, following: Tokens) -> TokenFigures:
        """The full-precision figures of the reference, where they are kept, and the divergence from its halves."""
        kld, _, logprob = kl_divergence(self._logits[rows], logits, following)
        return TokenFigures(
            kld.astype(np.float32),
            self._logprobs[rows],
            logprob.astype(np.float32),
            self._best[rows] == logits.argmax(axis=1),
        )


def _reserved(folder: Path, size: int) -> IO[bytes]:
    """An unnamed file of `size` bytes that are really there: to write where none are left would end the process."""
    free = free_disk(folder)
    if size > free:
        raise DiskFullError(
            f"the reference's results take {size >> 20} MiB, {folder} has {free >> 20} MiB",
            hint="use fewer positions or another folder",
        )
    file = None
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, open until the reference is closed
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if file is not None:
            file.close()
        raise DiskFullError(
            f"{size >> 20} MiB cannot be reserved in {folder}: {error.strerror}", hint="use another folder"
        ) from error
    return file


def _halved(logits: Floats) -> Halves:
    """Logits less the largest: what is likely lies near 0, where half precision is finest."""
    with np.errstate(over="ignore"):  # what is further than 65,504 below becomes minus infinity, and weighs nothing
        halves: Halves = (logits - logits.max(axis=1, keepdims=True)).astype(np.float16)
    return halves


def _spread(windows: Tokens, count: int) -> Tokens:
    """`count` of the windows at equal distances, all where there are fewer."""
    count = min(count, len(windows))
    chosen: Tokens = windows[[at * len(windows) // count for at in range(count)]]
    return chosen
