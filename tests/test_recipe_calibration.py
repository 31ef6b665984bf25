"""What a bundle claims of its answers is fitted on questions that it has not learned from, or it claims nothing."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Event

import pytest
from bundle_files import make_bundle

from edge_sdk import loading
from edge_sdk.confidence.calibration import load
from edge_sdk.config import load_settings
from edge_sdk.fakes import FakeEncoder, FakeEngine, FakeReader
from edge_sdk.prompt import Reading
from quantize.recipes.bundle_stages import CALIBRATIONS, DRAFT, calibrate_bundle
from quantize.recipes.cache import Result
from quantize.recipes.stages import Job
from quantize.training_data.example import Example, write_examples


def say(prompt: str) -> str:
    """Right on two pumps of three; on the others a number that no passage holds."""
    number = int(re.findall(r"pressure of pump (\d+)", prompt)[-1])
    return f"The pressure is {number + 500} bar." if number % 3 else "It might be 12345 volts, perhaps."


def job(folder: Path, count: int, roles: list[str]) -> Job:
    """The stage with `count` questions, behind a bundle of these roles."""
    for name in ("out/scratch", "curate", "assemble"):
        (folder / name).mkdir(parents=True)
    examples = [
        Example(
            f"What is the pressure of pump {at}?", f"The pressure of pump {at} is {at + 500} bar.", (str(at + 500),)
        )
        for at in range(count)
    ]
    write_examples(folder / "curate" / "calibration.jsonl", examples)
    for name in ("train", "held_out"):
        write_examples(folder / "curate" / f"{name}.jsonl", [])
    make_bundle(folder).rename(folder / "assemble" / DRAFT)
    results = {
        "curate": Result(folder / "curate", ""),
        "assemble": Result(folder / "assemble", "", {"roles": roles}),
    }
    return Job(folder / "out", results, lambda done, total, detail: None, Event())


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"What is the pressure of pump {at}?": str(at + 500) if at % 3 else "red" for at in range(90)}
    monkeypatch.setattr(loading, "load_encoder", lambda settings: FakeEncoder())
    monkeypatch.setattr(loading, "load_engine", lambda settings: (FakeEngine(say), Reading()))
    monkeypatch.setattr(loading, "load_reader", lambda settings: FakeReader(known))


def test_reader_and_decoder_are_calibrated_and_share_the_risk(tmp_path: Path) -> None:
    made = calibrate_bundle(job(tmp_path, 90, ["decoder", "reader"]), load_settings({"home": tmp_path}, {}))
    assert made == {"calibrations": 2, "questions": 90}
    found = [load(path) for path in sorted((tmp_path / "out" / CALIBRATIONS).glob("*.json"))]
    assert {each.setup.parts["prompt"].startswith("the words of a passage") for each in found} == {True, False}
    assert [each.certificate.alpha for each in found if each.certificate] == [0.05, 0.05]


def test_without_a_decoder_the_reader_has_all_of_it(tmp_path: Path) -> None:
    made = calibrate_bundle(job(tmp_path, 90, ["encoder", "reader"]), load_settings({"home": tmp_path}, {}))
    (found,) = [load(path) for path in (tmp_path / "out" / CALIBRATIONS).glob("*.json")]
    assert made["calibrations"] == 1 and found.certificate is not None and found.certificate.alpha == 0.1


def test_too_few_questions_claim_nothing(tmp_path: Path) -> None:
    made = calibrate_bundle(job(tmp_path, 20, ["decoder", "reader"]), load_settings({"home": tmp_path}, {}))
    assert made["calibrations"] == 0 and "20 questions are too few" in made["why"]
    assert list((tmp_path / "out" / CALIBRATIONS).iterdir()) == []
