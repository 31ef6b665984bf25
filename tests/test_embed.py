from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_files import VOCABULARY, model, node, tensor, value, write_decoder, write_encoder, write_tokenizer
from onnx_files import decoder_tensors as tensors_of_a_decoder

from edge_sdk.encoders.embed import Encoder, OnnxEncoder, runs_by_length
from edge_sdk.errors import ConfigError, EdgeError, EngineError, ModelDamagedError, ModelNotFoundError

TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoder:
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder, TABLE)
    return OnnxEncoder.open(folder, threads=1, max_tokens=32)


def _expected(text: str, max_tokens: int = 32) -> np.ndarray:
    states = TABLE[list(text.encode())[:max_tokens]]
    if not len(states):
        return np.zeros(16, np.float32)
    mean = states.mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=60)  # spells no special token


@given(texts=st.lists(PLAIN, max_size=12))
def test_vectors_are_normalised_means_in_the_order_of_the_texts(encoder: OnnxEncoder, texts: list[str]) -> None:
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), 16)
    assert vectors.dtype == np.float32
    for vector, text in zip(vectors, texts, strict=True):
        assert vector == pytest.approx(_expected(text), abs=1e-5)


def test_it_is_an_encoder(encoder: OnnxEncoder) -> None:
    protocol: Encoder = encoder
    assert protocol.dimension == 16
    assert len(bytes.fromhex(protocol.fingerprint)) == 32


def test_no_texts_give_no_rows(encoder: OnnxEncoder) -> None:
    assert encoder.encode([]).shape == (0, 16)


def test_more_texts_than_a_window_keep_their_order(encoder: OnnxEncoder) -> None:
    texts = [f"{number} " * (number % 7) for number in range(2500)]
    vectors = encoder.encode(texts)
    for at in (0, 1, 1023, 1024, 2047, 2048, 2499):
        assert vectors[at] == pytest.approx(_expected(texts[at]), abs=1e-5)


@pytest.mark.parametrize("text", ["", "\0", "\ud800", "a" * 100_000, "\U0001f600" * 30_000, "\n" * 5000, "<|end|>"])
def test_odd_texts_have_finite_vectors(encoder: OnnxEncoder, text: str) -> None:
    vector = encoder.encode(["plain", text])[1]
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1.0 if text else 0.0, abs=1e-5)


def test_a_dynamically_quantized_model_gives_a_text_one_vector_in_any_company(tmp_path: Path) -> None:
    table = TABLE.copy()
    table[ord("!")] *= 100  # its states stretch the scale of the whole run
    write_encoder(tmp_path, table, quantized=True)
    encoder = OnnxEncoder.open(tmp_path, threads=1)
    assert np.array_equal(encoder.encode(["abc", "!!!"])[0], encoder.encode(["abc"])[0])


@given(lengths=st.lists(st.integers(0, 300), max_size=60), budget=st.integers(1, 400))
def test_runs_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    runs = list(runs_by_length(lengths, budget))
    assert sorted(at for run in runs for at in run) == [at for at, length in enumerate(lengths) if length]
    assert all(len(run) == 1 or len(run) * max(lengths[at] for at in run) <= budget for run in runs)


def test_the_fingerprint_follows_what_decides_the_vectors(tmp_path: Path) -> None:
    def fingerprint(name: str, max_tokens: int = 32) -> str:
        return OnnxEncoder.open(tmp_path / name, threads=1, max_tokens=max_tokens).fingerprint

    write_encoder(tmp_path / "a", TABLE)
    shutil.copytree(tmp_path / "a", tmp_path / "same")
    write_encoder(tmp_path / "weights", TABLE + np.float32(1e-3))
    shutil.copytree(tmp_path / "a", tmp_path / "words")
    words = tmp_path / "words" / "tokenizer.json"
    words.write_text(words.read_text() + "\n")
    assert fingerprint("a") == fingerprint("same")
    assert len({fingerprint(name) for name in ("a", "weights", "words")} | {fingerprint("a", 16)}) == 4


def test_inputs_that_a_model_does_not_declare_are_not_fed(tmp_path: Path, encoder: OnnxEncoder) -> None:
    write_encoder(tmp_path, TABLE, types=False)
    without_types = OnnxEncoder.open(tmp_path, threads=1, max_tokens=32)
    assert np.array_equal(without_types.encode(["abc"]), encoder.encode(["abc"]))


def test_a_model_that_is_no_text_encoder_is_named(tmp_path: Path) -> None:
    write_decoder(tmp_path / "decoder", tensors_of_a_decoder())
    with pytest.raises(EngineError, match=r"decoder is not a text encoder: it wants .*past_key_values"):
        OnnxEncoder.open(tmp_path / "decoder", threads=1)
    flat = model(
        [node("ReduceSum", ["table", "axis"], "y")],
        [tensor("table", TABLE), tensor("axis", np.array([1], np.int64))],
        [value("input_ids", "int64", ["batch", "tokens"])],
        [value("y", "float32", [VOCABULARY, 1])],
    )
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "model.onnx").write_bytes(flat)
    write_tokenizer(tmp_path / "flat")
    with pytest.raises(EngineError, match="none of its outputs"):
        OnnxEncoder.open(tmp_path / "flat", threads=1, name="flat")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_engine_error(tmp_path: Path, bad: float) -> None:
    table = TABLE.copy()
    table[ord("x")] = bad
    write_encoder(tmp_path, table)
    encoder = OnnxEncoder.open(tmp_path, threads=1)
    encoder.encode(["abc"])
    with pytest.raises(EngineError, match="not finite"):
        encoder.encode(["abc", "xyz"])


def test_damage_and_absence_are_one_line_each(tmp_path: Path) -> None:
    def message(expected: type[EdgeError], max_tokens: int = 256) -> str:
        with pytest.raises(expected) as caught:
            OnnxEncoder.open(tmp_path, threads=1, max_tokens=max_tokens)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "tokenizer.json" in message(ModelNotFoundError)
    write_tokenizer(tmp_path)
    assert "no *.onnx" in message(ModelNotFoundError)
    (tmp_path / "model.onnx").write_bytes(b"GGUF" + bytes(100))
    assert "not a whole ONNX file" in message(ModelDamagedError)
    write_encoder(tmp_path, TABLE)
    whole = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[:-1])
    assert "not a whole ONNX file" in message(ModelDamagedError)
    (tmp_path / "model.onnx").write_bytes(whole)
    assert "max_tokens is 1" in message(ConfigError, max_tokens=1)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "no tokenizer" in message(ModelDamagedError)


def test_without_onnxruntime_the_pip_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: object) -> object:
        if name == "onnxruntime":
            raise ImportError("no onnxruntime")
        return real(name, *arguments)  # type: ignore[arg-type]

    write_encoder(tmp_path, TABLE)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        OnnxEncoder.open(tmp_path, threads=1)


def test_the_module_loads_neither_onnxruntime_nor_tokenizers() -> None:
    code = "import sys, edge_sdk.encoders.embed; assert not {'onnxruntime', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.model
def test_minilm_puts_the_right_passage_first(minilm_dir: Path) -> None:
    encoder = OnnxEncoder.open(minilm_dir)
    passages = [
        "Berlin is the capital and largest city of Germany.",
        "Munich is the capital of Bavaria.",
        "The octopus has three hearts and blue blood.",
        "",
        "capital " * 3000,
    ]
    vectors = encoder.encode(passages)
    question = encoder.encode(["What is the capital of Germany?"])[0]
    assert vectors.shape == (5, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    similarity = vectors @ question
    assert similarity[0] > 0.7 > similarity[1] > similarity[2]
    assert abs(similarity[2]) < 0.2
    assert np.abs(encoder.encode(passages[:1]) - vectors[:1]).max() < 1e-5
