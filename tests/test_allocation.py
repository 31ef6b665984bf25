"""Budgets to types: never above the budget, near the best there is, and a clear word where none fits."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from quantize.gguf_models.allocation import Choice, Plan, allocate, sensitivities, smallest

costs = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0, 1)).map(lambda pair: Choice("T", *pair)), min_size=1, max_size=4
)
tables = st.dictionaries(st.sampled_from("abcde"), costs, min_size=1, max_size=5)


def divergence(chosen: dict[str, Choice]) -> float:
    return sum(choice.divergence for choice in chosen.values())


@given(tables, st.integers(0, 260))
def test_the_budget_is_kept_or_refused(table: dict[str, list[Choice]], budget: int) -> None:
    if budget < smallest(table):
        with pytest.raises(ValueError, match="less than"):
            allocate(table, budget)
        return
    chosen = allocate(table, budget)
    assert chosen.keys() == table.keys()
    assert all(choice in table[name] for name, choice in chosen.items())
    assert sum(choice.bytes for choice in chosen.values()) <= budget


@given(tables, st.integers(0, 260))
def test_no_single_change_within_the_budget_is_left_undone(table: dict[str, list[Choice]], spare: int) -> None:
    """At most one tensor's largest step away from the best of all combinations."""
    budget = smallest(table) + spare
    best = min(
        divergence(dict(zip(table, row, strict=True)))
        for row in product(*table.values())
        if sum(choice.bytes for choice in row) <= budget
    )
    step = max(
        max(choice.divergence for choice in options) - min(choice.divergence for choice in options)
        for options in table.values()
    )
    assert best <= divergence(allocate(table, budget)) + 1e-12
    assert divergence(allocate(table, budget)) <= best + step + 1e-9


@given(tables)
def test_with_bytes_for_all_every_tensor_has_its_best(table: dict[str, list[Choice]]) -> None:
    chosen = allocate(table, sum(max(choice.bytes for choice in options) for options in table.values()))
    for name, choice in chosen.items():
        assert choice.divergence == min(option.divergence for option in table[name])


def test_a_groups_divergence_is_shared_by_error() -> None:
    found = sensitivities({"g": ["a", "b"], "h": ["c"]}, {"a": 0.1, "b": 0.3, "c": 0.5}, {"g": 0.8, "h": -0.01})
    assert found["a"] * 0.1 + found["b"] * 0.3 == pytest.approx(0.8)
    assert found["a"] == found["b"]
    assert found["c"] == 0


def test_a_plan_is_the_same_after_save_and_load(tmp_path: Path) -> None:
    plan = Plan({"a.weight": "Q4_0"}, tied=True, expected_divergence=0.25, expected_bytes=7, source="ab")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "x"}', '{"format": "edge-quantization-plan-1"}',
                                     '{"format": "edge-quantization-plan-1", "types": {"a": 1}}'])  # fmt: skip
def test_what_is_no_plan_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ConfigError, match="no quantization plan"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="no quantization plan"):
        Plan.load(tmp_path / "absent.json")
