"""Windows to scores of their tokens: on our BERT kernel, or in onnxruntime where that is the only way.

Knows nothing of texts or of what scores mean, but that each token has three.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..encoders.bert_graph import NotBertError, read_bert
from ..errors import EngineError, ModelDamagedError
from ..kernel_faces import bert
from ..model_files.onnx_graph import OnnxGraph
from ..model_files.onnx_session import OnnxFile, OnnxSession
from .spans import Floats
from .windows import Window

OUTPUT = "scores"
"""What the model computes for each token: how well an answer starts there, how well one ends there, and, at the
first token, whether the passage holds one (log-odds)."""
SEGMENTS, HEAD, HEAD_BIAS = "segments", "head", "head.bias"
"""Tensors that our export names: embeddings of a pair's parts [2, hidden], weights [hidden, 3] and bias [3]."""
_FED = {"input_ids", "token_type_ids"}


class Scorer(Protocol):
    """Computes a reader's model."""

    def scores(self, windows: Sequence[Window]) -> list[Floats]:
        """Scores [tokens, 3] of each window, which do not depend on the others. Raises `EngineError`."""


def open_scorer(file: OnnxFile, longest: int, threads: int) -> Scorer:
    """The kernel where it is fast and knows the model, else onnxruntime.

    `longest` is the most tokens of a window. Raises `ModelDamagedError` and `EngineError`.
    """
    if bert.best_path() not in (None, bert.PORTABLE) and bert.has_states():
        try:
            return KernelScorer(file, longest, threads)
        except NotBertError:
            pass
    return OnnxScorer(file, threads)


class KernelScorer:
    """Our kernel up to the states of tokens, and the head in numpy: 8 bits with a scale for each token."""

    def __init__(self, file: OnnxFile, longest: int, threads: int) -> None:
        """Raises `NotBertError` with the reason for a model that the kernel does not compute."""
        try:
            graph = OnnxGraph(file)
            weights = read_bert(graph)
            segments, self._head, self._bias = read_head(graph, weights.words.shape[1])
            self._places = len(weights.positions)
            if longest > self._places:
                raise NotBertError(f"it has {self._places} positions for {longest} tokens")
            both = np.concatenate([weights.positions + segment for segment in segments])
            self._kernel = bert.BertKernel(replace(weights, positions=both))
        except (ModelDamagedError, ValueError) as error:
            raise NotBertError(str(error)) from error
        self._longest, self._threads = longest, threads
        self._workspaces: list[NDArray[np.uint8]] = []

    def scores(self, windows: Sequence[Window]) -> list[Floats]:
        """See `Scorer.scores`."""
        if self._threads == 1 or len(windows) < 2:
            return [self._run(window) for window in windows]
        with ThreadPoolExecutor(self._threads, "edge-reader") as pool:
            return list(pool.map(self._run, windows))

    def _run(self, window: Window) -> Floats:
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = self._kernel.workspace(self._longest, self._longest)
        places = [at + self._places * segment for at, segment in enumerate(window.segments)]
        try:
            states = self._kernel.states(window.ids, places, workspace)
        except ValueError as error:
            raise EngineError(f"the tokenizer does not fit the model: {error}") from error
        finally:
            if len(self._workspaces) < self._threads:
                self._workspaces.append(workspace)
        return checked(states @ self._head + self._bias, window)


class OnnxScorer:
    """onnxruntime, one window a run: with 8-bit activations, what shares a run changes the rounding."""

    def __init__(self, file: OnnxFile, threads: int) -> None:
        """Raises `ModelDamagedError` for a model that is no reader, `EngineError` for one that cannot be loaded."""
        session = self._session = OnnxSession.open(file.path, threads=threads)
        if set(session.inputs) != _FED or OUTPUT not in session.outputs:
            has = f"inputs {', '.join(session.inputs)} and outputs {', '.join(session.outputs)}"
            raise ModelDamagedError(f"{file.path} is no reader: it has {has}", hint="export it again")

    def scores(self, windows: Sequence[Window]) -> list[Floats]:
        """See `Scorer.scores`."""
        return [self._run(window) for window in windows]

    def _run(self, window: Window) -> Floats:
        feeds = {"input_ids": np.array([window.ids]), "token_type_ids": np.array([window.segments])}
        scores: Floats = self._session.run([OUTPUT], feeds)[0].numpy()
        return checked(scores[0] if scores.shape[:1] == (1,) else scores, window)


def checked(scores: Floats, window: Window) -> Floats:
    """The scores of a window. Raises `EngineError` where they are none."""
    if scores.shape != (len(window.ids), 3):
        raise EngineError(f"a reader gave scores of shape {list(scores.shape)} for {len(window.ids)} tokens")
    if not np.isfinite(scores).all():
        raise EngineError("a reader gave numbers that are not finite", hint="its file may be damaged")
    return scores


def read_head(graph: OnnxGraph, hidden: int) -> tuple[Floats, Floats, Floats]:
    """What a reader has beside its encoder: `SEGMENTS`, `HEAD`, `HEAD_BIAS`. Raises `NotBertError` without them."""
    return (
        _stored(graph, SEGMENTS, (2, hidden)),
        _stored(graph, HEAD, (hidden, 3)),
        _stored(graph, HEAD_BIAS, (3,)),
    )


def _stored(graph: OnnxGraph, name: str, shape: tuple[int, ...]) -> Floats:
    value = graph.constant(name)
    if value is None or value.shape != shape:
        raise NotBertError(f"it has no {name} of {list(shape)}")
    return np.array(value, np.float32)
