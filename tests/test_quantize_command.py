"""`edge quantize`: what it prints, what it leaves on the disk, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_files import tiny_llama

from edge_sdk.cli import main
from edge_sdk.model_files.gguf_header import read_header
from quantize.gguf_models.importance import Importance

TEXT = "the inner thing and another in the band. " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("command") / "tiny.gguf")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "secret-folder" / "manual.txt"
    path.parent.mkdir()
    path.write_text(TEXT, "utf-8")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["quantize", *map(str, arguments), "--json", "--threads", "1"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return document


def fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["quantize", *map(str, arguments)]) in (1, 2)
    return capsys.readouterr().err


def test_the_document_describes_the_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    found = run_json(capsys, model, out, "--type", "q4_k_m", "--override", "attn_v=Q8_0")
    assert found["bytes"] == out.stat().st_size
    assert found["types"]["Q8_0"]["tensors"] >= 1
    assert read_header(out).tensors
    assert (found["type"], found["dry_run"], found["requantized"]) == ("Q4_K_M", False, False)
    assert found["source_bytes"] == model.stat().st_size
    assert {each["asked"] for each in found["fallbacks"]} >= {"Q4_K"}


def test_a_dry_run_writes_nothing_and_knows_the_size(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, matrix = tmp_path / "out.gguf", tmp_path / "matrix.gguf"
    wanted = (model, out, "--type", "Q4_0", "--calibration-text", text, "--save-imatrix", matrix)
    planned = run_json(capsys, *wanted, "--dry-run")
    assert not out.exists()
    assert not matrix.exists()
    made = run_json(capsys, *wanted)
    assert made["bytes"] == planned["bytes"] == out.stat().st_size
    assert made["types"] == planned["types"]


def test_a_matrix_is_collected_kept_and_used_again(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, matrix = tmp_path / "first.gguf", tmp_path / "second.gguf", tmp_path / "matrix.gguf"
    wanted = ("--type", "IQ4_NL", "--calibration-text", text, "--calibration-tokens", 128)
    found = run_json(capsys, model, first, *wanted, "--save-imatrix", matrix)
    assert 64 <= found["importance"]["tokens"] <= 128
    assert Importance.load(matrix).source == "manual.txt"
    run_json(capsys, model, second, "--type", "IQ4_NL", "--imatrix", matrix)
    assert first.read_bytes() == second.read_bytes()
    assert b"secret-folder" not in first.read_bytes()  # the file is given away, where the text lay is not


def test_people_are_told_of_fallbacks_and_of_a_source_that_was_quantized(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, model, tmp_path / "first.gguf", "--type", "Q8_0")
    assert main(["quantize", str(tmp_path / "first.gguf"), str(tmp_path / "second.gguf"), "--type", "Q4_K_S"]) == 0
    shown = capsys.readouterr().out
    assert "Q5_0 instead of Q4_K: " in shown
    assert "compare with the de-quantized published file" in shown
    assert "bits per weight as Q4_K_S" in shown


def test_types_are_listed_alone_and_for_a_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = run_json(capsys, "--list-types")["types"]
    assert {"name": "Q8_0", "number": 7, "base": "Q8_0", "bits_per_weight": 8.5} in alone
    found = {each["type"]: each for each in run_json(capsys, model, "--list-types")["types"]}
    assert found["IQ2_XXS"]["fallbacks"]
    assert found["F32"]["bits_per_weight"] == 32
    assert main(["quantize", "--list-types"]) == 0
    assert main(["quantize", str(model), "--list-types"]) == 0
    assert "IQ4_NL instead of IQ2_XXS" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--type", "Q4_KM"], "did you mean Q4_K_M"),
        (["--type", "Q4_0", "--override", "attn_v"], "is not REGEX=TYPE"),
        (["--type", "Q4_0", "--override", "nobody=Q8_0"], "matches no tensor"),
        (["--type", "Q4_0", "--imatrix", "absent.gguf"], "there is no file absent.gguf"),
        (["--type", "Q4_0", "--calibration-text", __file__, "--imatrix", "a.gguf"], "not both"),
        (["--type", "Q4_0", "--save-imatrix", "a.gguf"], "needs --calibration-text"),
        ([], "--type"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "out.gguf"
    assert message in fail(capsys, model, out, *more)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_there_are_kept_without_force(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, matrix = tmp_path / "out.gguf", tmp_path / "matrix.gguf"
    out.write_text("mine")
    assert "exists already" in fail(capsys, model, out, "--type", "Q8_0")
    assert "exists already" in fail(
        capsys, model, matrix, "--type", "Q8_0", "--calibration-text", text, "--save-imatrix", out
    )
    assert out.read_text() == "mine"
    assert run_json(capsys, model, out, "--type", "Q8_0", "--force")["bytes"] == out.stat().st_size


def test_a_model_of_another_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give MODEL" in fail(capsys)
    assert "tests" in fail(capsys, Path(__file__).parent, tmp_path / "out.gguf", "--type", "Q8_0")
