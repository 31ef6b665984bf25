"""Judging heads on a set: what is drawn, what is counted, and sets that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_intents import write_set
from onnx_files import write_encoder

from edge_sdk.errors import ConfigError
from edge_sdk.fakes import FakeEncoder
from quantize.evaluate_intents import PARTS, draw, evaluate_intents, read_intents

ROWS = [(f"{label}{number}", label) for label in "ab" for number in range(6)]


def test_a_draw_has_as_many_of_each_label_and_follows_the_seed() -> None:
    first, again, other = (list(draw(ROWS, 3, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert [label for _, label in first] == ["a"] * 3 + ["b"] * 3
    assert len(set(first)) == 6 and set(first) <= set(ROWS)
    assert sorted(draw(ROWS, 99, 0)) == sorted(ROWS)


@pytest.mark.parametrize("features", ["words", "vectors", "both"])
def test_figures_are_shares_with_their_spread(tmp_path: Path, features: str) -> None:
    encoder = None if features == "words" else FakeEncoder()
    data = write_set(tmp_path / "set.json")
    found = evaluate_intents(data, encoder=encoder, words=features == "both", shots=4, seeds=2)
    assert found["features"] == features
    assert (found["draws"], found["shots"], found["n"]) == (2, 4, {"test": 8, "oos_test": 2})
    for name in ("accuracy", "out_of_scope_auroc", "right_auroc", "out_of_scope_found"):
        assert 0 <= found[name]["least"] <= found[name]["mean"] <= found[name]["most"] <= 1
    assert found["accuracy"]["mean"] > 0.5
    assert found["bytes"]["least"] > 1000 and found["ms"]["least"] > 0


def test_the_encoders_bytes_count(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.json")
    write_encoder(tmp_path / "encoder", FakeEncoder(8).encode(["a"] * 259))
    alone = evaluate_intents(data, encoder=FakeEncoder(), seeds=1)["bytes"]["mean"]
    carried = evaluate_intents(data, encoder=FakeEncoder(), encoder_folder=tmp_path / "encoder", seeds=1)
    size = sum((tmp_path / "encoder" / name).stat().st_size for name in ("model.onnx", "tokenizer.json"))
    assert carried["bytes"]["mean"] == pytest.approx(alone + size, abs=100)


def test_nothing_out_of_scope_is_fitted_to_where_that_is_asked_for(tmp_path: Path) -> None:
    found = evaluate_intents(write_set(tmp_path / "set.json"), seeds=1, outside=False)
    assert found["fitted_out_of_scope"] == 0
    assert "out_of_scope_auroc" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "TypeError"),
        ('{"train": []}', "KeyError"),
        ("{", "no set of intents"),
        (json.dumps({name: [] for name in PARTS}), "nothing to judge on"),
        (json.dumps({name: [["a"]] for name in PARTS}), "ValueError"),
    ],
)
def test_what_is_no_set_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_intents(tmp_path)


def test_a_folder_holds_one_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds 0 \.json files"):
        read_intents(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_intents(tmp_path / "none.json")
