"""A choice under a budget covers what there is: better than chance, and as the definition says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.diversity import Floats, coverage, facility_location, k_center


def unit_rows(rows: int, seed: int, dimension: int = 8) -> Floats:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def clusters(count: int, each: int) -> tuple[Floats, list[int]]:
    """Tight groups, the first far larger than the others, and the group of each row."""
    centres, rows, groups = unit_rows(count, 5, 32), [], []
    noise = np.random.default_rng(6)
    for group, centre in enumerate(centres):
        for _ in range(each * 10 if group == 0 else each):
            rows.append(centre + 0.02 * noise.normal(size=32))
            groups.append(group)
    vectors = np.array(rows)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32), groups


@pytest.mark.parametrize("choose", [facility_location, k_center])
def test_one_of_each_group_is_chosen_however_large_the_groups_are(
    choose: Callable[[Floats, int], list[int]],
) -> None:
    vectors, groups = clusters(12, 3)
    assert {groups[row] for row in choose(vectors, 12)} == set(range(12))


def test_facility_location_takes_at_every_step_the_row_that_adds_most() -> None:
    vectors = unit_rows(40, 2)
    chosen: list[int] = []
    for _ in range(10):
        gains = [coverage(vectors, [*chosen, row]) for row in range(len(vectors))]
        best = facility_location(vectors, len(chosen) + 1)[-1]
        assert gains[best] == pytest.approx(max(gains), abs=1e-6)
        chosen.append(best)
    assert chosen == facility_location(vectors, 10)


def test_weights_say_whom_the_choice_stands_for() -> None:
    vectors = np.float32([[1, 0], [0, 1]])
    assert facility_location(vectors, 1, [1, 5]) == [1]
    assert facility_location(vectors, 1, [5, 1]) == [0]


def test_k_center_leaves_no_row_farther_from_the_choice_than_twice_the_best() -> None:
    vectors = unit_rows(14, 3, 3)

    def worst(chosen: tuple[int, ...] | list[int]) -> float:
        return float(np.linalg.norm(vectors[:, None] - vectors[None, list(chosen)], axis=2).min(axis=1).max())

    best = min(worst(three) for three in combinations(range(14), 3))
    assert worst(k_center(vectors, 3)) <= 2 * best + 1e-6


@given(st.integers(0, 12), st.integers(0, 15), st.integers(0, 5))
def test_a_choice_has_no_row_twice_and_as_many_as_there_are(rows: int, budget: int, seed: int) -> None:
    vectors = unit_rows(rows, seed) if rows else np.zeros((0, 8), np.float32)
    for chosen in (facility_location(vectors, budget), k_center(vectors, budget)):
        assert len(chosen) == len(set(chosen)) == min(rows, budget)
        assert all(0 <= row < rows for row in chosen)


def test_equal_rows_are_chosen_only_when_nothing_else_is_left() -> None:
    vectors = np.float32([[1, 0]] * 5 + [[0, 1]])
    assert set(facility_location(vectors, 2)) == {0, 5} and set(k_center(vectors, 2)) == {0, 5}
