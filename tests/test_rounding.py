"""Rounding that keeps outputs: better than rounding to the nearest, and bytes that ggml reads as meant."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.gguf_models.ggml import Floats, dequantize_rows, quantize_rows
from quantize.gguf_models.rounding import GRIDS, Inputs, Rounded, output_error, round_rows


def layer(rows: int, columns: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Weights, and the products of inputs that depend on each other and differ in size."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((columns, columns)) * np.exp(-np.arange(columns) / (columns / 5))
    inputs = random.standard_normal((6 * columns, columns)) @ mix.T * np.exp(random.standard_normal(columns) / 2)
    weights = random.standard_t(5, (rows, columns)) / 30
    return weights.astype(np.float32), (inputs.T @ inputs / len(inputs)).astype(np.float32)


@pytest.mark.parametrize("type", GRIDS)
def test_ggml_reads_from_the_blocks_what_was_meant(type: str) -> None:
    weights, products = layer(5, 96)
    rounded = round_rows(weights, type, Inputs.of(products))
    assert np.array_equal(dequantize_rows(rounded.blocks(), type, 96), rounded.weights())


@pytest.mark.parametrize("type", GRIDS)
def test_outputs_change_less_than_with_ggml_and_importance(type: str) -> None:
    weights, products = layer(40, 192)
    theirs = dequantize_rows(quantize_rows(weights, type, np.diag(products).copy()), type, 192)
    ours = round_rows(weights, type, Inputs.of(products)).weights()
    assert output_error(weights - ours, products) < 0.5 * output_error(weights - theirs, products)


def test_sweeps_never_make_it_worse() -> None:
    weights, products = layer(30, 128, seed=2)
    errors = [
        output_error(weights - round_rows(weights, "Q4_0", Inputs.of(products), sweeps=sweeps).weights(), products)
        for sweeps in range(4)
    ]
    assert all(later < earlier for earlier, later in pairwise(errors))


def test_rows_do_not_depend_on_each_other() -> None:
    weights, products = layer(9, 64, seed=3)
    together = round_rows(weights, "IQ4_NL", Inputs.of(products))
    alone = round_rows(weights[4:5], "IQ4_NL", Inputs.of(products))
    error = output_error(weights[4:5] - together.weights()[4:5], products)
    assert output_error(weights[4:5] - alone.weights(), products) == pytest.approx(error, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(
    type=st.sampled_from(sorted(GRIDS)),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    unseen=st.integers(0, 64),
    seed=st.integers(0, 1000),
)
def test_whatever_weights_and_inputs_are_the_blocks_are_finite(
    type: str, scale: float, unseen: int, seed: int
) -> None:
    weights, products = layer(3, 64, seed)
    products[:unseen] = products[:, :unseen] = 0  # columns that no input ever reached
    rounded = round_rows((weights * scale).astype(np.float32), type, Inputs.of(products))
    assert np.isfinite(rounded.weights()).all()
    assert np.array_equal(dequantize_rows(rounded.blocks(), type, 64), rounded.weights())


def test_weights_on_the_grid_come_back_nearly_as_they_were() -> None:
    weights, products = layer(4, 64)
    grid = dequantize_rows(quantize_rows(weights, "Q4_0"), "Q4_0", 64)
    rounded = round_rows(grid, "Q4_0", Inputs.of(products))
    assert output_error(grid - rounded.weights(), products) < 0.02 * output_error(grid, products)


def test_a_rounded_row_knows_its_shape() -> None:
    weights, products = layer(2, 32)
    rounded = round_rows(weights, "Q5_1", Inputs.of(products))
    assert isinstance(rounded, Rounded)
    assert (rounded.codes.shape, rounded.scales.shape, rounded.minima.shape) == ((2, 32), (2, 1), (2, 1))
    assert rounded.blocks().shape == (2, 24)
