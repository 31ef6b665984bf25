from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.engines.sampling import PENALTY_WINDOW, Sampler, candidates, penalised
from edge_sdk.errors import EngineError
from edge_sdk.records import GenerateOptions

OPEN = GenerateOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
LOGITS = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32) | st.just(float("-inf"))
).filter(lambda array: bool(np.isfinite(array).any()))


def _logits(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


def _kept(options: GenerateOptions, *probabilities: float) -> list[int]:
    return list(candidates(_logits(*probabilities), options).tokens.tolist())


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, [2, 1, 0, 3]),
        ({"top_k": 1}, [2]),
        ({"top_k": 3}, [2, 1, 0]),
        ({"top_k": 4}, [2, 1, 0, 3]),
        ({"top_k": 99}, [2, 1, 0, 3]),
        ({"top_k": -1}, [2, 1, 0, 3]),
        ({"top_p": 0.0}, [2]),
        ({"top_p": 0.49}, [2]),
        ({"top_p": 0.51}, [2, 1]),
        ({"top_p": 0.81}, [2, 1, 0]),
        ({"top_p": 0.99}, [2, 1, 0, 3]),
        ({"min_p": 0.5}, [2, 1]),
        ({"min_p": 0.3}, [2, 1]),
        ({"min_p": 0.29}, [2, 1, 0]),
        ({"min_p": 0.09}, [2, 1, 0, 3]),
        ({"min_p": 5.0}, [2]),
        ({"top_k": 3, "top_p": 0.84}, [2, 1]),  # two of the three hold 0.843 of what the three hold
    ],
)
def test_what_top_k_top_p_and_min_p_leave(change: dict[str, Any], kept: list[int]) -> None:
    assert _kept(replace(OPEN, **change), 0.149, 0.3, 0.5, 0.051) == kept


def test_ties_go_to_the_lower_ids() -> None:
    assert _kept(replace(OPEN, top_k=2), 0.2, 0.2, 0.2, 0.4) == [3, 0]
    assert Sampler(GenerateOptions()).choose(np.zeros(5, np.float32), []) == 0


def test_temperature_comes_after_the_filters_and_sharpens() -> None:
    cold = candidates(_logits(0.2, 0.8), replace(OPEN, temperature=0.5)).probabilities
    assert cold == pytest.approx([0.64 / 0.68, 0.04 / 0.68])
    hot = candidates(_logits(0.2, 0.8), replace(OPEN, temperature=1e6, min_p=0.5))
    assert hot.tokens.tolist() == [1]
    assert candidates(_logits(0.2, 0.8), replace(OPEN, temperature=1e-320)).probabilities[0] == 1.0


@given(LOGITS, st.floats(0, 2), st.integers(-1, 70), st.floats(0, 1.2), st.floats(0, 1.2), st.integers())
def test_a_draw_is_a_candidate_and_candidates_are_a_distribution(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    options = GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    before = logits.copy()
    token = Sampler(options).choose(logits, [])
    assert np.array_equal(logits, before)
    if temperature == 0:
        assert logits[token] == logits.max()
        return
    drawn = candidates(logits, options)
    assert token in drawn.tokens
    assert drawn.probabilities.sum() == pytest.approx(1.0)
    assert (np.diff(drawn.probabilities) <= 1e-12).all()
    assert drawn.tokens[0] == np.argmax(logits)
    assert len(set(drawn.tokens.tolist())) == drawn.tokens.size <= (top_k if top_k > 0 else logits.size)


@given(LOGITS)
def test_with_every_filter_off_the_distribution_is_the_softmax(logits: np.ndarray) -> None:
    drawn = candidates(logits, OPEN)
    expected = np.exp(logits.astype(np.float64) - logits.max())
    assert drawn.probabilities == pytest.approx((expected / expected.sum())[drawn.tokens])
    assert drawn.tokens.size == logits.size


def test_draws_follow_the_probabilities() -> None:
    sampler, logits = Sampler(replace(OPEN, seed=7)), _logits(0.1, 0.2, 0.7, 0.0)
    counts = np.bincount([sampler.choose(logits, []) for _ in range(4000)], minlength=4)
    assert counts[3] == 0
    assert counts / 4000 == pytest.approx([0.1, 0.2, 0.7, 0.0], abs=0.03)  # over four standard deviations


def test_a_seed_fixes_the_draws_and_another_seed_changes_them() -> None:
    logits = np.zeros(1000, np.float32)

    def draws(seed: int) -> list[int]:
        sampler = Sampler(replace(OPEN, seed=seed))
        return [sampler.choose(logits, []) for _ in range(20)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert len(set(draws(3))) > 10
    assert draws(-1) == draws(2**64 - 1)


def test_the_penalty_counts_recent_tokens_once_and_also_under_greedy() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    greedy = GenerateOptions(repeat_penalty=1.2)
    assert Sampler(greedy).choose(logits, [0, 0]) == 1
    assert Sampler(greedy).choose(logits, [0] + [2] * PENALTY_WINDOW) == 0
    assert Sampler(GenerateOptions()).choose(logits, [0]) == 0
    assert penalised(logits, [2, 2], 2.0).tolist() == pytest.approx([2.0, 1.9, -2.0])
    assert penalised(logits, [], 2.0).tolist() == logits.tolist()


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [1.0, np.inf], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_engine_error(bad: list[float], temperature: float) -> None:
    with pytest.raises(EngineError, match="logit"):
        Sampler(replace(OPEN, temperature=temperature)).choose(np.array(bad, np.float32), [])
