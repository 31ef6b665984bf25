"""Scans over vectors: int8 rows with their best k, chosen rows, and sign bits with their Hamming distances.

The C kernel (`scan.c`) where the install could build it, numpy otherwise; integers agree to the bit. Arrays in,
arrays out: knows nothing of ids, files or cosines.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.library import load

MAX_DIMENSION = 4096
INSTRUCTION_SETS = {1: "portable", 2: "avx2", 4: "avx512", 8: "neon", 16: "dotprod"}
_FUNCTIONS = ("int8", "rows", "pack", "hamming", "nearest", "isa", "read")
_BLOCK = 1 << 18  # values decoded to float64 at a time by the numpy path: 2 MiB, about a second-level cache
_TILE = 8192  # values in one BLAS call of the numpy path; see `_dots`


def quantize_query(query: NDArray[np.float32]) -> tuple[NDArray[np.int16], float]:
    """A query [d] as int16 codes and a scale, as fine as an int32 dot product with any int8 row allows.

    16 bits up to 514 components, 12 bits at 4,096. Raises `ValueError` where a value is not finite.

    >>> codes, scale = quantize_query(np.array([0.6, -0.8], dtype=np.float32))
    >>> codes.tolist(), round(scale, 9)
    ([24479, -32639], 2.4511e-05)
    """
    query = np.ascontiguousarray(query, dtype=np.float32)
    if query.ndim != 1 or query.size > MAX_DIMENSION:
        raise ValueError(f"a query of shape {query.shape}, at most {MAX_DIMENSION} components are possible")
    if not np.isfinite(query).all():
        raise ValueError("the query holds a value that is not finite")
    limit = min(32639, (2**31 - 1) // (128 * max(1, query.size)))
    scale = float(np.abs(query).max(initial=0.0)) / limit
    if not np.float32(scale):
        return np.zeros(query.size, np.int16), 0.0
    return np.clip(np.rint(query / scale), -limit, limit).astype(np.int16), scale


def top_k(
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    queries: NDArray[np.int16],
    k: int,
    allowed: NDArray[np.uint64] | None = None,
    *,
    isa: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows with the largest `scales[row] * (codes[row] @ query)`, for each query in one pass over the rows.

    `codes` [n, d] and `scales` [n] contiguous, `queries` [q, d] from `quantize_query`; `allowed` has a bit a row
    (`bitmap`). Gives rows and scores [q, min(k, allowed rows)], best first, equal scores by row.
    """
    if queries.ndim != 2:
        raise ValueError(f"queries {queries.shape} are not a matrix")
    _check_rows(codes, scales, queries)
    k = max(0, min(k, len(codes)))
    rows = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    if (library := _library()) is None:
        return _numpy_top_k(codes, scales, queries, k, allowed)
    found = ctypes.c_size_t()
    queries, bits = np.ascontiguousarray(queries), _bits(allowed, len(codes))
    # fmt: off
    _call(library["int8"](
        _at(codes), _at(scales), len(codes), codes.shape[1], _at(queries), len(queries), _at(bits), k,
        isa or library["best"], _at(rows), _at(scores), ctypes.byref(found)))
    # fmt: on
    if found.value < k and len(queries) > 1:  # the kernel writes k entries apart
        return rows[:, : found.value].copy(), scores[:, : found.value].copy()
    return rows[:, : found.value], scores[:, : found.value]


def score_rows(
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    query: NDArray[np.int16],
    rows: NDArray[np.int64],
    *,
    isa: int | None = None,
) -> NDArray[np.float32]:
    """`scales[row] * (codes[row] @ query)` of chosen rows [m], in their order."""
    _check_rows(codes, scales, query)
    rows = np.ascontiguousarray(rows, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < len(codes):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(codes)}")
    scores = np.empty(len(rows), np.float32)
    if (library := _library()) is None:
        for start, dots in _dots(codes, query, rows):
            scores[start : start + len(dots)] = dots.astype(np.float32) * scales[rows[start : start + len(dots)]]
        return scores
    query = np.ascontiguousarray(query)
    # fmt: off
    _call(library["rows"](
        _at(codes), _at(scales), codes.shape[1], _at(query), _at(rows), len(rows), isa or library["best"],
        _at(scores)))
    # fmt: on
    return scores


def sign_blocks(rows: int, dimension: int) -> tuple[int, int, int]:
    """The shape of the array that holds the sign bits of so many rows: [blocks of 8 rows, words, 8].

    >>> sign_blocks(9, 384)
    (2, 6, 8)
    """
    return -(-rows // 8), -(-dimension // 64), 8


def pack_signs(codes: NDArray[np.int8], signs: NDArray[np.uint64], first: int = 0) -> None:
    """Write the sign bits of `codes` [n, d] (1 above 0) into `signs` as its rows `first`, `first + 1`, …"""
    count, dimension = codes.shape
    if signs.shape[1:] != sign_blocks(0, dimension)[1:] or not 0 <= first <= len(signs) * 8 - count:
        raise ValueError(f"sign blocks of shape {signs.shape} have no room for rows {first} to {first + count}")
    _check_types((codes, np.int8), (signs, np.uint64))
    if (library := _library()) is None:
        rows = np.arange(first, first + count)
        signs[rows // 8, :, rows % 8] = _sign_words(codes)
    else:
        codes = np.ascontiguousarray(codes)
        _call(library["pack"](_at(codes), count, dimension, first, _at(signs)))


def sign_words(query: NDArray[np.int16]) -> NDArray[np.uint64]:
    """The sign bits of one query [d], as `hamming` takes them: [ceil(d / 64)]."""
    words: NDArray[np.uint64] = _sign_words(query[None])[0]
    return words


def hamming(
    signs: NDArray[np.uint64], query: NDArray[np.uint64], out: NDArray[np.uint16], *, isa: int | None = None
) -> None:
    """Write how many sign bits of each row differ from `query` [words] to `out` [8 * blocks]."""
    if signs.shape[1:] != (len(query), 8) or out.shape != (8 * len(signs),):
        raise ValueError(f"sign blocks {signs.shape}, a query of {query.shape} and {out.shape} do not match")
    _check_types((signs, np.uint64), (query, np.uint64), (out, np.uint16))
    if (library := _library()) is None:
        for start in range(0, len(signs), 4096):
            part = np.bitwise_count(signs[start : start + 4096] ^ query[:, None]).sum(axis=1, dtype=np.uint16)
            out[8 * start : 8 * start + part.size] = part.reshape(-1)
    else:
        dimension = 64 * len(query)
        _call(library["hamming"](_at(signs), out.size, dimension, _at(query), isa or library["best"], _at(out)))


def nearest(distances: NDArray[np.uint16], k: int, allowed: NDArray[np.uint64] | None = None) -> NDArray[np.int64]:
    """The rows of the k smallest distances, ascending by row; among the largest that is taken, earlier rows win.

    `distances` is used up: with `allowed`, the rows that are not get the largest value.
    """
    _check_types((distances, np.uint16))
    k = max(0, min(k, len(distances)))
    if (library := _library()) is None:
        open_rows = (
            np.arange(len(distances)) if allowed is None else np.flatnonzero(_unpack(allowed, len(distances)))
        )
        order = np.argsort(distances[open_rows], kind="stable")[:k]
        return np.sort(open_rows[order]).astype(np.int64)
    rows = np.empty(k, np.int64)
    found = ctypes.c_size_t()
    bits = _bits(allowed, len(distances))
    _call(library["nearest"](_at(distances), len(distances), _at(bits), k, _at(rows), ctypes.byref(found)))
    return rows[: found.value]


def bitmap(chosen: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """A bit a row, as `allowed` takes it.

    >>> bitmap(np.array([True, False, True])).tolist()
    [5]
    """
    packed = np.packbits(chosen, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 8)).view("<u8").astype(np.uint64, copy=False)


def read_all(array: NDArray[Any]) -> None:
    """Read every byte of an array once, as fast as this processor can: the yardstick of a scan."""
    if (library := _library()) is None:
        array.view(np.uint64).max(initial=0)
    else:
        library["read"](_at(array), array.nbytes)


def backend() -> Literal["c", "numpy"]:
    """What does the work in this process."""
    return "numpy" if _library() is None else "c"


def instruction_sets() -> list[int]:
    """The paths that can run on this processor, slowest first; empty without the C kernel."""
    library = _library()
    return [] if library is None else [bit for bit in INSTRUCTION_SETS if bit & library["isa"]()]


# --- the library -------------------------------------------------------------------------------------


@cache
def _library() -> dict[str, Any] | None:
    library: dict[str, Any] = {name: load(f"edge_scan_{name}") for name in _FUNCTIONS}
    if None in library.values():
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    signatures = {
        "int8": (pointer, pointer, size, size, pointer, size, pointer, size, number, pointer, pointer, pointer),
        "rows": (pointer, pointer, size, pointer, pointer, size, number, pointer),
        "pack": (pointer, size, size, size, pointer),
        "hamming": (pointer, size, size, pointer, number, pointer),
        "nearest": (pointer, size, pointer, size, pointer, pointer),
        "isa": (),
        "read": (pointer, size),
    }
    for name, types in signatures.items():
        library[name].argtypes = types
        library[name].restype = ctypes.c_uint64 if name == "read" else number
    library["best"] = 1 << (library["isa"]().bit_length() - 1)
    return library


def _at(array: NDArray[Any] | None) -> int | None:
    if array is None:
        return None
    if not array.flags.c_contiguous:
        raise ValueError("the kernel takes contiguous arrays only")
    return array.ctypes.data


def _call(failure: int) -> None:
    if failure:
        raise ValueError(("", "too many rows or components", "not an instruction set of this processor")[failure])


def _check_rows(codes: NDArray[np.int8], scales: NDArray[np.float32], query: NDArray[np.int16]) -> None:
    if codes.ndim != 2 or scales.shape != (len(codes),) or codes.shape[1:] != query.shape[-1:]:
        raise ValueError(f"codes {codes.shape}, scales {scales.shape} and queries {query.shape} do not match")
    _check_types((codes, np.int8), (scales, np.float32), (query, np.int16))


def _check_types(*arrays: tuple[NDArray[Any], type[np.generic]]) -> None:
    """The kernel would read and write past the end of narrower values."""
    for array, wanted in arrays:
        if array.dtype != wanted:
            raise ValueError(f"an array is {array.dtype} and has to be {np.dtype(wanted)}")


def _bits(allowed: NDArray[np.uint64] | None, rows: int) -> NDArray[np.uint64] | None:
    if allowed is not None and (allowed.dtype != np.uint64 or len(allowed) * 64 < rows):
        raise ValueError(f"a bitmap of {len(allowed)} {allowed.dtype} is not one of {rows} rows")
    return allowed


# --- numpy -------------------------------------------------------------------------------------------


def _numpy_top_k(
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    queries: NDArray[np.int16],
    k: int,
    allowed: NDArray[np.uint64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    open_rows = np.arange(len(codes)) if allowed is None else np.flatnonzero(_unpack(allowed, len(codes)))
    k = min(k, len(open_rows))
    rows, best = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for at, query in enumerate(queries):
        scores = np.empty(len(codes), np.float32)
        for start, dots in _dots(codes, query, None):
            scores[start : start + len(dots)] = dots.astype(np.float32) * scales[start : start + len(dots)]
        kept = open_rows
        if 0 < k < len(open_rows):  # all equal to the k-th best stay, or the partition would break ties at random
            least = np.partition(scores[open_rows], len(open_rows) - k)[len(open_rows) - k]
            kept = open_rows[scores[open_rows] >= least]
        rows[at] = kept[np.lexsort((kept, -scores[kept]))[:k]]
        best[at] = scores[rows[at]]
    return rows, best


def _dots(
    codes: NDArray[np.int8], query: NDArray[np.int16], rows: NDArray[np.int64] | None
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Dot products of `query` with the rows of `codes`, block by block with the position of each block; exact.

    A block is multiplied as a stack of small tiles: OpenBLAS runs a product of fewer than 9,216 values on the
    calling thread. One big matrix-vector product goes to its thread pool instead, whose spinning threads took up
    to thirty times longer when another process had a core (24 ms instead of 0.7 for 10,000 rows of 384).
    """
    count, dimension = (len(codes) if rows is None else len(rows)), max(1, codes.shape[1])
    by = query.astype(np.float64)
    tile = max(1, _TILE // dimension)
    height = tile * max(1, _BLOCK // (tile * dimension))
    block = np.zeros((min(height, -(-count // tile) * tile), codes.shape[1]))
    for start in range(0, count, height):
        stop = min(start + height, count)
        block[: stop - start] = codes[start:stop] if rows is None else codes[rows[start:stop]]
        tiles = -(-(stop - start) // tile)
        stack = block[: tiles * tile].reshape(tiles, tile, codes.shape[1])
        yield start, (stack @ by).reshape(-1)[: stop - start]


def _sign_words(rows: NDArray[Any]) -> NDArray[np.uint64]:
    packed = np.packbits(rows > 0, axis=1, bitorder="little")
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return padded.view("<u8").astype(np.uint64, copy=False)


def _unpack(bits: NDArray[np.uint64], rows: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits.astype("<u8").view(np.uint8), bitorder="little", count=rows).astype(bool)
