"""Confidence figures of one row of logits: log-probability, entropy, margin.

The C kernel (`logits.c`) does it in one sweep where the install could build it, numpy otherwise; both agree to 1e-5
nats. Knows nothing of models or tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.library import load


@dataclass(frozen=True, slots=True)
class LogitsFigures:
    """What one row says: `logprob` is of `chosen`, `entropy` of the whole distribution, both in nats.

    `margin` is the largest logit less the second largest, which is the difference of their log-probabilities.
    `best` is the first index of the largest.
    """

    best: int
    chosen: int
    logprob: float
    entropy: float
    margin: float
    logsumexp: float


class Figures(ctypes.Structure):
    """`edge_logits_figures` of logits.h."""

    _fields_ = (
        ("best", ctypes.c_int32),
        ("max", ctypes.c_float),
        ("second", ctypes.c_float),
        ("logsumexp", ctypes.c_double),
        ("entropy", ctypes.c_double),
    )


Kernel = Callable[[Any, int, Any], int]
FAILURES = {1: "a row of logits is empty", 2: "the logits hold NaN or +inf, or nothing above -inf"}


def measure(row: NDArray[np.float32], chosen: int | None = None) -> LogitsFigures:
    """Measure a contiguous float32 row [vocabulary]; `chosen` is a token id, None for the best one.

    Raises `ValueError` where the row is empty, holds NaN or +inf, or holds nothing above -inf.

    >>> figures = measure(np.log(np.array([0.2, 0.7, 0.1], dtype=np.float32)), chosen=0)
    >>> figures.best, round(figures.logprob, 4), round(figures.entropy, 4), round(figures.margin, 4)
    (1, -1.6094, 0.8018, 1.2528)
    """
    row = np.ascontiguousarray(row, dtype=np.float32)
    return measure_at(row.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), row.size, chosen)


def measure_at(row: ctypes._Pointer[ctypes.c_float], count: int, chosen: int | None = None) -> LogitsFigures:
    """`measure` for `count` floats at an address, without a copy; the interpreter lock is released meanwhile."""
    figures = Figures()
    failure = _kernel(row, count, figures)
    if failure:
        raise ValueError(FAILURES[failure])
    chosen = figures.best if chosen is None else chosen
    if not 0 <= chosen < count:
        raise ValueError(f"token {chosen} is not one of {count}")
    return figures_of(figures, chosen, row[chosen])


def figures_of(found: Figures, chosen: int, logit: float) -> LogitsFigures:
    """What a kernel has found, for a token with its logit."""
    logprob = min(0.0, logit - found.logsumexp)  # rounding must not make a probability above 1
    return LogitsFigures(found.best, chosen, logprob, found.entropy, found.max - found.second, found.logsumexp)


def backend() -> Literal["c", "numpy"]:
    """What does the work in this process."""
    return "numpy" if _kernel is with_numpy else "c"


def with_numpy(row: ctypes._Pointer[ctypes.c_float], count: int, figures: Figures) -> int:
    """The kernel in numpy; the sums are in double precision."""
    if not count:
        return 1
    logits = np.ctypeslib.as_array(row, (count,))
    best = int(logits.argmax())  # the place of the first NaN where there is one
    top = logits[best]
    if not np.isfinite(top):
        return 2
    shifted = np.subtract(logits, top, dtype=np.float64)
    weights = np.exp(shifted)
    total = weights.sum()
    shifted[weights == 0] = 0  # 0 * -inf would be NaN
    figures.best, figures.max = best, top
    figures.second = max(logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf))
    figures.logsumexp = float(top) + float(np.log(total))
    figures.entropy = max(0.0, float(np.log(total) - weights @ shifted / total))
    return 0


def compiled(name: str = "edge_logits") -> Kernel | None:
    """A kernel of the shared library, None where it was not built."""
    kernel = load(name)
    if kernel is not None:
        kernel.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(Figures))
        kernel.restype = ctypes.c_int
    return kernel


_kernel: Kernel = compiled() or with_numpy
