"""The next few tokens of a greedy answer in C, with nothing between two evaluations but the figures of the logits.

Only where the kernels were built, and for a llama.cpp whose batches have the fields that `greedy.c` knows. Knows
nothing of texts or of when an answer is over.
"""

from __future__ import annotations

import ctypes
from typing import Any

from kernels.library import load
from kernels.logits import FAILURES, Figures, LogitsFigures, figures_of

MOST = 64
"""Steps of one call."""
_BATCH = ("n_tokens", "token", "embd", "pos", "n_seq_id", "seq_id", "logits")


class _Model(ctypes.Structure):
    """`edge_greedy_model` of greedy.c."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("vocabulary", ctypes.c_void_p),
        ("decode", ctypes.c_void_p),
        ("row", ctypes.c_void_p),
        ("is_end", ctypes.c_void_p),
        ("size", ctypes.c_int32),
        ("sequence", ctypes.c_int32),
        ("position", ctypes.c_int32),
    )


class _Step(ctypes.Structure):
    """`edge_greedy_step`."""

    _fields_ = (("figures", Figures), ("seconds", ctypes.c_double))


class _End(ctypes.Structure):
    """`edge_greedy_end`."""

    _fields_ = (("decode", ctypes.c_int32), ("logits", ctypes.c_int32))


class Greedy:
    """Runs llama.cpp's functions; one thread at a time."""

    def __init__(self, kernel: Any, lib: Any) -> None:
        """Use `open_greedy`."""
        self._kernel, self._steps, self._end = kernel, (_Step * MOST)(), _End()
        functions = (lib.llama_decode, lib.llama_get_logits_ith, lib.llama_vocab_is_eog)
        self._functions = [ctypes.cast(each, ctypes.c_void_p) for each in functions]

    def run(
        self,
        context: Any,
        vocabulary: Any,
        size: int,
        token: int,
        most: int,
        seconds: float,
        place: tuple[int, int] = (0, -1),
    ) -> tuple[list[tuple[LogitsFigures, float]], int]:
        """Evaluate `token`, then what is likeliest behind it: `most` tokens at most, as many as may take `seconds`.

        For each what its row of `size` floats says, and how many seconds the evaluation took; the last token that
        is chosen has not been evaluated. And 0, or what llama.cpp returned of the evaluation behind them, which
        failed: the memory may hold more than is told then. -1 stands for a row that is none; raises `ValueError`
        where the first one is. `place` is the sequence and the position of `token` in a context of several.
        """
        model, end = _Model(context, vocabulary, *self._functions, size, *place), self._end
        count = self._kernel(model, token, min(most, MOST), seconds, self._steps, end)
        if end.logits and not count:
            raise ValueError(FAILURES[end.logits])
        steps = [(step.figures, step.seconds) for step in self._steps[:count]]
        found = [(figures_of(figures, figures.best, figures.max), took) for figures, took in steps]
        return found, -1 if end.logits else int(end.decode)


def open_greedy(lib: Any) -> Greedy | None:
    """For llama-cpp-python's low-level module; None where that cannot be."""
    kernel = load("edge_greedy")
    batch = lib.llama_batch
    pointer = ctypes.sizeof(ctypes.c_void_p)
    laid_out = [(name, getattr(batch, name).offset) for name, *_ in batch._fields_]
    if kernel is None or laid_out != [(name, pointer * at) for at, name in enumerate(_BATCH)]:
        return None
    if (batch.n_tokens.size, ctypes.sizeof(batch)) != (4, 7 * pointer):
        return None
    kernel.argtypes = (
        ctypes.POINTER(_Model),
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_double,
        ctypes.POINTER(_Step),
        ctypes.POINTER(_End),
    )
    kernel.restype = ctypes.c_int32
    return Greedy(kernel, lib)
