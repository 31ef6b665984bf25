"""Functions in the place of llama.cpp's, for groups of greedy tokens, that fail after so many calls."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge_sdk.engines.llama import LlamaModel


@contextmanager
def failing(model: LlamaModel, behind: int, what: str) -> Iterator[None]:
    """Behind so many calls an evaluation fails ("code 3"), or a row holds no numbers ("NaN")."""
    lib, greedy, calls = model._lib, model._greedy, list[int]()
    assert greedy is not None
    bad = np.full(model.size, np.nan, np.float32)

    def decode(context: int, batch: Any) -> int:
        calls.append(1)
        return 3 if len(calls) > behind else int(lib.llama_decode(context, batch))

    def row(context: int, place: int) -> int:
        calls.append(1)
        right = ctypes.cast(lib.llama_get_logits_ith(context, place), ctypes.c_void_p).value
        return bad.ctypes.data if len(calls) > behind else right or 0

    if what == "NaN":
        at, ours = 1, ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(row)
    else:
        at, ours = 0, ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, lib.llama_batch)(decode)
    theirs = greedy._functions[at]
    greedy._functions[at] = ctypes.cast(ours, ctypes.c_void_p)
    try:
        yield
    finally:
        greedy._functions[at] = theirs
