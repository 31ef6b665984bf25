"""Pseudonyms: consistent, never colliding, restored exactly, however a reply is cut into pieces."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.privacy.detectors import Finding
from edge_sdk.privacy.patterns import DROPPED
from edge_sdk.privacy.pseudonyms import Vault

KINDS = ("EMAIL", "PHONE", "IP")
PIECES = [
    "EMAIL_1",
    "EMAIL_2",
    "EMAIL_12",
    "EMAIL\\_1",
    "PHONE_1",
    "_",
    "1",
    "2",
    "E",
    "EMAIL",
    "\\",
    "x",
    " ",
    "é",
    "jo@x.de",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@st.composite
def found_texts(draw: st.DrawFn) -> tuple[str, list[Finding]]:
    """A text that may spell pseudonyms, with finds anywhere in it."""
    text = draw(TEXTS)
    spans = draw(
        st.lists(
            st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.sampled_from(KINDS)), max_size=4
        )
    )
    return text, [Finding(min(a, b), max(a, b), kind) for a, b, kind in spans if a != b]


def vault_of(*values: str) -> Vault:
    vault = Vault()
    for value in values:
        vault.hide(value, [Finding(0, len(value), "EMAIL")])
    return vault


def test_a_value_has_one_pseudonym_and_two_values_have_two() -> None:
    vault = Vault()
    hidden = vault.hide(
        "a@x.de b@x.de a@x.de", [Finding(0, 6, "EMAIL"), Finding(7, 13, "EMAIL"), Finding(14, 20, "EMAIL")]
    )
    assert hidden == "EMAIL_1 EMAIL_2 EMAIL_1"
    assert vault.hide("b@x.de", [Finding(0, 6, "EMAIL")]) == "EMAIL_2"
    assert len(vault) == 2


@pytest.mark.parametrize("kind", DROPPED)
def test_a_secret_is_dropped_and_cannot_come_back(kind: str) -> None:
    vault = Vault()
    assert vault.hide("it is hunter2.", [Finding(6, 13, kind)]) == f"it is [{kind}]."
    assert len(vault) == 0
    assert vault.restore(f"[{kind}] {kind}_1") == f"[{kind}] {kind}_1"


def test_on_request_nothing_is_reversible() -> None:
    vault, counts = Vault(), Counter[str]()
    assert vault.hide("a@x.de", [Finding(0, 6, "EMAIL")], reversible=False, counts=counts) == "[EMAIL]"
    assert len(vault) == 0
    assert counts == {"EMAIL": 1}


def test_a_name_that_the_text_spells_is_given_to_no_value() -> None:
    vault = Vault()
    hidden = vault.hide("EMAIL_1 is the variable, a@x.de the value", [Finding(25, 31, "EMAIL")])
    assert hidden == "EMAIL_1 is the variable, EMAIL_2 the value"
    assert vault.restore("EMAIL_1, EMAIL_2, EMAIL_22") == "EMAIL_1, a@x.de, EMAIL_22"


def test_a_name_in_use_that_a_later_text_spells_comes_back_as_it_was_written() -> None:
    vault = vault_of("a@x.de")
    hidden = vault.hide("What is EMAIL_1?", [])
    assert hidden == "What is EMAIL_2?"
    assert vault.restore(hidden) == "What is EMAIL_1?"


def test_a_find_within_a_word_takes_the_word() -> None:
    vault = Vault()
    assert vault.hide("id5551234x_", [Finding(2, 9, "PHONE")]) == "PHONE_1_"
    assert vault.restore("**PHONE_1**, _PHONE_1_, PHONE\\_1, PHONE_11, APHONE_1") == (
        "**id5551234x**, _id5551234x_, id5551234x, PHONE_11, APHONE_1"
    )


@given(st.lists(found_texts(), max_size=4))
def test_restoring_gives_back_what_was_hidden(texts: list[tuple[str, list[Finding]]]) -> None:
    vault = Vault()
    for text, findings in texts:
        assert vault.restore(vault.hide(text, findings)) == text


@given(st.lists(found_texts(), max_size=3), st.lists(st.sampled_from(PIECES), max_size=12), st.data())
def test_a_stream_cut_anywhere_is_restored_like_the_whole(
    hidden: list[tuple[str, list[Finding]]], parts: list[str], data: st.DataObject
) -> None:
    vault = Vault()
    for text, findings in hidden:
        vault.hide(text, findings)
    reply = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=8)))
    pieces = [reply[start:end] for start, end in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    restorer = vault.restorer()
    assert "".join([*map(restorer.push, pieces), restorer.finish()]) == vault.restore(reply)


def test_only_the_beginning_of_a_pseudonym_in_use_is_held_back() -> None:
    restorer = vault_of("a@x.de").restorer()
    assert restorer.push("THEME") == "THEME"  # ends like EMAIL begins, but within a word
    assert restorer.push(" PHONE_1") == " PHONE_1"  # no phone number in this vault
    assert restorer.push(" E") == " "
    assert restorer.push("lk") == "Elk"
    assert restorer.push(", EMAIL_1") == ", "
    assert restorer.push(".") == "a@x.de."
    assert Vault().restorer().push("EMAIL_1") == "EMAIL_1"


def test_no_value_can_be_written_by_accident() -> None:
    vault = vault_of("a@x.de")
    assert "a@x.de" not in repr(vault) + str(vault)
    for write in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            write(vault)
