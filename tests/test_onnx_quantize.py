"""ONNX models made smaller: what comes out runs, agrees and is recorded; what fails leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bert_models import random_weights, write_bert
from onnx_files import (
    SPECIAL,
    VOCABULARY,
    decoder_tensors,
    node,
    value,
    write_decoder,
    write_encoder,
    write_tokenizer,
)
from onnx_files import model as onnx_model
from onnx_files import tensor as onnx_tensor

from edge_sdk.commands import quantize_onnx as command
from edge_sdk.config import Settings, load_settings
from edge_sdk.encoders.bert_graph import quantize, read_bert
from edge_sdk.encoders.embed import OnnxEncoder
from edge_sdk.encoders.encoders import encoder_backend, open_encoder
from edge_sdk.engines.engine_onnx import OnnxEngine
from edge_sdk.errors import (
    ConfigError,
    DiskFullError,
    EdgeError,
    MissingExtraError,
    ModelDamagedError,
    ModelError,
    ModelNotFoundError,
)
from edge_sdk.hub.models import resolve
from edge_sdk.kernel_faces import bert
from edge_sdk.model_files.onnx_graph import OnnxGraph
from edge_sdk.model_files.onnx_session import inspect_onnx
from edge_sdk.records import GenerateOptions

pytest.importorskip("onnx")
from quantize.onnx_models import folder as folders
from quantize.onnx_models import quantize as quantizing
from quantize.onnx_models.forms import DECODER_FORMS, ENCODER_FORMS, load_float_model, store_tables
from quantize.onnx_models.parity import compare_vectors
from quantize.onnx_models.quantize import Measured, choose, quantize_onnx

WEIGHTS = random_weights(hidden=64, heads=2, inner=96, layers=2, words=VOCABULARY, positions=300)
TEXTS = ["The pump stops by itself.", "Why does it blink?", "Tighten the bolts to 45 Nm.", "x"]
needs_kernel = pytest.mark.skipif(
    bert.best_path() in (None, bert.PORTABLE), reason="no fast kernel on this machine"
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float") / "encoder"
    write_bert(folder, WEIGHTS, "plain")
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its last matrix has three blocks of 32 inputs: an odd number."""
    folder = tmp_path_factory.mktemp("float") / "decoder"
    tensors = decoder_tensors(width=96)
    tensors["head"][:, SPECIAL["<|end|>"]] = 0.0
    write_decoder(folder, tensors)
    return folder


def _quantize(source: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return quantize_onnx(source, out, **{"texts": TEXTS, "rounds": 1, "threads": 1, **settings})


def _row(name: str, **figures: float) -> Measured:
    usual = {"bytes": 100, "agreement": 0.995, "speedup": 1.0, "native_speedup": 1.0}
    return Measured(name, "", **{**usual, **figures}, details={})  # type: ignore[arg-type]


def _left_behind(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if out.name in path.name]


# --- the choice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([_row("slow"), _row("fast", speedup=1.5)], "fast"),
        ([_row("far", speedup=9.0, agreement=0.98), _row("near")], "near"),
        ([_row("small", speedup=1.9, bytes=50), _row("large", speedup=2.0)], "small"),
        ([_row("here", native_speedup=0.9), _row("everywhere", native_speedup=1.3)], "everywhere"),
        ([_row("close", agreement=0.991), _row("closer", agreement=0.999, bytes=101)], "closer"),
    ],
)
def test_the_fastest_that_agrees_is_chosen_and_ties_go_to_the_smaller(rows: list[Measured], best: str) -> None:
    assert choose(rows, 0.99).name == choose(rows[::-1], 0.99).name == best


def test_when_nothing_agrees_the_closest_is_named() -> None:
    with pytest.raises(ModelError, match=r"0\.99: the closest, b, reaches 0\.9800; lower the floor"):
        choose([_row("a", agreement=0.9), _row("b", agreement=0.98)], 0.99)


# --- encoders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ENCODER_FORMS, ids=lambda form: form.name)
def test_every_form_of_an_encoder_runs_in_onnxruntime_and_is_close(
    encoder: Path, tmp_path: Path, form: Any
) -> None:
    result = _quantize(encoder, tmp_path / "out", method=form.name)
    vectors = OnnxEncoder.open(tmp_path / "out", threads=1).encode(TEXTS)
    close = compare_vectors(OnnxEncoder.open(encoder, threads=1).encode(TEXTS), vectors)
    assert close.cosine_min > (0.97 if form.name == "int4" else 0.99)
    assert result["chosen"]["onnxruntime"]["cosine_mean"] == close.cosine_mean
    assert result["chosen"]["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size


@needs_kernel
@pytest.mark.parametrize("method", ["int8", "int8-cast"])
def test_our_kernel_takes_the_codes_of_the_file(encoder: Path, tmp_path: Path, method: str) -> None:
    _quantize(encoder, tmp_path / "out", method=method)
    assert encoder_backend(tmp_path / "out").startswith("kernel")
    before = read_bert(OnnxGraph(inspect_onnx(encoder / "model.onnx")))
    after = read_bert(OnnxGraph(inspect_onnx(tmp_path / "out" / "model.onnx")))
    assert np.array_equal(before.words, after.words)
    for one, other in zip(before.layers, after.layers, strict=True):
        assert np.array_equal(one.up.codes, other.up.codes)
        assert one.up.scales == pytest.approx(other.up.scales, rel=1e-6)
    cosines = compare_vectors(open_encoder(encoder).encode(TEXTS), open_encoder(tmp_path / "out").encode(TEXTS))
    assert cosines.cosine_min > 0.9999


def test_auto_measures_every_form_and_records_why_one_was_taken(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = _quantize(encoder, out, floor=0.9, beside=[encoder], name="tiny")
    rows = {row["name"]: row for row in result["candidates"]}
    assert rows.keys() | result["failed"].keys() == {form.name for form in ENCODER_FORMS}
    assert not result["failed"]
    assert [row["name"] for row in result["beside"]] == ["source", "encoder"]
    assert result["chosen"] == rows[result["method"]]
    assert result["chosen"]["agreement"] >= 0.9
    for row in rows.values():
        assert row["onnxruntime"]["passages_per_second"] > 0 and row["speedup"] > 0
    assert rows["int8"]["bytes"] < 0.5 * result["beside"][0]["bytes"]
    assert result["source"]["name"] == "tiny"
    assert result["source"]["files"][0]["sha256"] == _sha256(encoder / "model.onnx")


def test_the_record_lies_beside_the_model(encoder: Path, tmp_path: Path) -> None:
    result = _quantize(encoder, tmp_path / "out", method="int8")
    record = json.loads((tmp_path / "out" / "quantization.json").read_text())
    assert record == result
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx",
        "quantization.json",
        "tokenizer.json",
    ]
    files = {file["name"]: file for file in record["files"]}
    assert files["model.onnx"]["sha256"] == _sha256(tmp_path / "out" / "model.onnx")
    assert record["operators"]["DequantizeLinear"] == 12  # six matrices in each of two layers
    assert record["operators"].keys() == inspect_onnx(tmp_path / "out" / "model.onnx").operators
    assert record["opset"]["ai.onnx"] == 17
    assert record["tools"].keys() >= {"onnx", "onnxruntime", "numpy"}


def test_the_source_stays_as_it_is(encoder: Path, tmp_path: Path) -> None:
    before = {path.name: _sha256(path) for path in encoder.iterdir()}
    _quantize(encoder, tmp_path / "out", floor=0.5)
    assert {path.name: _sha256(path) for path in encoder.iterdir()} == before


def test_a_model_with_external_data_becomes_one_file(encoder: Path, tmp_path: Path) -> None:
    import onnx

    (tmp_path / "source").mkdir()
    write_tokenizer(tmp_path / "source")
    onnx.save(
        onnx.load(encoder / "model.onnx"),
        tmp_path / "source" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=1024,
    )
    _quantize(tmp_path / "source", tmp_path / "out", method="int8")
    assert not inspect_onnx(tmp_path / "out" / "model.onnx").external
    assert OnnxEncoder.open(tmp_path / "out").encode(TEXTS).shape == (4, 64)


def test_both_spellings_of_a_table_give_the_same_rows(tmp_path: Path) -> None:
    import onnx

    table = np.random.default_rng(0).normal(size=(VOCABULARY, 16)).astype(np.float32)
    states = []
    for name, whole in (("whole", True), ("rows", False)):
        write_encoder(tmp_path / name, table)
        model = onnx.load(tmp_path / name / "model.onnx")
        onnx.save(store_tables(model, whole=whole), tmp_path / name / "model.onnx")
        assert inspect_onnx(tmp_path / name / "model.onnx").operators == {"Cast", "Mul", "Gather"}
        states.append(OnnxEncoder.open(tmp_path / name, threads=1).encode(["abc"]))
    codes, scales = quantize(table, 0)
    mean = (codes * scales[:, None])[list(b"abc")].mean(axis=0)
    assert states[0] == pytest.approx(states[1], abs=1e-6)
    assert states[0][0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_a_matrix_with_a_second_use_is_left_alone(tmp_path: Path) -> None:
    """Such as a table of embeddings that is the output matrix as well: codes for one would break the other."""
    square = np.eye(VOCABULARY, dtype=np.float32)
    other = np.ones((VOCABULARY, 8), np.float32)
    nodes = [
        node("Gather", ["square", "input_ids"], "rows"),
        node("MatMul", ["rows", "square"], "mixed"),
        node("MatMul", ["mixed", "other"], "last_hidden_state"),
    ]
    data = onnx_model(
        nodes,
        [onnx_tensor("square", square), onnx_tensor("other", other)],
        [value("input_ids", "int64", ["batch", "tokens"])],
        [value("last_hidden_state", "float32", ["batch", "tokens", 8])],
    )
    write_tokenizer(tmp_path)
    (tmp_path / "model.onnx").write_bytes(data)
    model = ENCODER_FORMS[0].make(load_float_model(inspect_onnx(tmp_path / "model.onnx")))
    assert {tensor.name for tensor in model.graph.initializer} == {"square", "other_codes", "other_scales"}


# --- decoders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", DECODER_FORMS, ids=lambda form: form.name)
def test_every_form_of_a_decoder_runs_in_the_engine(decoder: Path, tmp_path: Path, form: Any) -> None:
    result = _quantize(decoder, tmp_path / "out", method=form.name)
    assert result["kind"] == "decoder"
    assert result["chosen"]["tokens"] == sum(map(len, TEXTS))
    assert result["chosen"]["kld_mean"] < (0.3 if "int4" in form.name else 0.05)
    expected = {"int4": "MatMulNBits", "int4-searched": "MatMulNBits", "int8-blocks": "MatMulNBits"}
    assert expected.get(form.name, "MatMulInteger") in result["operators"]
    with OnnxEngine.open(tmp_path / "out", context=64, threads=1) as engine:
        tokens = list(engine.generate("How are you?", GenerateOptions(max_tokens=8)))
    assert len(tokens) == 8


def test_auto_takes_a_decoder_that_agrees(decoder: Path, tmp_path: Path) -> None:
    result = _quantize(decoder, tmp_path / "out", floor=0.5)
    assert {row["name"] for row in result["candidates"]} == {form.name for form in DECODER_FORMS}
    assert result["chosen"]["top1_agreement"] >= 0.5
    assert result["beside"][0]["kld_mean"] == 0.0  # the source agrees with itself
    assert result["beside"][0]["max_difference"] == 0.0
    assert (tmp_path / "out" / "config.json").read_bytes() == (decoder / "config.json").read_bytes()


# --- what cannot be done ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"method": "Q4_K_M"}, ConfigError, "no method 'Q4_K_M' for an ONNX encoder; use one of auto, int8"),
        ({"floor": 1.5}, ConfigError, "the floor is 1.5"),
        ({"rounds": 0}, ConfigError, "0 rounds"),
        ({"floor": 1.0}, ModelError, "agrees with it to 1: the closest"),
    ],
)
def test_what_cannot_be_asked_leaves_nothing(
    encoder: Path, tmp_path: Path, settings: dict[str, Any], error: type[EdgeError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        _quantize(encoder, tmp_path / "out", **settings)
    assert _left_behind(tmp_path / "out") == []


def test_a_folder_that_is_there_is_never_touched(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        _quantize(encoder, tmp_path / "out", method="int8")
    assert _left_behind(tmp_path / "out") == ["out"]


def test_a_folder_that_holds_no_model_or_a_damaged_one_is_refused(encoder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no \*\.onnx files"):
        _quantize(source, tmp_path / "out")
    data = (encoder / "model.onnx").read_bytes()
    (source / "model.onnx").write_bytes(data)
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        _quantize(source, tmp_path / "out")
    write_tokenizer(source)
    for damaged in (data[: len(data) // 2], b"GGUF" + data, b""):
        (source / "model.onnx").write_bytes(damaged)
        with pytest.raises(ModelDamagedError):
            _quantize(source, tmp_path / "out")
    assert _left_behind(tmp_path / "out") == []


def test_what_is_quantized_already_is_refused(encoder: Path, tmp_path: Path) -> None:
    _quantize(encoder, tmp_path / "small", method="int8")
    with pytest.raises(ConfigError, match="no float32 matrices to quantize; take the float32 model"):
        _quantize(tmp_path / "small", tmp_path / "out")
    assert _left_behind(tmp_path / "out") == []


def test_too_little_disk_or_memory_is_said_first(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(folders, "free_disk", lambda path: 10)
        with pytest.raises(DiskFullError, match="0 MB are free"):
            _quantize(encoder, tmp_path / "out", method="int8")
    monkeypatch.setattr(quantizing, "available_memory", lambda: 10)
    with pytest.raises(ModelError, match="0 MB are free; close other programs"):
        _quantize(encoder, tmp_path / "out", method="int8")
    assert _left_behind(tmp_path / "out") == []


def test_without_the_onnx_package_the_extra_is_named(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"edge-sdk\[quantize\]"):
        _quantize(encoder, tmp_path / "out", method="int8")
    assert _left_behind(tmp_path / "out") == []


def test_an_interrupt_leaves_nothing(encoder: Path, tmp_path: Path) -> None:
    def interrupt(done: float, total: float | None, detail: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _quantize(encoder, tmp_path / "out", progress=interrupt)
    assert _left_behind(tmp_path / "out") == []


def test_a_form_that_fails_is_told_and_the_others_go_on(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: Any) -> Any:
        raise ValueError("a bug of\nthe quantizer")

    broken = quantizing.Form("broken", "fails", fails)
    monkeypatch.setattr(quantizing, "ENCODER_FORMS", (broken, ENCODER_FORMS[0]))
    result = _quantize(encoder, tmp_path / "out", floor=0.9)
    assert result["method"] == "int8"
    assert result["failed"] == {"broken": "broken cannot be made: a bug of the quantizer"}
    with pytest.raises(EdgeError, match="a bug of the quantizer"):
        _quantize(encoder, tmp_path / "other", method="broken")


def test_the_command_prints_what_was_measured(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    settings = load_settings({"home": tmp_path, "threads": 1})
    command.quantize_onnx(settings, str(encoder), tmp_path / "out", method="int8", text=tmp_path / "texts.txt")
    assert "int8 *" in (shown := capsys.readouterr().out)
    assert "of the bytes, cosine 1.0000" in shown
    command.quantize_onnx(settings, str(encoder), tmp_path / "two", method="int8", floor=0.9, as_json=True)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["command"].startswith("edge quantize")
    assert (document["method"], document["floor"]) == ("int8", 0.9)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- real weights -----------------------------------------------------------------------------------


@pytest.mark.model
def test_minilm_in_8_bits_has_a_quarter_of_the_bytes_and_the_same_directions(
    model_settings: Settings, tmp_path: Path
) -> None:
    try:
        source = resolve("minilm-l6", model_settings).directory
    except EdgeError as error:
        pytest.skip(str(error))
    result = _quantize(source, tmp_path / "out", method="int8", texts=None)
    assert result["bytes_ratio"] < 0.255
    assert result["chosen"]["onnxruntime"]["cosine_mean"] > 0.999
    assert result["chosen"]["edge"]["cosine_min"] > 0.99
    if bert.best_path() not in (None, bert.PORTABLE):
        assert result["chosen"]["backend"].startswith("kernel")
