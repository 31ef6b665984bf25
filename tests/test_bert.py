from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bert_models import random_weights, write_bert
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_files import model, node, write_encoder

from edge_sdk.encoders.bert import BertEncoder
from edge_sdk.encoders.bert_graph import NotBertError, read_bert
from edge_sdk.encoders.embed import Encoder, OnnxEncoder
from edge_sdk.encoders.encoders import encoder_backend, open_encoder
from edge_sdk.errors import ConfigError, EngineError, ModelDamagedError, ModelNotFoundError
from edge_sdk.kernel_faces import bert
from edge_sdk.model_files.onnx_graph import OnnxGraph
from edge_sdk.model_files.onnx_session import inspect_onnx

needs_kernel = pytest.mark.skipif(
    bert.best_path() in (None, bert.PORTABLE), reason="no fast kernel on this machine"
)
pytestmark = needs_kernel
WEIGHTS = random_weights(hidden=64, heads=2, inner=96, layers=2, words=259, positions=80)
TEXTS = ["", "a", "how long is a text", "x" * 500, "é ü 漢字", "<|end|>", "how long is a text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder, WEIGHTS, "int8")
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> BertEncoder:
    return BertEncoder.open(folder, threads=2, max_tokens=64)


@pytest.mark.parametrize("spelling", ["fused", "plain", "int8"])
def test_it_is_close_to_onnxruntime_however_the_file_spells_it(tmp_path: Path, spelling: str) -> None:
    write_bert(tmp_path, WEIGHTS, spelling)  # type: ignore[arg-type]
    ours, theirs = BertEncoder.open(tmp_path, max_tokens=64), OnnxEncoder.open(tmp_path, threads=1, max_tokens=64)
    cosines = (ours.encode(TEXTS) * theirs.encode(TEXTS)).sum(axis=1)
    assert cosines[1:].min() > 0.999
    assert cosines[0] == 0
    assert (ours.fingerprint, ours.dimension) == (theirs.fingerprint, theirs.dimension)


def test_weights_in_8_bits_are_taken_as_they_are(folder: Path) -> None:
    found = read_bert(OnnxGraph(inspect_onnx(folder / "model.onnx")))
    assert np.array_equal(found.words, WEIGHTS.words)
    assert (found.heads, len(found.layers)) == (2, 2)
    for read, written in zip(found.layers, WEIGHTS.layers, strict=True):
        for name in ("query", "key", "value", "output", "up", "down"):
            one, other = getattr(read, name), getattr(written, name)
            assert np.array_equal(one.codes, other.codes) and np.array_equal(one.scales, other.scales)


@given(texts=st.lists(st.text(max_size=200), max_size=12), at=st.integers(0, 11))
@settings(max_examples=30, deadline=None)
def test_a_text_has_the_same_bits_alone_and_among_others(encoder: BertEncoder, texts: list[str], at: int) -> None:
    together = encoder.encode(texts)
    assert together.shape == (len(texts), 64)
    if at < len(texts):
        assert np.array_equal(encoder.encode([texts[at]])[0], together[at])


def test_it_is_an_encoder_and_opened_by_default(folder: Path, encoder: BertEncoder) -> None:
    protocol: Encoder = open_encoder(folder, max_tokens=64)
    assert isinstance(protocol, BertEncoder)
    assert protocol.fingerprint == encoder.fingerprint != open_encoder(folder, max_tokens=32).fingerprint
    assert encoder_backend(folder, max_tokens=64) == f"kernel ({bert.best_path()})"


def test_onnxruntime_is_not_imported(folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from edge_sdk.encoders.encoders import open_encoder
open_encoder(Path({str(folder)!r}), max_tokens=64).encode(["a", "b"])
assert "onnxruntime" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_graph_goes_to_onnxruntime_and_the_reason_is_told(tmp_path: Path) -> None:
    write_encoder(tmp_path, np.ones((259, 16), np.float32))
    assert isinstance(open_encoder(tmp_path, threads=1), OnnxEncoder)
    assert encoder_backend(tmp_path).startswith("onnxruntime: not a BERT that the kernel knows: a Gather")


def test_without_the_library_onnxruntime_computes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert, "best_path", lambda: None)
    assert isinstance(open_encoder(folder, threads=1, max_tokens=64), OnnxEncoder)
    assert encoder_backend(folder) == "onnxruntime: the kernels were not compiled"
    monkeypatch.setattr(bert, "best_path", lambda: bert.PORTABLE)
    assert encoder_backend(folder).startswith("onnxruntime: this CPU")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"Softmax", b"Hardmax", "softmax"),
        (b"Erf", b"Cos", "activation"),
        (b"input_ids", b"input_xxx", "input_xxx"),
        (b"last_hidden_state", b"sentence_embeddin", "last_hidden_state"),
    ],
)
def test_what_is_not_bert_is_not_taken_for_it(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    write_bert(tmp_path, WEIGHTS, "plain")
    content = (tmp_path / "model.onnx").read_bytes()
    assert old in content
    (tmp_path / "model.onnx").write_bytes(content.replace(old, new))
    with pytest.raises(NotBertError, match=reason):
        read_bert(OnnxGraph(inspect_onnx(tmp_path / "model.onnx")))


def test_more_tokens_than_positions_are_left_to_onnxruntime(folder: Path) -> None:
    with pytest.raises(NotBertError, match="80 positions for 128 tokens"):
        BertEncoder.open(folder, max_tokens=128)


def test_a_tokenizer_of_another_model_is_an_error_in_one_line(tmp_path: Path) -> None:
    write_bert(tmp_path, random_weights(hidden=32, heads=1, inner=32, layers=1, words=100, positions=80), "int8")
    encoder = BertEncoder.open(tmp_path, max_tokens=64)
    with pytest.raises(EngineError, match="does not fit its model"):
        encoder.encode(["fine", "zzz" * 60])
    assert encoder.encode(["A"]).any()


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        BertEncoder.open(tmp_path)
    write_bert(tmp_path, WEIGHTS, "int8")
    with pytest.raises(ConfigError):
        BertEncoder.open(tmp_path, threads=0)
    content = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[:-7])
    with pytest.raises(ModelDamagedError):
        BertEncoder.open(tmp_path)


def test_a_graph_that_runs_in_a_circle_is_damaged(tmp_path: Path) -> None:
    circle = [node("Identity", ["b"], "a"), node("Identity", ["a"], "b")]
    for nodes in (circle, [node("Identity", ["x"], "a"), node("Identity", ["x"], "a")]):
        (tmp_path / "model.onnx").write_bytes(model(nodes, [], [], []))
        with pytest.raises(ModelDamagedError, match="Identity"):
            OnnxGraph(inspect_onnx(tmp_path / "model.onnx"))


@given(at=st.integers(0, 10**9), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_byte_is_an_error_or_read(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[at % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ModelDamagedError, ModelNotFoundError, ValueError):  # NotBertError is one
        bert.BertKernel(read_bert(OnnxGraph(inspect_onnx(path))))


@pytest.mark.model
def test_minilm_is_close_to_onnxruntime(minilm_dir: Path) -> None:
    texts = [
        "Berlin is the capital and largest city of Germany.",
        "The octopus has three hearts and blue blood.",
        "def add(a, b):\n    return a + b",
        "Retrieval over the documents of a user, on a device that has no server. " * 20,
        "42",
    ]
    ours, theirs = open_encoder(minilm_dir), OnnxEncoder.open(minilm_dir)
    assert isinstance(ours, BertEncoder)
    cosines = (ours.encode(texts) * theirs.encode(texts)).sum(axis=1)
    assert cosines.mean() > 0.999 and cosines.min() > 0.995, json.dumps(cosines.tolist())
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize(
    "shape",
    [{"hidden": 48, "heads": 2}, {"inner": 40}, {"positions": 100}],
    ids=["head size", "inner", "positions"],
)
def test_what_is_said_of_the_backend_is_what_is_opened(tmp_path: Path, shape: dict[str, int]) -> None:
    sizes = {"hidden": 64, "heads": 2, "inner": 32, "layers": 1, "words": 259, "positions": 300, **shape}
    write_bert(tmp_path, random_weights(**sizes), "int8")
    assert encoder_backend(tmp_path).startswith("onnxruntime: not a BERT that the kernel knows")
    assert isinstance(open_encoder(tmp_path, threads=1), OnnxEncoder)


def test_a_graph_that_only_onnxruntime_reads_is_left_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object) -> OnnxGraph:
        raise ModelDamagedError("its operations are out of order")

    monkeypatch.setattr("edge_sdk.encoders.bert.OnnxGraph", refuse)
    assert isinstance(open_encoder(folder, threads=1, max_tokens=64), OnnxEncoder)
