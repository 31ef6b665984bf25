"""Every path of the scan kernel against plain numpy: integers to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.kernel_faces import scan

SIZES = st.sampled_from([0, 1, 2, 7, 8, 63, 64, 65, 255, 256, 257, 300])
DIMENSIONS = st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 383, 384, 385, 1024, 4096])
PATHS = [*scan.instruction_sets(), None]  # None: numpy


every_path = pytest.mark.parametrize("isa", PATHS, ids=lambda isa: scan.INSTRUCTION_SETS.get(isa, "numpy"))


@contextmanager
def on(isa: int | None) -> Iterator[None]:
    """The kernel out of sight for the numpy path."""
    with pytest.MonkeyPatch.context() as patch:
        if isa is None:
            patch.setattr(scan, "_library", lambda: None)
        yield


def data(seed: int, rows: int, dimension: int, offset: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of the whole range at an address that is `offset` past a multiple of 64."""
    random = np.random.default_rng(seed)
    raw = np.empty(rows * dimension + 128, np.int8)
    start = -raw.ctypes.data % 64 + offset
    codes = raw[start : start + rows * dimension].reshape(rows, dimension)
    codes[:] = random.integers(-128, 128, (rows, dimension))
    return codes, random.uniform(0.001, 0.01, rows).astype(np.float32)


def extreme_query(seed: int, dimension: int) -> NDArray[np.int16]:
    """Also the largest codes there are: sums come as near to overflow as they can."""
    random = np.random.default_rng(seed)
    query = random.choice(np.array([-1.0, 1.0, 0.0, 0.3], np.float32), dimension)
    return scan.quantize_query(query if seed % 2 else random.standard_normal(dimension).astype(np.float32))[0]


def expected_scores(
    codes: NDArray[np.int8], scales: NDArray[np.float32], query: NDArray[np.int16]
) -> NDArray[np.float32]:
    dots = codes.astype(np.int64) @ query.astype(np.int64)
    assert (np.abs(dots) < 2**31).all()
    return dots.astype(np.int32).astype(np.float32) * scales


@every_path
@given(
    st.integers(0, 99), SIZES, DIMENSIONS, st.integers(0, 63), st.integers(0, 70), st.integers(1, 3), st.booleans()
)
def test_the_best_rows_are_those_of_plain_arithmetic(
    isa: int | None, seed: int, rows: int, dimension: int, offset: int, k: int, queries: int, filtered: bool
) -> None:
    codes, scales = data(seed, rows, dimension, offset)
    scales[: rows // 2] = 0.002  # ties, where the codes are few
    asked = np.stack([extreme_query(seed + at, dimension) for at in range(queries)])
    allowed = np.random.default_rng(seed).random(rows) < (0.1 if seed % 3 else 0.6)
    with on(isa):
        found, scores = scan.top_k(codes, scales, asked, k, scan.bitmap(allowed) if filtered else None, isa=isa)
    for at, query in enumerate(asked):
        exact = expected_scores(codes, scales, query)
        order = np.lexsort((np.arange(rows), -exact))
        order = order[allowed[order]] if filtered else order
        assert found[at].tolist() == order[:k].tolist()
        assert scores[at].tolist() == exact[order[:k]].tolist()


@every_path
@given(st.integers(0, 99), SIZES, DIMENSIONS, st.integers(0, 63))
def test_chosen_rows_score_as_plain_arithmetic(
    isa: int | None, seed: int, rows: int, dimension: int, offset: int
) -> None:
    codes, scales = data(seed, rows, dimension, offset)
    query = extreme_query(seed, dimension)
    chosen = np.random.default_rng(seed).integers(0, max(rows, 1), min(rows, 40))
    with on(isa):
        scores = scan.score_rows(codes, scales, query, chosen, isa=isa)
    assert scores.tolist() == expected_scores(codes, scales, query)[chosen].tolist()


@every_path
@given(st.integers(0, 99), SIZES, DIMENSIONS, st.integers(0, 20))
def test_hamming_distances_are_those_of_the_signs(
    isa: int | None, seed: int, rows: int, dimension: int, cut: int
) -> None:
    codes, _ = data(seed, rows, dimension)
    codes[codes % 5 == 0] = 0
    signs = np.full(scan.sign_blocks(rows, dimension), 2**64 - 1, np.uint64)
    cut = min(cut, rows)
    query = extreme_query(seed, dimension)
    distances = np.zeros(8 * len(signs), np.uint16)
    with on(isa):
        scan.pack_signs(codes[cut:], signs, cut)
        scan.pack_signs(codes[:cut], signs)
        scan.hamming(signs, scan.sign_words(query), distances, isa=isa)
    assert distances[:rows].tolist() == ((codes > 0) != (query > 0)).sum(axis=1).tolist()


@every_path
@given(st.integers(0, 99), st.integers(0, 700), st.integers(0, 90), st.integers(1, 400), st.booleans())
def test_the_nearest_are_the_smallest_distances_and_the_first_of_equal_ones(
    isa: int | None, seed: int, rows: int, k: int, spread: int, filtered: bool
) -> None:
    random = np.random.default_rng(seed)
    distances = random.integers(0, spread, rows).astype(np.uint16)
    allowed = random.random(rows) < 0.5
    with on(isa):
        found = scan.nearest(distances, k, scan.bitmap(allowed) if filtered else None)
    order = np.argsort(distances, kind="stable")
    order = order[allowed[order]] if filtered else order
    assert found.tolist() == sorted(order[:k].tolist())


@given(st.integers(1, 4096), st.integers(0, 9))
def test_a_query_is_as_fine_as_no_overflow_allows(dimension: int, seed: int) -> None:
    query = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    codes, scale = scan.quantize_query(query)
    assert 128 * np.abs(codes.astype(np.int64)).sum() < 2**31
    assert np.abs(codes).max() >= 4000
    assert np.allclose(codes * scale, query, atol=0.51 * scale)


@pytest.mark.parametrize("query", [[], [0.0, 0.0], [1e-44, 0.0]])
def test_a_query_of_nothing_has_no_scale(query: list[float]) -> None:
    codes, scale = scan.quantize_query(np.array(query, np.float32))
    assert codes.shape == (len(query),)
    assert not codes.any()
    assert scale == 0


def test_what_the_kernel_cannot_take_is_refused() -> None:
    codes, scales = data(0, 9, 12)
    query = extreme_query(0, 12)
    with pytest.raises(ValueError, match="match"):
        scan.top_k(codes, scales[:8], query[None], 3)
    with pytest.raises(ValueError, match="match"):
        scan.top_k(codes[:, :11], scales, query[None], 3)
    with pytest.raises(ValueError, match="int8"):
        scan.top_k(codes.astype(np.int16), scales, query[None], 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matrix"):
        scan.top_k(codes, scales, query, 3)
    for narrow in (np.int8, np.float32):
        with pytest.raises(ValueError, match="int16"):
            scan.top_k(codes, scales, query[None].astype(narrow), 3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="int16"):
            scan.score_rows(codes, scales, query.astype(narrow), np.array([1]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bitmap"):
        scan.top_k(codes, scales, query[None], 3, np.zeros(0, np.uint64))
    with pytest.raises(IndexError, match="rows"):
        scan.score_rows(codes, scales, query, np.array([9]))
    with pytest.raises(ValueError, match="no room"):
        scan.pack_signs(codes, np.zeros((1, 1, 8), np.uint64))
    with pytest.raises(ValueError, match="uint64"):
        scan.pack_signs(codes, np.zeros((2, 1, 8), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint16"):
        scan.hamming(np.zeros((1, 1, 8), np.uint64), np.zeros(1, np.uint64), np.zeros(8, np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint16"):
        scan.nearest(np.zeros(8, np.uint8), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not match"):
        scan.hamming(np.zeros((1, 1, 8), np.uint64), np.zeros(1, np.uint64), np.zeros(7, np.uint16))
    with pytest.raises(ValueError, match="components"):
        scan.quantize_query(np.zeros(4097, np.float32))


@pytest.mark.skipif(scan.backend() == "numpy", reason="the C kernel was not built")
def test_a_path_of_another_processor_is_refused() -> None:
    codes, scales = data(0, 9, 12)
    foreign = min(set(scan.INSTRUCTION_SETS) - set(scan.instruction_sets()))
    with pytest.raises(ValueError, match="instruction set"):
        scan.top_k(codes, scales, extreme_query(0, 12)[None], 3, isa=foreign)
    assert scan.instruction_sets()[0] == 1  # the portable one is always there
