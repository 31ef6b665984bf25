"""The error tree: one line each, the family that a caller can catch, and numbers as attributes."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk import errors
from edge_sdk.errors import (
    ContextOverflowError,
    DiskFullError,
    EdgeError,
    MissingExtraError,
    ModelError,
    RemoteError,
    RemoteRejectedError,
    StoreError,
    StoreFullError,
)

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass)]


def test_every_failure_is_an_edge_error() -> None:
    assert all(issubclass(item, EdgeError) and item.__name__.endswith("Error") for item in CLASSES)
    assert all(item.__doc__ for item in CLASSES)


@given(message=st.text(), hint=st.text())
def test_any_message_is_one_line(message: str, hint: str) -> None:
    text = str(EdgeError(message, hint=hint))
    assert len(text.splitlines()) <= 1
    assert "".join(message.split()) in "".join(text.split())


def test_the_hint_follows_the_message() -> None:
    error = RemoteRejectedError("busy", status=429, retry_after=3.0, hint="wait")
    assert (str(error), error.status, error.retry_after) == ("busy; wait", 429, 3.0)
    assert str(EdgeError("alone")) == "alone"


@pytest.mark.parametrize(
    ("prefix", "family"),
    [("Model", ModelError), ("Store", StoreError), ("Remote", RemoteError)],
)
def test_a_family_can_be_caught_as_one(prefix: str, family: type[EdgeError]) -> None:
    members = [item for item in CLASSES if item.__name__.startswith(prefix)]
    assert len(members) > 2 and all(issubclass(item, family) for item in members)


def test_a_full_disk_under_the_store_is_both() -> None:
    assert issubclass(StoreFullError, StoreError) and issubclass(StoreFullError, DiskFullError)


def test_an_overflow_tells_the_three_numbers() -> None:
    error = ContextOverflowError(900, 200, 1024)
    assert all(number in str(error) for number in ("900", "200", "1024"))
    assert (error.prompt_tokens, error.max_tokens, error.context) == (900, 200, 1024)


def test_a_missing_extra_gives_the_command() -> None:
    assert "pip install 'edge-sdk[gguf]'" in str(MissingExtraError("the GGUF engine", "gguf"))
