"""The records: frozen, and honest where nothing is known."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from edge_sdk import records
from edge_sdk.records import Answer, GenerateOptions, Timings, TokenCounts

RECORDS = [item for _, item in inspect.getmembers(records, dataclasses.is_dataclass)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_cannot_be_changed(record: type) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(record), "a misspelt attribute must be an error"


def test_an_answer_has_no_probability_unless_it_is_given() -> None:
    field = {field.name: field for field in dataclasses.fields(Answer)}["probability"]
    assert field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    assert field.type == "float | None"


def test_a_step_that_did_not_run_has_no_time() -> None:
    assert all(value is None for value in dataclasses.astuple(Timings()))


def test_nothing_has_left_the_device_by_default() -> None:
    first, second = (Answer("", (), None, "local", (), Timings(), TokenCounts(), "m") for _ in range(2))
    assert first.left_device == {} and first.left_device is not second.left_device


def test_decoding_is_greedy_by_default() -> None:
    assert GenerateOptions().temperature == 0.0
