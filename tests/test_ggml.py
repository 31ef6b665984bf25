"""ggml's blocks in memory: sizes, round trips, and clear words for what cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from quantize.gguf_models.ggml import dequantize_rows, quantize_rows, requires_importance, row_bytes
from quantize.gguf_models.mixed import TYPES

WEIGHTS = (np.random.default_rng(0).standard_normal((6, 512)) / 20).astype(np.float32)


@pytest.mark.parametrize(
    ("type", "error"),
    [("F32", 0), ("F16", 1e-6), ("BF16", 1e-4), ("Q8_0", 1e-4), ("Q6_K", 1e-3), ("Q5_K", 3e-3), ("Q4_0", 1e-2),
     ("Q4_K", 1e-2), ("IQ4_NL", 1e-2), ("Q3_K", 4e-2), ("Q2_K", 0.15)],
)  # fmt: skip
def test_what_comes_back_is_close_to_what_went_in(type: str, error: float) -> None:
    blocks = quantize_rows(WEIGHTS, type)
    assert blocks.shape == (6, row_bytes(type, 512))
    found = dequantize_rows(blocks, type, 512)
    assert np.square(found - WEIGHTS).sum() <= error * np.square(WEIGHTS).sum()


def test_importance_moves_errors_to_where_they_do_not_matter() -> None:
    importance = np.where(np.arange(512) % 2, 100, 0.01).astype(np.float32)
    plain, weighed = (
        dequantize_rows(quantize_rows(WEIGHTS, "Q2_K", known), "Q2_K", 512) for known in (None, importance)
    )
    assert np.square(weighed - WEIGHTS)[:, 1::2].sum() < 0.8 * np.square(plain - WEIGHTS)[:, 1::2].sum()


def test_rows_in_pieces_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize_rows(WEIGHTS, "Q4_K")
    monkeypatch.setattr("quantize.gguf_models.ggml._SLICE", 1024)
    assert np.array_equal(quantize_rows(WEIGHTS, "Q4_K"), whole)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="do not divide into blocks of Q4_K"):
        quantize_rows(WEIGHTS[:, :96], "Q4_K")
    with pytest.raises(ConfigError, match="no tensor type 'Q9_9'"):
        dequantize_rows(np.zeros((1, 9), np.uint8), "Q9_9", 32)
    with pytest.raises(ConfigError, match="is not 17 bytes of Q4_0"):
        dequantize_rows(np.zeros((1, 17), np.uint8), "Q4_0", 32)
    with pytest.raises(ConfigError, match="needs an importance matrix"):
        quantize_rows(WEIGHTS, "IQ2_XXS")
    with pytest.raises(ConfigError, match="not a number"):
        quantize_rows(np.full((1, 32), np.nan, np.float32), "Q4_0")


def test_no_type_that_plans_choose_among_needs_importance() -> None:
    assert not any(map(requires_importance, TYPES))
    assert requires_importance("IQ2_XXS")
