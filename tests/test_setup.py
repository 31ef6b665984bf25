"""What a calibration is filed under: one name a set-up, and the names of what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_calibrations import SETUP

from edge_sdk.confidence import setup as module
from edge_sdk.confidence.setup import Setup, short_hash
from edge_sdk.confidence.signals import FORMULAS, SIGNALS

parts = st.dictionaries(st.sampled_from(["model", "prompt", "sampler"]), st.text(max_size=4))


@given(parts, parts)
def test_equal_parts_and_only_these_have_one_fingerprint(one: dict[str, str], other: dict[str, str]) -> None:
    same = Setup(one).fingerprint == Setup(other).fingerprint
    assert same == (one == other) == (Setup(one).differences(Setup(other)) == [])


def test_the_order_of_the_parts_has_no_say() -> None:
    assert SETUP.fingerprint == Setup(dict(reversed(list(SETUP.parts.items())))).fingerprint


@pytest.mark.parametrize("part", ["model", "prompt", "sampler", "retrieval", "signals"])
def test_each_part_that_changes_is_named(part: str) -> None:
    other = Setup({**SETUP.parts, part: "other"})
    assert other.fingerprint != SETUP.fingerprint
    assert other.differences(SETUP) == SETUP.differences(other) == [part]


def test_a_part_that_only_one_has_is_a_difference() -> None:
    assert Setup({"model": "a"}).differences(Setup({"adapter": "b"})) == ["adapter", "model"]


def test_the_hash_of_the_signals_follows_their_definitions() -> None:
    assert short_hash(f"{FORMULAS} {SIGNALS!r}") == module.SIGNALS_HASH
    assert short_hash(f"{FORMULAS + 1} {SIGNALS!r}") != module.SIGNALS_HASH
    assert short_hash(f"{FORMULAS} {(replace(SIGNALS[0], sign=0), *SIGNALS[1:])!r}") != module.SIGNALS_HASH
