"""llama.cpp's quantizer: its types, plans that are exact to the byte, fallbacks, overrides, and what goes wrong."""

from __future__ import annotations

import dataclasses
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf_files import BOOL, F32, STRING, U32, Field, Weights, gguf_bytes, tiny_llama

from edge_sdk.engines.llama_library import library
from edge_sdk.errors import ConfigError, DiskFullError, EngineError, ModelDamagedError, ModelNotFoundError
from edge_sdk.model_files.gguf_header import read_header
from quantize.gguf_models import gguf_format, quantizer, quantizer_job
from quantize.gguf_models.file_types import file_type, file_types, tensor_number
from quantize.gguf_models.ggml import row_bytes
from quantize.gguf_models.importance import Importance
from quantize.gguf_models.quantization_plan import Fallback, read_plan
from quantize.gguf_models.quantizer import QuantizedFile, quantize_file, survey_types
from quantize.gguf_models.quantizer_process import QuantizerProcess
from quantize.gguf_models.tensors import GgufModel

QUICK = ("Q8_0", "Q4_0", "Q4_K_M", "Q6_K", "Q2_K", "IQ4_NL", "TQ2_0", "Q1_0", "F16", "BF16", "F32", "MXFP4_MOE")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 32 and 64: no type with blocks of 256 fits."""
    return tiny_llama(tmp_path_factory.mktemp("narrow") / "narrow.gguf")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256: every type fits."""
    return tiny_llama(tmp_path_factory.mktemp("wide") / "wide.gguf", embed=256, feed=256)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "small.gguf"


def matrices(path: Path) -> dict[str, int]:
    """Names of the matrices with their columns."""
    return {tensor.name: tensor.shape[0] for tensor in read_header(path).tensors if len(tensor.shape) > 1}


def flat_importance(path: Path, **changed: np.ndarray[Any, Any]) -> Importance:
    squares = {name: np.ones(columns, np.float32) for name, columns in matrices(path).items()}
    return Importance({**squares, **changed}, 1000, "a text")


def unknown_architecture(folder: Path) -> Path:
    metadata = {"general.architecture": Field(STRING, "nobody"), "some.flag": Field(BOOL, 1)}
    path = folder / "nobody.gguf"
    path.write_bytes(gguf_bytes(metadata, {"a.weight": Weights((32, 2), 0, bytes(256))}))
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- types ------------------------------------------------------------------------------------------


def test_the_table_has_the_numbers_of_the_library_and_nothing_is_missing() -> None:
    constants = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): number
        for name, number in vars(library()).items()
        if name.startswith("LLAMA_FTYPE_")
    }
    assert {each.name: each.number for each in file_types().values()} == {
        name: number for name, number in constants.items() if name not in ("GUESSED", "NVFP4")
    }


def test_base_types_are_those_that_the_library_takes(wide: Path) -> None:
    model = GgufModel(wide)
    with QuantizerProcess() as process:
        for each in file_types().values():
            job = quantizer_job.quantizer_job(model, each, (), None, threads=1, pure=True)
            plan = quantizer._planned(process, model, each, job)
            assert {plan.types[name] for name in matrices(wide)} == {each.base}, each.name
            assert plan.bits_per_weight == pytest.approx(each.bits_per_weight, abs=0.05)  # norms


def test_the_type_left_out_is_one_that_the_library_refuses(wide: Path) -> None:
    number = library().LLAMA_FTYPE_MOSTLY_NVFP4
    nvfp4 = dataclasses.replace(file_type("Q8_0"), number=number)
    job = quantizer_job.quantizer_job(GgufModel(wide), nvfp4, (), None, threads=1, pure=False)
    job["settings"]["dry_run"] = True
    with QuantizerProcess() as process, pytest.raises(EngineError, match=f"invalid output file type {number}"):
        process.run({**job, "out": ""})


def test_types_are_found_in_any_case_and_by_alias() -> None:
    assert file_type("q4_k").name == "Q4_K_M"
    assert tensor_number("bf16") == 30
    with pytest.raises(ConfigError, match=r"no quantization type 'Q4_KM'; did you mean Q4_K_M"):
        file_type("Q4_KM")
    with pytest.raises(ConfigError, match="no tensor can be made 'Q8_K'"):
        tensor_number("Q8_K")


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_a_dry_run_is_exact_to_the_byte_and_the_file_is_as_planned(wide: Path, out: Path, name: str) -> None:
    planned = quantize_file(wide, out, name, dry_run=True, threads=1)
    assert left_in(out.parent) == []
    made = quantize_file(wide, out, name, threads=1)
    assert dataclasses.replace(made, path=None) == planned
    assert made.bytes == out.stat().st_size
    assert left_in(out.parent) == ["small.gguf"]
    header = read_header(out)
    assert {tensor.name: tensor.type for tensor in header.tensors} == made.tensor_types
    assert sum(share.bytes for share in made.types.values()) == sum(tensor.bytes for tensor in header.tensors)
    assert sum(share.tensors for share in made.types.values()) == len(header.tensors)
    assert header.metadata["general.file_type"] == file_type(name).number


def test_a_dry_run_is_exact_with_importance_overrides_and_odd_shapes(tmp_path: Path, out: Path) -> None:
    source = tiny_llama(tmp_path / "odd.gguf", experts=3, extra={"some.number": Field(F32, 1.5)})
    importance = Importance({"token_embd.weight": np.ones(32, np.float32)}, 700, "tëxt" * 60)
    settings: dict[str, Any] = {"overrides": [("attn_v", "Q8_0")], "importance": importance, "threads": 1}
    planned = quantize_file(source, out, "Q4_0", dry_run=True, **settings)
    assert quantize_file(source, out, "Q4_0", **settings).bytes == planned.bytes == out.stat().st_size


def test_weights_are_those_of_the_source(wide: Path, out: Path) -> None:
    quantize_file(wide, out, "Q8_0", threads=1)
    for name in matrices(wide):
        before, after = GgufModel(wide).floats(name), GgufModel(out).floats(name)
        assert np.abs(after - before).max() < np.abs(before).max() / 120


def test_the_result_says_whether_the_source_was_quantized_already(wide: Path, out: Path, tmp_path: Path) -> None:
    first = quantize_file(wide, out, "Q8_0", threads=1)
    assert (first.requantized, first.reference) == (False, "the source's own weights")
    assert first.source_bits_per_weight == 32
    second = quantize_file(out, tmp_path / "second.gguf", "Q4_0", threads=1)
    assert (second.requantized, second.reference) == (True, "the de-quantized published file")
    assert second.source_types == first.types


def test_progress_comes_to_the_last_tensor(wide: Path, out: Path) -> None:
    seen: list[tuple[float, float | None]] = []
    quantize_file(wide, out, "Q8_0", threads=1, progress=lambda done, total, detail: seen.append((done, total)))
    count = len(read_header(wide).tensors)
    assert seen == [(at, count) for at in range(1, count + 1)]


def test_every_type_is_surveyed_for_a_model(wide: Path, narrow: Path) -> None:
    results = survey_types(wide, threads=1)
    assert [each.type for each in results] != []
    assert {each.type for each in results} == set(file_types())
    assert [each.bytes for each in results] == sorted(each.bytes for each in results)
    found = {each.type: each for each in survey_types(narrow, threads=1)}
    assert "Q1_0" not in found  # blocks of 128, and llama.cpp knows nothing else for it
    assert found["Q4_K_M"].fallbacks


def test_a_survey_of_what_no_type_fits_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nobody"):
        survey_types(unknown_architecture(tmp_path))


# --- fallbacks --------------------------------------------------------------------------------------


def test_fallbacks_are_reported_with_what_they_cost(narrow: Path, out: Path) -> None:
    made = quantize_file(narrow, out, "Q4_K_S", threads=1)
    embedding, others = 267 * 34, [columns for name, columns in matrices(narrow).items() if "token" not in name]
    assert made.types["Q8_0"].bytes == embedding
    # llama.cpp says nothing of the output matrix, which it would have made Q6_K
    assert Fallback("Q6_K", "Q8_0", 1, embedding) in made.fallbacks
    assert sum(each.tensors for each in made.fallbacks) == len(others) + 1
    for each in made.fallbacks:
        assert row_bytes(each.asked, 32) is None
        assert made.types[each.got].bytes == sum(one.bytes for one in made.fallbacks if one.got == each.got)


def test_without_fallbacks_none_is_reported(wide: Path, narrow: Path, out: Path) -> None:
    assert quantize_file(wide, out, "Q4_K_M", dry_run=True).fallbacks == ()
    assert quantize_file(narrow, out, "Q8_0", dry_run=True).fallbacks == ()
    given = quantize_file(narrow, out, "Q4_K_S", dry_run=True, overrides=[("token_embd", "Q8_0")])
    assert all(each.asked != "Q6_K" for each in given.fallbacks)


# --- overrides --------------------------------------------------------------------------------------


def test_the_first_override_that_matches_decides(wide: Path, out: Path) -> None:
    overrides = [(r"attn_[qk]\.", "Q8_0"), ("attn", "Q5_K"), ("token_embd", "IQ4_NL"), (r"(?<=ffn_)down", "f16")]
    types = quantize_file(wide, out, "Q4_0", overrides=overrides, threads=1).tensor_types
    assert {name.split(".")[-2]: kind for name, kind in types.items() if kind not in ("F32", "Q4_0")} == {
        "attn_q": "Q8_0",
        "attn_k": "Q8_0",
        "attn_v": "Q5_K",
        "attn_output": "Q5_K",
        "token_embd": "IQ4_NL",
        "ffn_down": "F16",
    }


@pytest.mark.parametrize(
    ("type", "override", "message"),
    [
        ("Q4_0", ("nothing_like_it", "Q8_0"), "matches no tensor; names look like blk.0."),
        ("Q4_0", ("attn_norm", "Q8_0"), "changes nothing"),
        ("Q4_0", ("attn_(", "Q8_0"), "no regular expression"),
        ("Q4_0", ("attn_q", "Q8_K"), "no tensor can be made 'Q8_K'"),
        ("F16", ("attn_q", "Q8_0"), "no overrides for F16"),
    ],
)
def test_an_override_that_cannot_be_followed_is_refused(
    wide: Path, out: Path, type: str, override: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        quantize_file(wide, out, type, overrides=[override], dry_run=True)


def test_an_override_that_falls_back_counts_as_followed(narrow: Path, out: Path) -> None:
    made = quantize_file(narrow, out, "Q8_0", overrides=[("attn_q", "Q6_K")], dry_run=True)
    assert made.tensor_types["blk.0.attn_q.weight"] == "Q8_0"
    assert [(each.asked, each.got, each.tensors) for each in made.fallbacks] == [("Q6_K", "Q8_0", 1)]


# --- importance -------------------------------------------------------------------------------------


def test_errors_move_away_from_columns_that_matter(wide: Path, out: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    peaked = np.where(np.arange(256) % 8 == 0, 1000, 1).astype(np.float32)
    weighted = flat_importance(wide, **{name: peaked})
    quantize_file(wide, out, "Q4_0", importance=flat_importance(wide), threads=1)
    quantize_file(wide, tmp_path / "peaked.gguf", "Q4_0", importance=weighted, threads=1)
    exact = GgufModel(wide).floats(name)

    def error(path: Path) -> float:
        return float((peaked * (GgufModel(path).floats(name) - exact) ** 2).sum())

    assert error(tmp_path / "peaked.gguf") < 0.9 * error(out)


@pytest.mark.parametrize("type", ["Q4_0", "Q6_K"])
def test_columns_that_the_text_did_not_use_are_kept(wide: Path, out: Path, type: str) -> None:
    name = "blk.0.attn_q.weight"
    idle = np.where(np.arange(256) < 128, 0, 1).astype(np.float32)
    quantize_file(wide, out, type, importance=flat_importance(wide, **{name: idle}), threads=1)
    before, after = GgufModel(wide).floats(name), GgufModel(out).floats(name)
    assert np.square(after - before)[:, :128].mean() < 0.02 * np.square(before).mean()  # 1.0 without a floor


def test_the_file_names_its_matrix_and_forgets_it_when_made_anew(wide: Path, out: Path, tmp_path: Path) -> None:
    made = quantize_file(wide, out, "Q4_K_M", importance=flat_importance(wide), threads=1)
    assert made.importance == "a text"
    metadata = read_header(out).metadata
    assert metadata["quantize.imatrix.dataset"] == "a text"
    assert metadata["quantize.imatrix.entries_count"] == len(matrices(wide))
    assert metadata["quantize.imatrix.chunks_count"] == 2  # windows of 512 in 1,000 tokens
    again = tmp_path / "again.gguf"
    quantize_file(out, again, "Q8_0", threads=1)
    assert read_header(again).metadata["quantize.imatrix.dataset"] == "none"


@pytest.mark.parametrize("name", ["IQ2_XXS", "Q2_K_S"])
def test_types_that_need_a_matrix_say_so_before_anything_is_written(wide: Path, out: Path, name: str) -> None:
    planned = quantize_file(wide, out, name, dry_run=True)
    assert planned.needs_importance
    with pytest.raises(ConfigError, match=rf"{name} needs an importance matrix .*--calibration-text"):
        quantize_file(wide, out, name)
    some = Importance({name: np.ones(256, np.float32) for name in planned.needs_importance[1:]}, 9, "")
    with pytest.raises(ConfigError, match=r"1 tensors"):
        quantize_file(wide, out, name, importance=some)
    assert left_in(out.parent) == []
    full = quantize_file(wide, out, name, importance=flat_importance(wide), dry_run=True)
    assert full.needs_importance == ()


def test_a_matrix_of_another_model_or_with_no_numbers_is_refused(wide: Path, narrow: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="has 32 columns"):
        quantize_file(wide, out, "Q4_0", importance=flat_importance(narrow))
    broken = flat_importance(wide, **{"token_embd.weight": np.full(256, np.nan, np.float32)})
    with pytest.raises(ConfigError, match="impossible figures for token_embd"):
        quantize_file(wide, out, "Q4_0", importance=broken)


# --- what goes wrong --------------------------------------------------------------------------------


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(wide: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.gguf"
    there.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        quantize_file(wide, there, "Q8_0")
    assert there.read_text() == "mine"
    with pytest.raises(ConfigError, match="exists already"):
        quantize_file(wide, tmp_path, "Q8_0", overwrite=True)
    with pytest.raises(ConfigError, match="is the model that is to be quantized"):
        quantize_file(wide, wide, "Q8_0", overwrite=True)
    assert quantize_file(wide, there, "Q8_0", overwrite=True, threads=1).bytes == there.stat().st_size


def test_a_source_that_is_no_model_never_reaches_native_code(
    wide: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer, "QuantizerProcess", None)
    (tmp_path / "text.gguf").write_text("no model " * 9)
    (tmp_path / "cut.gguf").write_bytes(wide.read_bytes()[:-1000])
    for name in ("text.gguf", "cut.gguf"):
        with pytest.raises(ModelDamagedError):
            quantize_file(tmp_path / name, out, "Q8_0")
    with pytest.raises(ModelNotFoundError):
        quantize_file(tmp_path / "absent.gguf", out, "Q8_0")
    metadata = {"general.architecture": Field(STRING, "llama"), "general.alignment": Field(U32, 64)}
    aligned = gguf_bytes(metadata, {"a.weight": Weights((32, 2), 0, bytes(256))}, alignment=64)
    (tmp_path / "aligned.gguf").write_bytes(aligned)
    with pytest.raises(ConfigError, match="aligns tensors to 64 bytes"):
        quantize_file(tmp_path / "aligned.gguf", out, "Q8_0")


def test_weights_that_are_no_numbers_are_refused_in_llama_cpps_words(tmp_path: Path, out: Path) -> None:
    source = tiny_llama(tmp_path / "nan.gguf")
    tensor = next(each for each in read_header(source).tensors if "attn_q" in each.name)
    content = bytearray(source.read_bytes())
    content[tensor.offset : tensor.offset + 4] = struct.pack("<f", float("nan"))
    source.write_bytes(content)
    with pytest.raises(EngineError, match=r"llama\.cpp cannot quantize it: .*invalid"):
        quantize_file(source, out, "Q8_0", threads=1)
    assert left_in(out.parent) == []


def test_an_unknown_architecture_is_refused_in_llama_cpps_words(tmp_path: Path, out: Path) -> None:
    with pytest.raises(EngineError, match="nobody"):
        quantize_file(unknown_architecture(tmp_path), out, "Q8_0")


def test_an_abort_of_native_code_is_an_error_with_its_words(wide: Path, out: Path) -> None:
    job = quantizer_job.quantizer_job(
        GgufModel(wide), file_type("Q8_0"), [("token_embd", "IQ2_XXS")], None, threads=1, pure=False
    )
    job["settings"]["dry_run"] = False
    out.parent.mkdir()
    with QuantizerProcess() as process, pytest.raises(EngineError, match=r"signal 6.*imatrix != NULL"):
        process.run({**job, "out": str(out)})
    with pytest.raises(ConfigError, match="needs an importance matrix"):  # found before it comes to that
        quantize_file(wide, out.with_name("b.gguf"), "Q8_0", overrides=[("token_embd", "IQ2_XXS")])


def test_a_full_disk_is_said_before_the_work_with_both_numbers(
    wide: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_format.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskFullError, match=r"has 0 MB free, small\.gguf takes \d.* write to a folder"):
        quantize_file(wide, out, "Q8_0", threads=1)
    assert left_in(out.parent) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_in_the_middle_leaves_nothing(wide: Path, out: Path) -> None:
    with files_of_at_most(100_000), pytest.raises(EngineError, match=r"llama\.cpp cannot quantize it"):
        quantize_file(wide, out, "Q8_0", threads=1)
    assert left_in(out.parent) == []


def test_a_write_that_fails_on_a_full_disk_says_so(wide: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "free_disk", lambda path: 0)
    with files_of_at_most(100_000), pytest.raises(DiskFullError, match=r"disk is full after .* write to a folder"):
        quantize_file(wide, out, "Q8_0", threads=1)


def test_too_little_memory_is_said_before_the_work(wide: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "available_memory", lambda: 1 << 20)
    with pytest.raises(EngineError, match=r"needs 1\d\d MiB of memory, 1 MiB are free"):
        quantize_file(wide, out, "Q8_0")
    assert left_in(out.parent) == []


def test_a_file_that_is_not_as_planned_gets_no_name(wide: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = quantizer._planned

    def wrong(*arguments: Any) -> Any:
        plan = planned(*arguments)
        return dataclasses.replace(plan, bytes=plan.bytes + 32)

    monkeypatch.setattr(quantizer, "_planned", wrong)
    with pytest.raises(ModelDamagedError, match="that were planned"):
        quantize_file(wide, out, "Q8_0", threads=1)
    assert left_in(out.parent) == []


@pytest.mark.parametrize("when", ["before", "during"])
def test_cancelling_leaves_nothing(wide: Path, out: Path, when: str) -> None:
    flag = Event()

    def progress(done: float, total: float | None, detail: str) -> None:
        flag.set()
        raise KeyboardInterrupt  # as Ctrl-C does

    if when == "before":
        flag.set()
    with pytest.raises(KeyboardInterrupt):
        quantize_file(wide, out, "Q8_0", threads=1, progress=progress, cancel=flag)
    assert left_in(out.parent) == []


def test_the_child_process_ends_with_its_parent() -> None:
    command = [sys.executable, "-P", "-m", "quantize.gguf_models.quantizer_worker"]
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(command, input=b"", timeout=60, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == 0


def test_a_library_without_a_parameter_is_refused_by_version(
    wide: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [field for field in library().llama_model_quantize_params._fields_ if field[0] != "dry_run"]
    older = SimpleNamespace(llama_model_quantize_params=SimpleNamespace(_fields_=known))
    monkeypatch.setattr(quantizer_job, "library", lambda: older)
    with pytest.raises(EngineError, match=rf"{version('llama-cpp-python')} has no dry_run"):
        quantize_file(wide, out, "Q8_0")


def test_a_log_that_speaks_of_other_tensors_is_refused_by_version(wide: Path) -> None:
    lines = [
        "[   1/   2] token_embd.weight                    - [   256,   267,     1,     1], type =    f32, size = 1"
    ]
    with pytest.raises(EngineError, match=rf"{version('llama-cpp-python')} tells of 1 of the \d+ tensors"):
        read_plan(GgufModel(wide), lines, file_type("Q8_0"), metadata={})


# --- real weights -----------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_as_q4_k_m_is_mostly_something_else(smollm2_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    planned = quantize_file(smollm2_path, out, "Q4_K_M", dry_run=True)
    made: QuantizedFile = quantize_file(smollm2_path, out, "Q4_K_M", threads=1)
    assert made.bytes == planned.bytes == out.stat().st_size
    assert made.requantized
    assert 6.1 < made.bits_per_weight < 6.2
    assert [(each.asked, each.got, each.tensors) for each in made.fallbacks] == [
        ("Q4_K", "Q5_0", 166),
        ("Q6_K", "Q8_0", 15),
    ]
