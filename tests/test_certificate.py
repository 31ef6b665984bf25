"""Certificates: read strictly, told plainly."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.confidence.certificate import Certificate
from edge_sdk.confidence.risk import certify
from edge_sdk.errors import CalibrationError

GIVEN = certify(
    [i / 100 for i in range(100)],
    [i < 40 and i % 4 == 0 for i in range(100)],
    alpha=0.1,
    kind="marginal_hp",
    labels="exact match",
    fingerprints={"model": "ab12", "template": "ü"},
    date="2025-01-31",
)
REFUSED = certify([0.5] * 5, [False] * 5, alpha=0.1, date="2025-01-31")


@pytest.mark.parametrize("certificate", [GIVEN, REFUSED, certify([], [], alpha=0.2, kind="selective")])
def test_a_certificate_survives_the_file(certificate: Certificate) -> None:
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert Certificate.from_json(certificate.to_json().encode()) == certificate


def test_the_file_holds_the_fields_by_name() -> None:
    values = json.loads(GIVEN.to_json())
    assert values["alpha"] == 0.1 and values["fingerprints"]["template"] == "ü"
    assert values["threshold"] == GIVEN.threshold and values["errors"] == GIVEN.errors


def edited(**changes: Any) -> str:
    return json.dumps({**json.loads(GIVEN.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[1]", "not a JSON object"),
        ('"x"', "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("{}", "has no field 'alpha'"),
        (edited(extra=1), "unknown field 'extra'"),
        (edited(alpha="0.1"), "alpha cannot be '0.1'"),
        (edited(alpha=0), "alpha cannot be '0'"),
        (edited(alpha=True), "alpha cannot be 'True'"),
        (edited(n=10**400), "n cannot be"),
        (edited(threshold=10**400), "threshold cannot be"),
        (edited(kind=["marginal"]), "kind cannot be"),
        (edited(kind="exact"), "kind cannot be 'exact'"),
        (edited(n=-1), "n cannot be '-1'"),
        (edited(served=3.5), "served cannot be '3.5'"),
        (edited(date="31.1.2025"), "date cannot be"),
        (edited(date=5), "date cannot be"),
        (edited(fingerprints={"model": 5}), "fingerprints cannot be"),
        (edited(labels=None), "labels cannot be"),
        (edited(threshold=float("inf")), "Infinity is no number"),
        (edited(bound=float("nan")), "NaN is no number"),
    ],
)
def test_what_is_no_certificate_is_one_line(text: str | bytes, says: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        Certificate.from_json(text)
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "changes",
    [
        {"errors": 0},
        {"n": 500},
        {"bound": 0.01},
        {"alpha": 0.05},
        {"delta": 0.5},
        {"delta": None},
        {"kind": "marginal"},
        {"kind": "selective"},
        {"served": 1000},
        {"threshold": None},
        {"threshold": None, "served": 0, "errors": 0},
        {"bound": None},
        {"labels_missing": 4},
    ],
)
def test_an_edited_certificate_contradicts_itself(changes: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError, match="contradicts itself"):
        Certificate.from_json(edited(**changes))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_value_in_any_field_is_read_or_refused(value: object) -> None:
    for name in json.loads(GIVEN.to_json()):
        try:
            read = Certificate.from_json(edited(**{name: value}))
        except CalibrationError:
            continue
        assert read.bound is not None and read.bound <= read.alpha


def test_nothing_is_served_without_a_threshold_or_a_number() -> None:
    assert GIVEN.threshold is not None
    assert GIVEN.serves(GIVEN.threshold) and GIVEN.serves(1.0)
    assert not GIVEN.serves(GIVEN.threshold - 1e-12) and not GIVEN.serves(float("nan"))
    assert not REFUSED.serves(1.0) and not REFUSED.serves(float("inf"))


def test_the_promise_is_told_with_its_confidence_and_counts() -> None:
    assert GIVEN.sentence() == (
        "With 90 % confidence at most 10 % of all questions get a wrong local answer: 100 labels (exact match), "
        "5 of 83 served locally count against it, bound 9.077 %, threshold 0.17."
    )
    assert GIVEN.local_share == 0.83


def test_what_is_missing_is_told() -> None:
    assert REFUSED.sentence() == (
        "Not certified: on average at most 10 % of all questions get a wrong local answer. With 5 labels "
        "the least target they could show is 16.7 %; about 4 labels more are needed. "
        "Nothing is served locally under it."
    )
    hopeless = replace(REFUSED, smallest_alpha=None, labels_missing=None)
    assert "no target could be shown; more labels would not help" in hopeless.sentence()
