"""Profiles: used for the model and the processor that they were measured with, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import tiny_llama

from edge_sdk.config import load_settings
from edge_sdk.device import cpu_name
from edge_sdk.engines.profile import Profile, Tuning, find_profile, profile_path
from edge_sdk.errors import ConfigError
from edge_sdk.loading import load_engine


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf")


def made(model: Path, **more: object) -> Profile:
    return replace(Profile("tiny", model.stat().st_size, threads=1, device=cpu_name()), **more)  # type: ignore[arg-type]


def test_a_profile_is_found_again(model: Path, tmp_path: Path) -> None:
    profile = made(model, tuning=Tuning(batch=64, flash_attention=True, cache_type="Q8_0"), figures={"x": 1.5})
    assert find_profile(tmp_path, model) is None
    assert profile.save(tmp_path) == profile_path(tmp_path, "tiny", model.stat().st_size)
    assert find_profile(tmp_path, model) == profile


def test_it_belongs_to_its_file_and_processor(model: Path, tmp_path: Path) -> None:
    made(model, device="another").save(tmp_path)
    assert find_profile(tmp_path, model) is None
    made(model, file=str(tmp_path / "gone.gguf")).save(tmp_path)
    assert find_profile(tmp_path, model) is None
    made(model).save(tmp_path)
    assert find_profile(tmp_path, model) is not None
    model.write_bytes(model.read_bytes() + b"\0")
    assert find_profile(tmp_path, model) is None


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1]", '{"format": "edge-profile-1"}',
     '{"format": "edge-profile-1", "model": "m", "bytes": 1, "tuning": {"batch": 0}}'],
)  # fmt: skip
def test_what_is_no_profile_is_said(model: Path, tmp_path: Path, content: str) -> None:
    path = profile_path(tmp_path, "tiny", model.stat().st_size)
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ConfigError, match="is no profile"):
        find_profile(tmp_path, model)


def test_the_engine_loads_what_the_profile_names(model: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other.gguf", seed=2)
    settings = load_settings({"home": tmp_path, "model": str(model)})
    plain, _ = load_engine(settings)
    made(model, file=str(other), sha256="ab", tuning=Tuning(batch=16)).save(tmp_path)
    tuned, _ = load_engine(settings)
    assert (tuned.name, tuned.fingerprint) == (plain.name, "ab")
    assert plain.fingerprint != "ab"


@pytest.mark.parametrize(
    "tuning", [Tuning(batch=8), Tuning(flash_attention=True, cache_type="Q8_0"), Tuning(flash_attention=False)]
)
def test_answers_do_not_depend_on_how_the_context_is_set_up(tmp_path: Path, tuning: Tuning) -> None:
    from edge_sdk.engines.engine_gguf import GgufEngine
    from edge_sdk.records import GenerateOptions

    model = tiny_llama(tmp_path / "tiny.gguf", embed=64)  # heads of 32: what a block of the 8-bit cache holds
    prompt = "the end and the " * 6
    texts = []
    for each in (Tuning(), tuning):
        engine = GgufEngine.open(model, context=256, threads=1, tuning=each)
        texts.append([token.text for token in engine.generate(prompt, GenerateOptions(max_tokens=3))])
        engine.close()
    assert texts[0][0] == texts[1][0]
