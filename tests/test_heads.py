"""Fitting heads: what is needed, what probabilities are worth, and what is left where something fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_intents import INTENTS, STRANGE, labelled, write_examples

from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.heads.classifier import IntentHead
from edge_sdk.heads.head_file import read_head
from quantize.students.heads import Labelled, fit_head, read_labelled

TWO = [Labelled("c", "two"), Labelled("d", "two")]


def test_rows_are_read_and_the_label_for_strangers_is_taken_out(tmp_path: Path) -> None:
    assert read_labelled(write_examples(tmp_path / "a.jsonl")) == labelled()
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": "oos"}\n')
    assert read_labelled(tmp_path / "b.jsonl", out_of_scope="none") == [Labelled("a", "oos")]


@pytest.mark.parametrize("row", ["{}", '{"text": "a"}', '{"text": " ", "label": "b"}', '{"text": 1, "label": "b"}'])
def test_a_row_without_text_or_label_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "label": "b"}}\n{row}\n')
    with pytest.raises(ConfigError, match=r"row 2 of .* is no example"):
        read_labelled(tmp_path / "a.jsonl")


def test_the_document_says_what_was_fitted(tmp_path: Path) -> None:
    made = fit_head(labelled(), tmp_path / "head")
    assert (made["kind"], made["examples"], made["out_of_scope"], made["labels"]) == ("words", 24, 7, 4)
    assert made["share"] == pytest.approx(7 / 31)
    assert 0.7 <= made["cross_validated_accuracy"] <= 1
    assert made["bytes"] == sum(path.stat().st_size for path in (tmp_path / "head").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_equal_examples_and_seeds_give_equal_heads(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit_head(labelled(), tmp_path / name, encoder=FakeEncoder(), seed=3)
    for file in ("head.json", "head.npz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_quantized_head_ranks_labels_as_its_examples_say(tmp_path: Path) -> None:
    fit_head(labelled(), tmp_path / "head")
    head = IntentHead.open(tmp_path / "head")
    texts = [(text, label) for label, texts in INTENTS.items() for text in texts]
    assert all(head.classify(text).label == label for text, label in texts)


def test_without_strangers_labels_that_are_left_out_stand_for_them(tmp_path: Path) -> None:
    made = fit_head(labelled(strange=False), tmp_path / "head")
    assert made["share"] == 0.1
    head = IntentHead.open(tmp_path / "head")
    known = [head.classify(text).out_of_scope or 0.0 for texts in INTENTS.values() for text in texts]
    assert min(head.classify(text).out_of_scope or 0.0 for text in STRANGE) > np.median(known)


def test_two_labels_and_no_stranger_say_nothing_of_scope(tmp_path: Path) -> None:
    two = [each for each in labelled(strange=False) if each.label in ("timer", "music")]
    fit_head(two, tmp_path / "head")
    found = IntentHead.open(tmp_path / "head").classify("play a song")
    assert found.out_of_scope is None
    assert 0.5 < found.probability < 1  # never certain: the share of right ones with one of each kind added


def test_more_strangers_to_come_make_each_text_stranger(tmp_path: Path) -> None:
    found = []
    for share in (0.05, 0.5):
        fit_head(labelled(), tmp_path / f"{share}", share=share)
        found.append(IntentHead.open(tmp_path / f"{share}").classify("play it").out_of_scope or 0.0)
    assert found[0] < found[1]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "there are 0 labels"),
        ([Labelled("a", "one"), Labelled("b", "one")], "there are 1 labels"),
        ([Labelled("a", "one"), Labelled("b", "one"), Labelled("c", "two")], "'two' has one example"),
        ([Labelled("a", "one"), Labelled("b", "one"), Labelled("c", "two"), Labelled("c", "two")], "'two' has one"),
        ([Labelled(f"{n}", f"{n % 2}") for n in range(5001)], "5,001 examples"),
        ([Labelled("a" * 10_001, "one"), Labelled("b", "one"), *TWO], "has more than 10,000 characters"),
    ],
    ids=["none", "one label", "one example", "the same twice", "too many", "too long"],
)
def test_too_few_or_too_many_examples_are_refused(tmp_path: Path, examples: list[Labelled], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_head(examples, tmp_path / "head")
    assert not list(tmp_path.iterdir())


def test_what_stands_in_the_way_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        fit_head(labelled(), tmp_path)
    with pytest.raises(ConfigError, match=r"the share .* is 1\.5"):
        fit_head(labelled(), tmp_path / "head", share=1.5)


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantize.students.heads.write_head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_head(labelled(), tmp_path / "head")
    assert not list(tmp_path.iterdir())


def test_a_head_says_what_its_calibration_was_worth(tmp_path: Path) -> None:
    fit_head(labelled(), tmp_path / "head")
    described = json.loads((tmp_path / "head" / "head.json").read_text())
    assert described["figures"] == dict(read_head(tmp_path / "head").figures)
    assert set(described["figures"]) == {"examples", "out_of_scope", "labels", "share", "cross_validated_accuracy"}
