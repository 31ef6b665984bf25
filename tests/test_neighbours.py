"""Calibration questions as neighbours: exact cosines, leaving one out, and 8 bits that stay as they are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_calibrations import vectors

from edge_sdk.confidence.neighbours import NEAREST, Neighbours, gather, unit_rows


def made(count: int, *, seed: int = 0, right: list[bool] | None = None) -> Neighbours:
    labels = right or [at % 2 == 0 for at in range(count)]
    return gather([f"q{at}" for at in range(count)], labels, vectors(count, seed))


def test_the_nearest_come_first_with_their_labels() -> None:
    found = made(20)
    near = found.nearest(found.vectors[7], 3)
    assert (near[0].question, near[0].right, near[0].similarity) == ("q7", False, pytest.approx(1.0, abs=1e-6))
    cosines = found.vectors @ found.vectors[7]
    assert [each.similarity for each in near] == pytest.approx(sorted(cosines.tolist(), reverse=True)[:3])


def test_success_is_the_share_of_the_nearest_drawn_to_the_average() -> None:
    found = made(40)
    vector = vectors(1, seed=9)[0]
    nearest = found.nearest(vector, NEAREST)
    signals = found.signals(vector)
    assert signals["familiarity"] == nearest[0].similarity
    assert signals["past_success"] == pytest.approx((sum(each.right for each in nearest) + 4 * 0.5) / (NEAREST + 4))


def test_a_row_is_left_out_of_its_own_neighbours() -> None:
    """Or a model would learn that every familiar question goes as it went: its own label."""
    found = made(15)
    signals = found.signals(found.vectors[3], without=3)
    others = [row for row in range(15) if row != 3]
    best = sorted(others, key=lambda row: -float(found.vectors[row] @ found.vectors[3]))[:NEAREST]
    assert signals["familiarity"] == pytest.approx(float(found.vectors[best[0]] @ found.vectors[3]))
    expected = (found.right[best].sum() + 4 * found.right.mean()) / (NEAREST + 4)
    assert signals["past_success"] == pytest.approx(expected)


def test_without_neighbours_there_is_no_signal() -> None:
    nobody = gather([], [], np.zeros((0, 4), np.float32))
    assert nobody.signals(np.ones(4, np.float32)) == {}
    assert nobody.nearest(np.ones(4, np.float32), 3) == []
    alone = made(1)
    assert alone.signals(alone.vectors[0], without=0) == {}


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 120)),
        elements=st.floats(-1, 1, width=32),
    )
)
def test_a_file_gives_back_the_very_same_neighbours(rows: np.ndarray) -> None:
    """Saved, read and saved again: not a bit may move, or a threshold that is one of the scores would be missed."""
    once = gather([f"q{at}" for at in range(len(rows))], [True] * len(rows), unit_rows(rows))
    again = Neighbours.from_json(json.loads(json.dumps(once.to_json())))
    assert np.array_equal(once.vectors, again.vectors)
    assert once.to_json() == again.to_json()


def test_eight_bits_that_do_not_come_back_by_rounding_alone() -> None:
    row = np.array([[125.51, *[1.94] * 100]], np.float32)
    once = gather(["q"], [True], unit_rows(row))
    assert np.array_equal(once.vectors, Neighbours.from_json(once.to_json()).vectors)


def test_eight_bits_are_near_the_vector() -> None:
    exact = vectors(50, dimension=384)
    assert np.abs(gather([""] * 50, [True] * 50, exact).vectors @ exact.T - exact @ exact.T).max() < 0.02


@pytest.mark.parametrize(
    "change",
    [
        {"codes": "AAAA"},
        {"codes": "not base64!"},
        {"codes": 7},
        {"dimension": 0},
        {"dimension": -1},
        {"dimension": "many"},
        {"right": [True]},
        {"right": ["true"] * 3},
        {"right": None},
        {"questions": "abc"},
        {"questions": ["a"]},
        {"questions": [1, 2, 3]},
    ],
)
def test_what_was_not_written_by_it_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Neighbours.from_json({**made(3).to_json(), **change})
