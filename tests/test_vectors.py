from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edge_sdk.kernel_faces import scan
from edge_sdk.storage import vectors
from edge_sdk.storage.vectors import VectorArena, VectorIndex, quantize_rows


def unit_rows(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def index_of(rows: NDArray[np.float32], ids: NDArray[np.int64] | None = None) -> VectorIndex:
    return VectorIndex.of(np.arange(len(rows)) if ids is None else ids, *quantize_rows(rows))


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


@given(st.integers(1, 700), st.integers(1, 40), st.integers(1, 12), st.integers(0, 100))
def test_the_search_is_exact_over_the_codes(count: int, dimension: int, k: int, seed: int) -> None:
    """Also where rows lie in several chunks and the last one is not full."""
    rows, query = unit_rows(count, dimension, seed), unit_rows(1, dimension, seed + 1)[0]
    ids = np.arange(count) * 3 + 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "FIRST_CHUNK", 64)
        patch.setattr(vectors, "LARGEST_CHUNK", 128)
        index = index_of(rows, ids)
        found, cosines = index.top_k(query, k)
        same = index.top_k(query, k, exact=False, proposed=count)
        shared = index.top_k(query, k, threads=2)
    exact = (index.codes.astype(np.float64) @ query) * index.scales
    assert np.allclose(cosines, np.sort(exact)[::-1][:k].clip(-1, 1), atol=1e-4)
    assert np.allclose(cosines, exact[np.searchsorted(ids, found)].clip(-1, 1), atol=1e-4)
    assert (np.diff(cosines) <= 0).all()
    for other, others in (same, shared):
        assert other.tolist() == found.tolist()
        assert others.tolist() == cosines.tolist()


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
        VectorIndex.of(np.array([1, 3, 2]), codes, scales)
    with pytest.raises(ValueError, match="ids"):
        VectorIndex.of(np.array([1, 2]), codes, scales)
    with pytest.raises(ValueError, match="scales"):
        VectorIndex.of(np.array([1, 2, 3]), codes, scales[:2])
    with pytest.raises(ValueError, match="components"):
        VectorIndex.of(np.array([1, 2, 3]), codes, scales).top_k(np.ones(9, np.float32), 1)


def test_a_search_needs_little_memory() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (40_000, 384), dtype=np.int8)
    index = VectorIndex.of(np.arange(40_000), codes, np.full(40_000, 0.001, np.float32))
    query = unit_rows(1, 384)[0]
    for exact in (True, False):
        tracemalloc.start()
        index.top_k(query, 10, exact=exact)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5 * 40_000 + (1 << 23) * (scan.backend() == "numpy") + (1 << 16)  # the rows as float32: 61 MB


@pytest.mark.parametrize("seed", range(3))
def test_sign_bits_propose_what_the_exact_search_finds(seed: int) -> None:
    rows = clustered_rows(30_000, 128, seed)
    index = index_of(rows[:-20])
    shared = [
        len({*index.top_k(query, 10, exact=True)[0].tolist()} & {*index.top_k(query, 10, exact=False)[0].tolist()})
        for query in rows[-20:]
    ]
    assert sum(shared) >= 0.98 * 200


def clustered_rows(count: int, dimension: int, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    centres = unit_rows(count // 50, dimension, seed)
    rows = centres[random.integers(0, len(centres), count)] + 0.8 * unit_rows(count, dimension, seed + 1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Model:
    """An arena in the simplest words: a list of ids."""

    def __init__(self) -> None:
        self.arena = VectorArena(5)
        self.ids: list[int] = []
        self.shown: list[tuple[VectorIndex, list[int]]] = []

    def append(self, count: int) -> None:
        first = self.ids[-1] + 2 if self.ids else 0
        ids = list(range(first, first + count))
        self.arena.append(np.array(ids, np.int64), codes_of(ids), np.ones(count, np.float32))
        self.ids += ids

    def show(self, dead: int) -> None:
        gone = {id for id in self.ids if dead and id % (dead + 1) == 0}
        self.shown.append((self.arena.snapshot(gone | {-5, 10**9}), [id for id in self.ids if id not in gone]))


def codes_of(ids: list[int]) -> NDArray[np.int8]:
    """Codes that tell their id, and are unlike those of the ids nearby."""
    return np.array([[id * prime % 251 - 125 for prime in (1, 7, 13, 31, 57)] for id in ids], np.int8).reshape(
        -1, 5
    )


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 150)),
        st.tuples(st.just("show"), st.integers(0, 3)),
    ),
    max_size=20,
)


@given(STEPS)
def test_a_snapshot_is_what_the_arena_held_and_never_changes(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "FIRST_CHUNK", 64)
        model = Model()
        for action, value in steps:
            getattr(model, action)(value)
            assert len(model.arena) == len(model.ids)
        model.show(0)
        for index, ids in model.shown:
            assert len(index) == len(ids)
            assert index.ids.tolist() == ids
            assert (index.codes == codes_of(ids)).all()
            assert np.isfinite(index.cosines(np.ones(5, np.float32), ids)).all()
            for exact in (True, False):
                found, _ = index.top_k(np.ones(5, np.float32), 9999, exact=exact, proposed=9999)
                assert sorted(found.tolist()) == ids


def test_what_does_not_follow_is_not_appended() -> None:
    arena = VectorArena(4)
    codes, scales = quantize_rows(unit_rows(3, 4))
    arena.append(np.array([4, 5, 9]), codes, scales)
    for ids in ([9, 10, 11], [12, 12, 13], [12, 11, 13]):
        with pytest.raises(ValueError, match="ascending"):
            arena.append(np.array(ids), codes, scales)
    with pytest.raises(ValueError, match="match"):
        arena.append(np.array([20, 21, 22]), codes[:, :3], scales)
    assert arena.snapshot().ids.tolist() == [4, 5, 9]


def test_vectors_are_given_back_as_stored() -> None:
    rows = unit_rows(5, 16)
    index = index_of(rows, np.array([2, 4, 6, 8, 10]))
    decoded = index.vectors([8, 3, 2])
    assert np.allclose(decoded[[0, 2]], rows[[3, 0]], atol=0.01)
    assert not decoded[1].any()


def test_the_dead_are_found_by_nothing() -> None:
    rows = unit_rows(4, 8)
    arena = VectorArena(8)
    arena.append(np.arange(4), *quantize_rows(rows))
    index = arena.snapshot(dead=[2])
    assert 2 not in index.top_k(rows[2], 4)[0].tolist()
    assert 2 not in index.top_k(rows[2], 4, allowed=[1, 2])[0].tolist()
    assert np.isnan(index.cosines(rows[2], [2])[0])
    assert not index.vectors([2]).any()
