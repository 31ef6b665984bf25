"""Tuning: what is chosen follows from what was measured, is kept at once, and becomes the model's profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf_files import tiny_llama

from edge_sdk.device import cpu_name
from edge_sdk.engines.profile import Tuning, find_profile
from edge_sdk.errors import ConfigError
from quantize.gguf_models import tune
from quantize.gguf_models.mixed import Source
from quantize.gguf_models.tensors import GgufModel
from quantize.gguf_models.tune import OWN, Candidate, Setting, Tuner, choose, choose_setting, front, make_profile

PUBLISHED = Candidate(OWN, 100, 0.002, 400, 150, 1.0, 1.0)


def candidate(name: str, size: int, divergence: float, prefill: float, decode: float) -> Candidate:
    return Candidate(name, size, divergence, 400 * prefill, 150 * decode, prefill, decode)


FOUND = [
    PUBLISHED,
    candidate("Q8_0", 145, 0.004, 2.1, 1.0),
    candidate("Q4_0", 92, 0.2, 2.9, 1.15),
    candidate("mixed", 112, 0.05, 2.5, 1.12),
    candidate("worse", 150, 0.3, 0.9, 0.8),
]


def test_the_fastest_within_the_bounds_is_chosen() -> None:
    assert choose(FOUND, most_divergence=0.01).name == "Q8_0"
    assert choose(FOUND, most_divergence=0.06).name == "mixed"
    assert choose(FOUND, most_divergence=1).name == "Q4_0"
    assert choose(FOUND, most_divergence=0.01, most_bytes=120).name == OWN
    assert choose(FOUND, most_divergence=0).name == OWN


def test_slower_decoding_is_never_chosen() -> None:
    slow = candidate("slow", 90, 0.001, 3.0, 0.97)
    assert choose([*FOUND, slow], most_divergence=0.01).name == "Q8_0"


def test_the_front_leaves_out_what_another_beats_in_all() -> None:
    assert [each.name for each in front(FOUND)] == [OWN, "Q8_0", "Q4_0", "mixed"]
    assert front([PUBLISHED, replace(PUBLISHED, name="twin")]) == [PUBLISHED, replace(PUBLISHED, name="twin")]


def test_a_setting_must_gain_clearly_and_lose_nothing() -> None:
    first = Setting(2, Tuning(), 1.0, 1.0)
    assert choose_setting([first, Setting(1, Tuning(), 0.6, 0.9)]) == first
    assert choose_setting([first, Setting(2, Tuning(batch=256), 1.02, 1.0)]) == first
    better = Setting(2, Tuning(flash_attention=True), 1.2, 0.99)
    assert choose_setting([first, better, Setting(2, Tuning(batch=128), 1.3, 0.8)]) == better
    assert choose_setting([first, Setting(2, Tuning(cache_type="Q8_0"), 1.5, 1.5)]) == first


class Bench:
    """References that know how far a file is by its bytes."""

    def __init__(self, source: Source) -> None:
        self.source, self.compared = source, list[str]()
        self.judging = self.planning = self

    def compare(self, path: Path, **_: object) -> SimpleNamespace:
        self.compared.append(path.name)
        return SimpleNamespace(kld_mean=1 / path.stat().st_size)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    path = tiny_llama(tmp_path / "tiny.gguf", embed=64, feed=128)
    return Bench(Source(GgufModel(path)))


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Speeds by type; every race is noted."""
    noted: list[list[str]] = []

    def race(runs: Mapping[str, Any], against: str, **_: object) -> dict[str, dict[str, Any]]:
        noted.append(list(runs))
        speeds = {OWN: 1.0, "Q8_0": 2.0, "Q4_0": 3.0}
        return {
            name: {"prefill": 100 * (speed := speeds.get(name, 2.5)), "decode": 50.0, "prefill_ratio": speed,
                   "decode_ratio": 1.0, "spread": {}}
            for name in runs
        }  # fmt: skip

    monkeypatch.setattr(tune, "race", race)
    return noted


def test_candidates_are_files_and_measured_once(bench: Bench, races: list[list[str]], tmp_path: Path) -> None:
    tuner = Tuner(bench, tmp_path / "work", threads=1)  # type: ignore[arg-type]
    found = tuner.candidates(("Q8_0", "Q4_0"), (0.5,))
    assert [each.name for each in found] == [OWN, "Q8_0", "Q4_0", "mixed 50%"]
    for each in found:
        assert tuner.path(each.name).stat().st_size == each.bytes
    compared, raced = len(bench.compared), len(races)
    again = Tuner(bench, tmp_path / "work", threads=1).candidates(("Q8_0", "Q4_0"), (0.5,))  # type: ignore[arg-type]
    assert [replace(each, spread={}) for each in again] == [replace(each, spread={}) for each in found]
    assert len(races) == raced
    assert {name for name in bench.compared[compared:] if name != "probe.gguf"} == set()


def test_a_mixed_file_takes_the_faster_types_the_faster_it_shall_be(
    bench: Bench, races: list[list[str]], tmp_path: Path
) -> None:
    tuner = Tuner(bench, tmp_path / "work", threads=1)  # type: ignore[arg-type]
    tuner.candidates(("Q8_0", "Q4_0"), (0.2, 0.9))
    shares = []
    for share in (20, 90):
        (path,) = (tmp_path / "work").glob(f"mixed-{share}-*.json")
        types = json.loads(path.read_text())["types"]
        shares.append(sum(type == "Q4_0" for name, type in types.items() if name.startswith("blk.")))
    assert shares[0] < shares[1]


def test_wide_files_may_be_any_size_but_decode_no_slower_than_the_models_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = {OWN: (1.0, 1.0), "BF16": (4.0, 0.8), "Q4_0": (3.0, 1.5)}

    def race(runs: Mapping[str, Any], against: str, **_: object) -> dict[str, dict[str, Any]]:
        return {
            name: {"prefill": 100 * prefill, "decode": 50 * decode, "prefill_ratio": prefill,
                   "decode_ratio": decode, "spread": {}}
            for name in runs
            for prefill, decode in [rates.get(name, (1.0, 1.0))]
        }  # fmt: skip

    monkeypatch.setattr(tune, "race", race)
    tuner = Tuner(bench, tmp_path / "work", threads=1)  # type: ignore[arg-type]
    found = tuner.candidates(("BF16", "Q4_0"), (0.5,), (0.5,))
    assert [each.name for each in found] == [OWN, "BF16", "Q4_0", "mixed 50%", "wide 50%"]

    def types(kind: str) -> dict[str, str]:
        (path,) = (tmp_path / "work").glob(f"{kind}-50-*.json")
        return dict(json.loads(path.read_text())["types"])

    assert "BF16" not in types("mixed").values()
    wide = types("wide")
    assert "BF16" in wide.values()
    weights = {name: prod(bench.source.tensors[name].shape) for name in wide}
    seconds = sum(weights[name] / rates.get(type, (1.0, 1.0))[1] for name, type in wide.items())
    assert seconds <= sum(weights.values())


def test_nothing_is_mixed_where_no_type_is_faster(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def race(runs: Mapping[str, Any], against: str, **_: object) -> dict[str, dict[str, Any]]:
        slow = {"prefill": 50.0, "decode": 20.0, "prefill_ratio": 0.5, "decode_ratio": 0.4, "spread": {}}
        own = {"prefill": 100.0, "decode": 50.0, "prefill_ratio": 1.0, "decode_ratio": 1.0, "spread": {}}
        return {name: own if name == OWN else slow for name in runs}

    monkeypatch.setattr(tune, "race", race)
    found = Tuner(bench, tmp_path / "work", threads=1).candidates(("Q8_0", "Q4_0"))  # type: ignore[arg-type]
    assert [each.name for each in found] == [OWN, "Q8_0", "Q4_0"]


def test_questions_are_asked_to_every_file_of_the_front(
    bench: Bench, races: list[list[str]], tmp_path: Path
) -> None:
    asked: list[Path] = []

    def answers(path: Path) -> float:
        asked.append(path)
        return 0.5

    found = Tuner(bench, tmp_path / "work", threads=1, answers=answers).candidates(("Q8_0",), ())  # type: ignore[arg-type]
    assert [each.contained for each in found] == [0.5, 0.5]
    assert len(asked) == 2


def test_other_questions_are_asked_anew(bench: Bench, races: list[list[str]], tmp_path: Path) -> None:
    for share, name in ((0.5, "squad"), (0.25, "other"), (0.75, "squad")):
        tuner = Tuner(bench, tmp_path / "work", threads=1, answers=lambda path, share=share: share, asked=name)  # type: ignore[arg-type,misc]
        assert tuner.candidates(("Q8_0",), ())[0].contained == (0.5 if name == "squad" else 0.25)


def test_what_another_processor_measured_does_not_count(
    bench: Bench, races: list[list[str]], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    Tuner(bench, work, threads=1).candidates(("Q8_0",), ())  # type: ignore[arg-type]
    kept = json.loads((work / "measured.json").read_text())
    assert kept["device"] == cpu_name()
    (work / "measured.json").write_text(json.dumps({**kept, "device": "another"}))
    before = len(races)
    Tuner(bench, work, threads=1).candidates(("Q8_0",), ())  # type: ignore[arg-type]
    assert len(races) > before
    (work / "measured.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tuner(bench, work)  # type: ignore[arg-type]


def test_the_profile_names_the_file_unless_it_is_the_models_own(bench: Bench, tmp_path: Path) -> None:
    own = bench.source.model.path
    other = tiny_llama(tmp_path / "other.gguf", seed=5)
    setting = Setting(1, Tuning(batch=128), 1.1, 1.0)
    make_profile(bench.source, other, setting, {"divergence": 0.1}).save(tmp_path)
    found = find_profile(tmp_path, own)
    assert found is not None
    assert (found.file, found.threads, found.tuning.batch) == (str(other), 1, 128)
    assert make_profile(bench.source, own, setting, {}).file == ""


def test_a_race_measures_real_models_in_turns(tmp_path: Path) -> None:
    one, other = (tiny_llama(tmp_path / f"{seed}.gguf", context=2048, seed=seed) for seed in (1, 2))
    runs = {OWN: (one, 1, Tuning()), "other": (other, 1, Tuning(batch=64))}
    found = tune.race(runs, OWN, repeats=2)
    assert found[OWN]["prefill_ratio"] == found[OWN]["decode_ratio"] == 1
    assert found["other"]["prefill"] > 0 and found["other"]["decode"] > 0
    low, high = found["other"]["spread"]["prefill"]
    assert low <= found["other"]["prefill"] <= high
