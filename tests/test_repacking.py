"""Where weights are copied for the kernels of single tokens, and that an engine is told so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_files import tiny_llama
from gguf_headers import made_header
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from edge_sdk.engines import repacking
from edge_sdk.engines.batch_engine import BatchEngine
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.llama_library import library
from edge_sdk.engines.memory import estimate_memory
from edge_sdk.engines.profile import Tuning
from edge_sdk.engines.repacking import copied_tensors, decide_repacking
from edge_sdk.records import GenerateOptions
from quantize.gguf_models.quantizer import quantize_file
from quantize.teachers.gguf_teacher import GgufTeacher


def test_what_has_tiled_kernels_is_left_as_it_lies_on_x86_alone() -> None:
    for kind, machine, repacked in (
        ("Q4_K", "x86_64", False),
        ("Q2_K", "AMD64", False),
        ("IQ4_NL", "x86_64", True),
        ("Q4_0", "x86_64", True),
        ("Q4_K", "aarch64", True),
        ("Q6_K", "x86_64", True),  # nothing is copied, so llama.cpp may do as it likes
        ("Q4_K", "riscv64", True),
    ):
        found = decide_repacking(Tuning(), made_header(kind=kind), machine, features=())
        assert found.repack is repacked, (kind, machine)
    assert decide_repacking(Tuning(), made_header(kind="Q4_K"), "x86_64", features=("amx_int8",)).repack is True


def test_most_bytes_decide() -> None:
    header = made_header(kind="Q4_K")
    for others, repacked in ((3, False), (12, True)):
        tensors = tuple(
            replace(tensor, type="IQ4_NL" if 0 < at <= others else tensor.type)
            for at, tensor in enumerate(header.tensors)
        )
        found = decide_repacking(Tuning(), replace(header, tensors=tensors), "x86_64", features=())
        assert found.repack is repacked


@given(
    kind=st.sampled_from(["Q4_K", "IQ4_NL", "Q8_0", "Q4_1"]),
    machine=st.sampled_from(["x86_64", "arm64", "riscv64", ""]),
    wanted=st.sampled_from([None, True, False]),
)
def test_a_choice_is_kept_and_what_is_copied_counts_as_memory(kind: str, machine: str, wanted: bool | None) -> None:
    header = made_header(kind=kind, tied=False)
    found = decide_repacking(Tuning(batch=64, repack=wanted), header, machine)
    assert found == Tuning(batch=64, repack=found.repack)
    assert isinstance(found.repack, bool) and wanted in (None, found.repack)
    copied = sum(tensor.bytes for tensor in copied_tensors(header, machine) if tensor.name != "token_embd.weight")
    expected = copied if found.repack else 0
    assert estimate_memory(header, 512, Tuning(repack=wanted), machine=machine).copies == expected


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q4_k")
    quantize_file(tiny_llama(folder / "plain.gguf", embed=256, feed=256), folder / "q4_k.gguf", "Q4_K_S")
    return folder / "q4_k.gguf"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether llama.cpp was told to repack, of each model that was loaded."""
    lib, told = library(), []
    load = lib.llama_model_load_from_file

    def noted(name: bytes, settings: Any) -> Any:
        told.append(bool(settings.use_extra_bufts))
        return load(name, settings)

    monkeypatch.setattr(lib, "llama_model_load_from_file", noted)
    return told


def test_every_engine_decides_by_the_file(path: Path, seen: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repacking, "cpu_features", lambda: ())
    setups = []
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(repacking.platform, "machine", lambda machine=machine: machine)
        with GgufEngine.open(path, threads=1, context=128) as engine:
            setups.append(engine._model.setup)
        with BatchEngine.open(path, threads=1, context=128), GgufTeacher.open(path, threads=1):
            pass
    assert seen == [False] * 3 + [True] * 3
    assert [setup["repack"] for setup in setups] == [False, True]


def test_an_engine_loads_its_weights_as_told_and_answers_alike(path: Path, seen: list[bool]) -> None:
    logprobs = []
    for wanted in (True, False):
        with GgufEngine.open(path, threads=1, context=128, tuning=Tuning(repack=wanted)) as engine:
            tokens = engine.generate("the same words for both", GenerateOptions(max_tokens=1))
            logprobs.append(next(iter(tokens)).logprob)
    assert seen == [True, False]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=0.05)
