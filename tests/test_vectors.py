from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edge_sdk import vectors
from edge_sdk.vectors import VectorIndex, quantize_rows


def unit_rows(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def index_of(rows: NDArray[np.float32], ids: NDArray[np.int64] | None = None) -> VectorIndex:
    return VectorIndex(np.arange(len(rows)) if ids is None else ids, *quantize_rows(rows))


@given(arrays(np.float32, (3, 7), elements=st.floats(-1, 1, width=32)))
def test_a_component_is_off_by_at_most_half_a_step(rows: NDArray[np.float32]) -> None:
    codes, scales = quantize_rows(rows)
    error = np.abs(codes.astype(np.float64) * scales[:, None] - rows)
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    assert (error <= scales[:, None] * 0.5001 + 1e-38).all()


def test_rows_of_zeros_and_no_rows_are_quantised() -> None:
    codes, scales = quantize_rows(np.zeros((2, 4), np.float32))
    assert not codes.any()
    assert not scales.any()
    assert quantize_rows(np.empty((0, 4), np.float32))[0].shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    rows = unit_rows(4, 8)
    index = index_of(rows)
    rows[2, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantize_rows(rows)
    with pytest.raises(ValueError, match="not finite"):
        index.top_k(rows[2], 1)


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 12), st.integers(0, 9), st.integers(0, 100))
def test_the_search_is_exact_over_the_codes(count: int, dimension: int, k: int, tile: int, seed: int) -> None:
    """Also where the last block and the last tile are not full."""
    rows, query = unit_rows(count, dimension, seed), unit_rows(1, dimension, seed + 1)[0]
    ids = np.arange(count) * 3 + 5
    index = index_of(rows, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "_TILE", tile * dimension)
        patch.setattr(vectors, "_BLOCK", 17 * dimension)
        found, cosines = index.top_k(query, k)
    exact = (index.codes.astype(np.float64) @ query) * index.scales
    assert np.allclose(cosines, np.sort(exact)[::-1][:k].clip(-1, 1), atol=1e-5)
    assert np.allclose(cosines, exact[np.searchsorted(ids, found)].clip(-1, 1), atol=1e-5)
    assert (np.diff(cosines) <= 0).all()


def test_int8_finds_nearly_what_float32_finds() -> None:
    rows, queries = unit_rows(2000, 96), unit_rows(50, 96, seed=1)
    index = index_of(rows)
    shared = [
        len(set(np.argsort(-(rows @ query))[:10]) & set(index.top_k(query, 10)[0].tolist())) for query in queries
    ]
    assert np.mean(shared) >= 9.5


def test_equal_cosines_come_in_the_order_of_the_ids() -> None:
    row = unit_rows(1, 16)
    index = index_of(np.repeat(row, 300, axis=0), np.arange(300) * 2)
    assert index.top_k(row[0], 4)[0].tolist() == [0, 2, 4, 6]


def test_the_search_can_be_limited_to_some_ids() -> None:
    rows = unit_rows(60, 16)
    index = index_of(rows, np.arange(60) + 100)
    found, cosines = index.top_k(rows[7], 3, allowed={103, 107, 150, 999})
    assert found[0] == 107
    assert set(found.tolist()) == {103, 107, 150}
    assert np.allclose(cosines, index.cosines(rows[7], found.tolist()), atol=1e-6)
    assert len(index.top_k(rows[7], 3, allowed=set())[0]) == 0


def test_fewer_rows_than_asked_for_give_fewer() -> None:
    rows = unit_rows(3, 8)
    assert len(index_of(rows).top_k(rows[0], 10)[0]) == 3
    assert len(index_of(rows).top_k(rows[0], 0)[0]) == 0
    assert len(index_of(rows[:0]).top_k(rows[0], 5)[0]) == 0


def test_the_cosine_of_an_unknown_id_is_not_a_number() -> None:
    rows = unit_rows(3, 8)
    index = index_of(rows, np.array([2, 4, 6]))
    cosines = index.cosines(rows[1], [4, 5, 99, -1, 2])
    assert cosines[0] == pytest.approx(1, abs=0.01)
    assert np.isnan(cosines).tolist() == [False, True, True, True, False]
    assert index.cosines(rows[1], []).shape == (0,)


def test_cosines_stay_within_their_range() -> None:
    row = np.full((1, 9), 1 / 3, np.float32)
    assert index_of(row).top_k(row[0], 1)[1][0] <= 1


def test_what_does_not_fit_together_is_refused() -> None:
    codes, scales = quantize_rows(unit_rows(3, 8))
    with pytest.raises(ValueError, match="ascending"):
        VectorIndex(np.array([1, 3, 2]), codes, scales)
    with pytest.raises(ValueError, match="ids"):
        VectorIndex(np.array([1, 2]), codes, scales)
    with pytest.raises(ValueError, match="scales"):
        VectorIndex(np.array([1, 2, 3]), codes, scales[:2])
    with pytest.raises(ValueError, match="components"):
        VectorIndex(np.array([1, 2, 3]), codes, scales).top_k(np.ones(9, np.float32), 1)


def test_an_index_cannot_be_changed() -> None:
    index = index_of(unit_rows(3, 8))
    with pytest.raises(ValueError, match="read-only"):
        index.codes[0, 0] = 1


def test_a_search_needs_one_block_of_memory_and_the_scores() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (40_000, 384), dtype=np.int8)
    index = VectorIndex(np.arange(40_000), codes, np.full(40_000, 0.001, np.float32))
    query = unit_rows(1, 384)[0]
    tracemalloc.start()
    index.top_k(query, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * vectors._BLOCK + 16 * 40_000 + (1 << 20)  # 3.7 MB; the rows as float32 are 61 MB
