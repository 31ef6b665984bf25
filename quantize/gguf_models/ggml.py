"""Rows of weights to ggml's quantized blocks and back, by ggml itself, in memory.

Knows types, blocks and ctypes, and nothing of models or files. Sizes of blocks are those of
`edge_sdk.model_files.gguf_header`, checked against the library when it is opened.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.engines.llama_library import library
from edge_sdk.errors import ConfigError, EngineError
from edge_sdk.model_files.gguf_header import TENSOR_TYPES

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
_BLOCKS = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
_SLICE = 1 << 24  # weights that are handled at once


class _Traits(ctypes.Structure):
    """ggml's `ggml_type_traits`, up to the function that makes floats of blocks."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


@cache
def _ggml() -> Any:
    library()  # started, its log silenced
    from llama_cpp._ggml import libggml

    for name in ("ggml_quantize_chunk", "ggml_quantize_requires_imatrix", "ggml_get_type_traits"):
        if not hasattr(libggml, name):
            raise EngineError(
                f"this llama-cpp-python lacks {name}", hint="pip install 'llama-cpp-python>=0.3.36,<0.4'"
            )
    libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    libggml.ggml_quantize_chunk.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    )
    libggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    libggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    return libggml


@cache
def _traits(type: str) -> Any:
    traits = _ggml().ggml_get_type_traits(_NUMBERS[type]).contents
    if (traits.blck_size, traits.type_size) != _BLOCKS[type]:
        raise EngineError(
            f"ggml's {type} has {traits.blck_size} weights in {traits.type_size} bytes, not {_BLOCKS[type]}",
            hint="pip install 'llama-cpp-python>=0.3.36,<0.4'",
        )
    return traits


def row_bytes(type: str, columns: int) -> int | None:
    """Bytes of a row, None where blocks of this type do not fill it. Raises `ConfigError` for an unknown type.

    >>> row_bytes("Q4_0", 576), row_bytes("Q4_K", 576)
    (324, None)
    """
    if type not in _BLOCKS:
        raise ConfigError(f"there is no tensor type {type!r}", hint=f"take one of {', '.join(_BLOCKS)}")
    block, size = _BLOCKS[type]
    return columns // block * size if columns % block == 0 else None


def requires_importance(type: str) -> bool:
    """Whether ggml refuses to make this type without knowing which columns matter."""
    return bool(_ggml().ggml_quantize_requires_imatrix(_NUMBERS[type]))


def quantize_rows(weights: Floats, type: str, importance: Floats | None = None) -> Bytes:
    """Rows of weights [rows, columns] as blocks [rows, bytes]; `importance` [columns] weighs squared errors.

    Raises `ConfigError` for a type whose blocks do not fill a row, or that needs `importance` and has none.
    """
    rows, columns = weights.shape
    size = row_bytes(type, columns)
    _traits(type)  # checked
    if size is None:
        raise ConfigError(f"rows of {columns} weights do not divide into blocks of {type}")
    if importance is None and requires_importance(type):
        raise ConfigError(f"{type} needs an importance matrix", hint="give a calibration text")
    if type == "F32":
        return np.ascontiguousarray(weights, np.float32).view(np.uint8)
    out = np.empty((rows, size), np.uint8)
    known = None if importance is None else np.ascontiguousarray(importance, np.float32)
    for start in range(0, rows, step := max(1, _SLICE // columns)):
        part = np.ascontiguousarray(weights[start : start + step], np.float32)
        if not np.isfinite(part).all():
            raise ConfigError("a weight is not a number or infinite")
        written = _ggml().ggml_quantize_chunk(
            *(_NUMBERS[type], part.ctypes.data, out[start:].ctypes.data, 0, len(part), columns),
            None if known is None else known.ctypes.data,
        )
        if written != len(part) * size:
            raise EngineError(f"ggml wrote {written} bytes of {type} in place of {len(part) * size}")
    return out


def dequantize_rows(raw: Bytes, type: str, columns: int) -> Floats:
    """Blocks [rows, bytes] as weights [rows, columns]."""
    rows = np.ascontiguousarray(raw)
    if rows.shape[1] != row_bytes(type, columns):
        raise ConfigError(f"a row of {columns} weights is not {rows.shape[1]} bytes of {type}")
    if type == "F32":
        return rows.view(np.float32)
    out = np.empty((len(rows), columns), np.float32)
    _TO_FLOAT(_traits(type).to_float)(rows.ctypes.data, out.ctypes.data, out.size)
    return out
