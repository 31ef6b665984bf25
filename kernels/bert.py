"""A BERT encoder with 8-bit matrix products (`bert.c`): token ids to states or unit vectors, in C.

Where the library is absent, or the CPU has none of its fast instruction sets, `best_path` says so and the caller
takes another encoder. Knows nothing of files, text or threads: one `BertKernel` may be used from several at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.library import load

PORTABLE = "portable"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W + b, with W = codes * scales: codes int8 [inputs, outputs] above -128, scales and bias [outputs]."""

    codes: NDArray[np.int8]
    scales: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Norm:
    """Scale and shift of a layer normalisation."""

    gamma: Floats
    beta: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer; `attended` follows attention, `fed` the feed-forward part (post-norm)."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    up: Linear
    down: Linear
    attended: Norm
    fed: Norm


@dataclass(frozen=True, slots=True)
class BertWeights:
    """A whole encoder. Words are int8 [words, hidden] with one scale each; positions include token type 0."""

    heads: int
    epsilon: float
    words: NDArray[np.int8]
    word_scales: Floats
    positions: Floats
    embedded: Norm
    layers: tuple[Layer, ...]


class _Shape(ctypes.Structure):
    """`edge_bert_shape` of bert.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("layers", "hidden", "heads", "inner", "words", "positions")),
        ("epsilon", ctypes.c_float),
    )


class BertKernel:
    """Weights packed for one instruction set. Raises `ValueError` for a shape that the kernel does not have."""

    def __init__(self, weights: BertWeights, path: str | None = None) -> None:
        """`path` is one of `paths()`, by default the best."""
        words, self.hidden = weights.words.shape
        self.positions = len(weights.positions)
        inner = len(weights.layers[0].up.bias)
        shape = _Shape(
            len(weights.layers), self.hidden, weights.heads, inner, words, self.positions, weights.epsilon
        )
        number = paths()[path or best_path() or PORTABLE]
        size = _call("edge_bert_arena")(ctypes.byref(shape), number)
        if not size:
            raise ValueError(f"the kernel has no BERT of {self.hidden} dimensions in {weights.heads} heads")
        self._memory = _aligned(size)
        self._model = _call("edge_bert_new")(self._memory.ctypes.data, ctypes.byref(shape), number)
        self._fill(weights)

    def _fill(self, weights: BertWeights) -> None:
        hidden, inner = self.hidden, len(weights.layers[0].up.bias)
        model, norm = self._model, weights.embedded
        _call("edge_bert_set_embeddings")(
            model,
            _address(weights.words, np.int8, weights.words.shape),
            _address(weights.word_scales, np.float32, (len(weights.words),)),
            _address(weights.positions, np.float32, (self.positions, hidden)),
            *(_address(part, np.float32, (hidden,)) for part in (norm.gamma, norm.beta)),
        )
        for number, layer in enumerate(weights.layers):
            matrices = (layer.query, layer.key, layer.value, layer.output, layer.up, layer.down)
            for which, matrix in enumerate(matrices):
                shape = inner if which == 5 else hidden, inner if which == 4 else hidden
                _call("edge_bert_set_linear")(
                    model,
                    number,
                    which,
                    _address(matrix.codes, np.int8, shape),
                    _address(matrix.scales, np.float32, shape[1:]),
                    _address(matrix.bias, np.float32, shape[1:]),
                )
            for which, norm in enumerate((layer.attended, layer.fed)):
                parts = (_address(part, np.float32, (hidden,)) for part in (norm.gamma, norm.beta))
                _call("edge_bert_set_norm")(model, number, which, *parts)

    def workspace(self, tokens: int, longest: int) -> NDArray[np.uint8]:
        """Memory for runs of up to `tokens` tokens in texts of up to `longest`; for one call at a time."""
        return _aligned(_call("edge_bert_workspace")(self._model, tokens, longest))

    def states(self, text: Sequence[int], places: Sequence[int], workspace: NDArray[np.uint8]) -> Floats:
        """The state of each token: [len(text), hidden]. `places` are rows of the table of positions, one a token.

        Otherwise as `encode`. Raises `ValueError` also for places that are out of range, or not one a token.
        """
        ids, rows = (np.clip(np.array(part, np.int64), -1, 2**31 - 1).astype(np.int32) for part in (text, places))
        out = np.empty((len(ids), self.hidden), np.float32)
        length = np.array([len(ids)], np.int32)
        failure = len(rows) != len(ids) or _call("edge_bert_states")(
            self._model,
            ids.ctypes.data,
            rows.ctypes.data,
            length.ctypes.data,
            1,
            out.ctypes.data,
            workspace.ctypes.data,
            workspace.nbytes,
        )
        if failure:
            raise ValueError(f"{len(ids)} tokens at {len(rows)} places do not fit this model or its workspace")
        return out

    def encode(self, texts: Sequence[Sequence[int]], workspace: NDArray[np.uint8]) -> Floats:
        """Mean of the token states of each text, scaled to length 1: [len(texts), hidden], zeros without tokens.

        A row has the same bits whatever other texts are there. The interpreter lock is released meanwhile. Raises
        `ValueError` for an id or a length that is out of range and for a workspace that is too small.
        """
        lengths = np.array([len(text) for text in texts], np.int32)
        tokens = np.array([token for text in texts for token in text], np.int64)
        ids = np.clip(tokens, -1, 2**31 - 1).astype(np.int32)  # what is out of range stays so
        out = np.empty((len(texts), self.hidden), np.float32)
        failure = _call("edge_bert_encode")(
            self._model,
            ids.ctypes.data,
            lengths.ctypes.data,
            len(texts),
            out.ctypes.data,
            workspace.ctypes.data,
            workspace.nbytes,
        )
        if failure:
            raise ValueError(f"{len(ids)} tokens of {len(texts)} texts do not fit this model or its workspace")
        return out


@cache
def paths() -> dict[str, int]:
    """The instruction sets that this CPU can take, by name, best last; empty without the library."""
    if load("edge_bert_encode") is None:
        return {}
    found = {}
    number = 0
    while name := _call("edge_bert_path_name")(number):
        if _call("edge_bert_has_path")(number):
            found[name.decode()] = number
        number += 1
    return found


def best_path() -> str | None:
    """The fastest instruction set here; None without the library. `portable` is slower than other encoders."""
    return next(reversed(paths()), None)


def has_states() -> bool:
    """Whether the library has `states`: one that was built before it was added goes on without."""
    return load("edge_bert_states") is not None


def product(a: NDArray[np.int8], b: NDArray[np.int8], path: str) -> NDArray[np.int32]:
    """The exact matrix product of int8 codes, `b` above -128, by one of `paths()`: what all layers are made of."""
    a, b = np.ascontiguousarray(a, np.int8), np.ascontiguousarray(b, np.int8)
    if a.shape[1:] != b.shape[:1]:
        raise ValueError(f"matrices of {a.shape} and {b.shape} have no product")
    (rows, inputs), outputs = a.shape, b.shape[1]
    number = paths()[path]
    memory = _aligned(_call("edge_bert_product_memory")(number, rows, inputs, outputs))
    out = np.empty((rows, outputs), np.int32)
    _call("edge_bert_product")(
        number, a.ctypes.data, b.ctypes.data, rows, inputs, outputs, out.ctypes.data, memory.ctypes.data
    )
    return out


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # result first
    "edge_bert_path_name": (ctypes.c_char_p, _INT),
    "edge_bert_has_path": (_INT, _INT),
    "edge_bert_arena": (_SIZE, _POINTER, _INT),
    "edge_bert_new": (_POINTER, _POINTER, _POINTER, _INT),
    "edge_bert_set_embeddings": (None, *[_POINTER] * 6),
    "edge_bert_set_linear": (_INT, _POINTER, _INT, _INT, _POINTER, _POINTER, _POINTER),
    "edge_bert_set_norm": (_INT, _POINTER, _INT, _INT, _POINTER, _POINTER),
    "edge_bert_workspace": (_SIZE, _POINTER, _SIZE, _SIZE),
    "edge_bert_encode": (_INT, _POINTER, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE),
    "edge_bert_states": (_INT, _POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _SIZE),
    "edge_bert_product_memory": (_SIZE, _INT, _SIZE, _SIZE, _SIZE),
    "edge_bert_product": (_INT, _INT, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER),
}


@cache
def _call(name: str) -> Any:
    function = load(name)
    assert function is not None, "ask `best_path` first"
    function.restype, *function.argtypes = _SIGNATURES[name]
    return function


def _aligned(size: int) -> NDArray[np.uint8]:
    """Zeroed bytes at an address that is a multiple of 64."""
    memory = np.zeros(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def _address(array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> ctypes.c_void_p:
    """The address of an array of exactly this type and shape, contiguous; the caller keeps it alive."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"an array is {array.dtype}{list(array.shape)} and has to be {list(shape)}")
    return ctypes.c_void_p(array.ctypes.data)
