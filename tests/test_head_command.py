"""`edge head`: fitted, asked, shown, packed into a bundle and asked there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_intents import INTENTS, labelled, write_examples, write_set
from onnx_files import write_encoder

from edge_sdk.cli import main
from edge_sdk.config import load_settings
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.errors import BundleError, ModelNotFoundError
from edge_sdk.loading import load_head
from quantize.pack import Part, Recipe, build_bundle
from quantize.students.heads import fit_head


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "letters"
    write_encoder(folder, np.random.default_rng(1).standard_normal((259, 24)).astype(np.float32))
    return folder


def last(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_head_is_fitted_asked_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples, out = str(write_examples(tmp_path / "a.jsonl")), str(tmp_path / "head")
    assert main(["head", "fit", examples, out, "--features", "words", "--json"]) == 0
    made = last(capsys)
    assert (made["command"], made["kind"], made["labels"]) == ("edge head fit", "words", 4)

    assert main(["head", "classify", out, "play a song", "set a timer", "--explain", "--json"]) == 0
    rows = last(capsys)["texts"]
    assert [(row["text"], row["label"]) for row in rows] == [("play a song", "music"), ("set a timer", "timer")]
    assert rows[0]["nearest"][0]["label"] == "music" and rows[0]["reasons"][0]["part"]
    assert main(["head", "classify", out, "play a song"]) == 0
    assert capsys.readouterr().out.startswith("music  ")

    assert main(["head", "show", out, "music", "--terms", "3", "--json"]) == 0
    shown = last(capsys)
    assert list(shown["labels"]) == ["music"] and len(shown["labels"]["music"]) == 3
    assert main(["head", "show", out]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == sorted(INTENTS)


def test_a_head_reads_with_the_encoder_of_the_settings_or_carries_it(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = str(write_examples(tmp_path / "a.jsonl"))
    for name, more in (("bare", []), ("whole", ["--carry"])):
        assert main(["head", "fit", examples, str(tmp_path / name), "--encoder", str(encoder), *more]) == 0
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == ["head.json", "head.npz"]
    assert {"model.onnx", "tokenizer.json"} < {path.name for path in (tmp_path / "whole").iterdir()}
    capsys.readouterr()
    assert main(["head", "classify", str(tmp_path / "bare"), "play", "--encoder", str(encoder), "--json"]) == 0
    bare = last(capsys)["texts"]
    assert main(["head", "classify", str(tmp_path / "whole"), "play", "--json"]) == 0
    assert last(capsys)["texts"] == bare
    assert main(["head", "show", str(tmp_path / "whole")]) == 0


def bundled(tmp_path: Path, head: Path, *parts: Part) -> Path:
    out = tmp_path / "a.edge"
    build_bundle(Recipe(name="demo", version="1", parts=[Part("head:intent", head, "MIT"), *parts]), out)
    return out


def test_a_packed_head_is_found_by_its_name(tmp_path: Path, encoder: Path) -> None:
    fit_head(labelled(), tmp_path / "words")
    settings = load_settings({"bundle": bundled(tmp_path, tmp_path / "words")})
    assert load_head(settings, "intent").classify("play a song").label == "music"
    with pytest.raises(ModelNotFoundError, match="the bundle demo has none of this name"):
        load_head(settings, "other")
    with pytest.raises(ModelNotFoundError, match="there is no bundle"):
        load_head(load_settings({}), "intent")


def test_a_packed_head_over_vectors_needs_its_encoder_in_the_bundle(tmp_path: Path, encoder: Path) -> None:
    fit_head(labelled(), tmp_path / "bare", encoder=open_encoder(encoder))
    with pytest.raises(BundleError, match="neither beside it nor the bundle's"):
        bundled(tmp_path, tmp_path / "bare")
    path = bundled(tmp_path, tmp_path / "bare", Part("encoder", encoder, "MIT"))
    shared = load_head(load_settings({"bundle": path}), "intent").classify("play a song")
    path.unlink()
    fit_head(labelled(), tmp_path / "whole", encoder=open_encoder(encoder), carry=encoder)
    own = load_head(load_settings({"bundle": bundled(tmp_path, tmp_path / "whole")}), "intent")
    assert own.classify("play a song") == shared


def test_a_damaged_head_does_not_get_into_a_bundle(tmp_path: Path) -> None:
    fit_head(labelled(), tmp_path / "head")
    file = tmp_path / "head" / "head.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(BundleError, match="its format is 9"):
        bundled(tmp_path, tmp_path / "head")
    assert not (tmp_path / "a.edge").exists()


def test_what_cannot_be_done_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = str(write_examples(tmp_path / "a.jsonl"))
    assert main(["head", "fit", examples, str(tmp_path / "out"), "--features", "words", "--carry"]) == 2
    assert main(["head", "fit", str(tmp_path / "none.jsonl"), str(tmp_path / "out"), "--features", "words"]) == 1
    assert main(["head", "classify", str(tmp_path), "a"]) == 1
    assert main(["eval", "intents", "--data", examples, "--features", "words"]) == 1
    for line in capsys.readouterr().err.splitlines():
        assert "Traceback" not in line
    assert not (tmp_path / "out").exists()


def test_a_set_is_judged_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_set(tmp_path / "set.json"))
    assert main(["eval", "intents", "--data", data, "--features", "words", "--seeds", "1", "--shots", "4"]) == 0
    found = last(capsys)
    assert (found["data"], found["features"], found["draws"]) == ("set.json", "words", 1)
    assert set(found["accuracy"]) == {"mean", "least", "most"}
