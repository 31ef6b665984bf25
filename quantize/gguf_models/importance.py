"""Importance matrices collected in process: how strongly a text drives each input column of a model's weights.

llama.cpp reads the text and shows what every weight is multiplied with. Knows nothing of how a quantizer uses that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device import available_memory, default_threads
from edge_sdk.documents.parse import SUFFIXES, parse_file
from edge_sdk.errors import ConfigError, DocumentError, EngineError
from edge_sdk.model_files.gguf_header import GgufHeader, TensorInfo, read_header

from .activations import ObservedModel
from .importance_matrix import Importance
from .window_logits import SLICE

__all__ = ["MAX_TOKENS", "Importance", "collect_importance", "read_texts"]

Floats = NDArray[np.float32]
Update = Callable[[float, float | None, str], None]

MAX_TOKENS = 20_000
_LEAST_TOKENS = 16
_MOST_CHARACTERS, _PIECES = 4 << 20, 256  # of a longer text this many are read, in so many pieces


def collect_importance(
    model: Path,
    text: str | Sequence[str] | Sequence[int],
    *,
    source: str,
    context: int = 512,
    max_tokens: int = MAX_TOKENS,
    threads: int | None = None,
    products: bool | Collection[str] = False,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> Importance:
    """Let the model of `model` read a text, several, or tokens, in windows of `context`, and note its activations.

    Of more than `max_tokens` tokens, windows at equal distances are read. Every two-dimensional weight of the
    blocks is noted, and the output matrix, which may be `token_embd.weight`. `source` says what was read.
    `products` asks for the mean of x xᵀ of all weights, or of those named: for 135 million weights 0.4 GB, for 1.5
    billion 10 GB. Raises `ConfigError` for too short a text, `EngineError` where memory is too small, and
    `KeyboardInterrupt` when `cancel` is set.
    """
    header = read_header(model)
    weights = {tensor.name: tensor for tensor in header.tensors if len(tensor.shape) > 1}
    asked = set(weights if products is True else products or ())
    if unknown := asked - weights.keys():
        raise ConfigError(f"{model.name} has no weight {min(unknown)!r}")
    context = min(context, max_tokens, header.context_length or context)
    if context < _LEAST_TOKENS:
        raise ConfigError(f"windows of {context} tokens are too short", hint=f"use {_LEAST_TOKENS} or more")
    _check_memory(model, header, context, sum(4 * weights[name].shape[0] ** 2 for name in asked))
    squares, correlations, routed = (
        _Sums(weights, _squares),
        _Sums(asked, lambda rows: rows.T @ rows),
        _RoutedSums(weights),
    )

    def visit(name: str, source: int, rows: Floats, experts: NDArray[np.int32] | None) -> None:
        if experts is not None:
            routed.add(name, rows, experts)
            return
        squares.add(name, source, rows)
        correlations.add(name, source, rows)

    observed = ObservedModel(
        model, context=context, threads=threads or default_threads(), weights=weights, visit=visit
    )
    try:
        tokens = _tokens(observed, text)
        if len(tokens) < _LEAST_TOKENS:
            raise ConfigError(
                f"the text has {len(tokens)} tokens, too few to learn from", hint="give a longer text"
            )
        windows = observed.windows(tokens, min(context, len(tokens)))
        most = max(1, max_tokens // windows.shape[1])
        picked = np.unique(np.linspace(0, len(windows) - 1, min(most, len(windows))).round().astype(int))
        total = len(picked) * windows.shape[1]
        for done, at in enumerate(picked):
            progress(done * windows.shape[1], total, "reading the calibration text")
            observed.evaluate(windows[at], cancel)
        progress(total, total, "")
    finally:
        observed.close()
    found = squares.means() | routed.means()
    if not found:
        raise EngineError(
            f"llama.cpp showed no activations of {model.name}", hint="it is no model of plain matrices"
        )
    counts = squares.counts() | routed.counts
    return Importance(
        found,
        tokens=max(int(each.max()) for each in counts.values()),
        source=source,
        context=windows.shape[1],
        counts=counts,
        products=correlations.means(),
    )


def read_texts(paths: Sequence[Path], skipped: list[str]) -> list[str]:
    """The texts of files, and of folders' documents of the formats that `edge add` reads.

    What a folder holds and cannot be read goes to `skipped`; a file that is named raises `DocumentError`.
    """
    texts = []
    for path in paths:
        if not path.is_dir():
            texts.append(parse_file(path).text)
            continue
        for file in sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES):
            try:
                texts.append(parse_file(file).text)
            except DocumentError as error:
                skipped.append(str(error))
    if not texts:
        raise ConfigError(f"no document in {', '.join(map(str, paths))} can be read", hint="give a text file")
    return texts


class _Sums:
    """Sums of a measure of rows for each weight; weights with the same input share theirs."""

    def __init__(self, names: Collection[str], measure: Callable[[Floats], NDArray[np.floating]]) -> None:
        self.sums: dict[str, NDArray[np.floating]] = {}  # of the first of those that share
        self.rows: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self._names, self._measure = names, measure
        self._inputs: dict[int, str] = {}  # of the evaluation that goes on
        self._seen: set[str] = set()

    def add(self, name: str, source: int, rows: Floats) -> None:
        if name not in self._names:
            return
        if name in self._seen:  # the next evaluation has begun, and its inputs lie elsewhere
            self._seen.clear()
            self._inputs.clear()
        self._seen.add(name)
        first = self.first.setdefault(name, self._inputs.setdefault(source, name))
        if name == first:
            if name in self.sums:
                self.sums[name] += self._measure(rows)
            else:
                self.sums[name] = self._measure(rows)
            self.rows[name] = self.rows.get(name, 0) + len(rows)

    def means(self) -> dict[str, Floats]:
        """For every weight; those that share have the same array. The sums are gone after it."""
        means = {}
        for name, total in self.sums.items():
            total /= self.rows[name]
            means[name] = total.astype(np.float32, copy=False)
        return {name: means[first] for name, first in self.first.items()}

    def counts(self) -> dict[str, NDArray[np.int64]]:
        return {name: np.array([self.rows[first]]) for name, first in self.first.items()}


class _RoutedSums:
    """Sums of squares for each expert of the stacks of experts."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}

    def add(self, name: str, rows: Floats, experts: NDArray[np.int32]) -> None:
        tensor = self._tensors[name]
        sums = self._sums.setdefault(name, np.zeros((tensor.shape[2], tensor.shape[0])))
        counts = self.counts.setdefault(name, np.zeros(tensor.shape[2], np.int64))
        np.add.at(counts, experts, 1)
        for expert in np.unique(experts):
            sums[expert] += _squares(rows[experts == expert])

    def means(self) -> dict[str, Floats]:
        return {
            name: (sums / np.maximum(self.counts[name], 1)[:, None]).astype(np.float32)
            for name, sums in self._sums.items()
        }


def _squares(rows: Floats) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
    return squares


def _products(rows: Floats) -> Floats:
    return rows.T @ rows


def _tokens(model: ObservedModel, text: str | Sequence[str] | Sequence[int]) -> list[int]:
    texts = [text] if isinstance(text, str) else [each for each in text if isinstance(each, str)]
    return model.plain_tokens(_shortened(texts)) if texts else [int(each) for each in text]


def _shortened(texts: Sequence[str]) -> str:
    """All texts in one; of a long one, pieces at equal distances."""
    text = "\n\n".join(texts)
    if len(text) <= _MOST_CHARACTERS:
        return text
    size = _MOST_CHARACTERS // _PIECES
    starts = np.linspace(0, len(text) - size, _PIECES).astype(int)
    return "\n\n".join(text[start : start + size] for start in starts)


def _check_memory(model: Path, header: GgufHeader, context: int, products: int) -> None:
    needed = header.file_bytes + header.kv_bytes(context) + 4 * SLICE * header.vocabulary + products
    free = available_memory()
    if free is not None and needed > free:
        raise EngineError(
            f"reading a text with {model.name} needs {needed >> 20} MiB of memory, {free >> 20} MiB are free",
            hint="close other programs, or ask for the products of fewer weights" if products else "",
        )
