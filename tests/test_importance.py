"""Importance matrices: what llama.cpp shows while it reads, beside a computation of our own; files; bad input."""

from __future__ import annotations

import ctypes
import struct
from importlib.metadata import version
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from gguf_files import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError, DocumentError, EdgeError, EngineError, ModelDamagedError
from edge_sdk.model_files.gguf_header import read_header
from quantize.gguf_models import activations, importance
from quantize.gguf_models.gguf_format import F32, STRING, Field, NewTensor, write_file
from quantize.gguf_models.importance import Importance, collect_importance, read_texts
from quantize.gguf_models.tensors import GgufModel

TEXT = "the inner thing and another in the band. " * 12
Q, K, V = (f"blk.0.attn_{name}.weight" for name in "qkv")
GATE, UP, DOWN = (f"blk.0.ffn_{name}.weight" for name in ("gate", "up", "down"))
EXPERTS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("importance") / "tiny.gguf")


@pytest.fixture(scope="module")
def collected(model: Path) -> Importance:
    return collect_importance(model, TEXT, source="a text", context=64, threads=1, products=True)


def collect(model: Path, text: Any = TEXT, **settings: Any) -> Importance:
    return collect_importance(model, text, **{"source": "a text", "context": 32, "threads": 1, **settings})


# --- what is collected ------------------------------------------------------------------------------


def test_every_matrix_of_the_blocks_and_the_tied_output_is_collected(model: Path, collected: Importance) -> None:
    matrices = {tensor.name for tensor in read_header(model).tensors if len(tensor.shape) > 1}
    assert "token_embd.weight" in matrices
    assert collected.squares.keys() == matrices
    assert all((squares > 0).all() for squares in collected.squares.values())


def test_the_first_layer_agrees_with_a_computation_from_the_embedding(model: Path) -> None:
    tokens = [3 + byte for byte in b"any bytes will do for this, and some more"]
    found = collect(model, tokens, context=len(tokens))
    file = GgufModel(model)
    rows = file.floats("token_embd.weight")[tokens[:-1]]  # nothing is asked of the last
    rows = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5) * file.floats("blk.0.attn_norm.weight")
    np.testing.assert_allclose(found.squares[Q], (rows**2).mean(axis=0), rtol=1e-4)
    assert found.tokens == found.counts[Q].item() == len(tokens) - 1


def test_matrices_with_the_same_input_share_it_and_others_do_not(collected: Importance) -> None:
    for first, *others in ((Q, K, V), (GATE, UP)):
        for other in others:
            assert collected.squares[other] is collected.squares[first]
            assert collected.products[other] is collected.products[first]
    assert not np.allclose(collected.squares[Q], collected.squares[GATE])
    assert collected.squares[DOWN].shape == (64,)


def test_products_hold_the_squares_and_are_covariances(collected: Importance) -> None:
    for name, products in collected.products.items():
        np.testing.assert_allclose(np.diag(products), collected.squares[name], rtol=1e-4)
        np.testing.assert_allclose(products, products.T, rtol=1e-4, atol=1e-5)
        assert np.linalg.eigvalsh(products.astype(np.float64)).min() > -1e-3 * np.trace(products)


def test_products_come_only_for_the_weights_asked_for(model: Path, collected: Importance) -> None:
    found = collect(model, context=64, products=[K, DOWN])
    assert found.products.keys() == {K, DOWN}
    np.testing.assert_allclose(found.products[K], collected.products[Q], rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"no weight 'blk\.7"):
        collect(model, products=["blk.7.attn_q.weight"])


def test_experts_are_counted_each(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "experts.gguf", experts=EXPERTS)
    found = collect(model, context=64)
    name = "blk.0.ffn_gate_exps.weight"
    assert found.squares[name].shape == (EXPERTS, 32)
    assert found.counts[name].sum() == 2 * found.counts[Q].item()  # two experts a token
    together = (found.squares[name] * found.counts[name][:, None]).sum(axis=0) / found.counts[name].sum()
    np.testing.assert_allclose(together, found.squares["blk.0.ffn_gate_inp.weight"], rtol=1e-4)


def test_an_expert_that_no_token_reached_counts_as_one() -> None:
    squares = np.array([[2.0, 3.0], [0.0, 0.0]], np.float32)
    found = Importance({"x": squares}, tokens=5, source="")
    weights = found.weights("x")
    assert weights is not None
    assert weights.tolist() == [2, 3, 1, 1]
    assert found.weights("y") is None


def test_no_column_weighs_nothing() -> None:
    found = Importance({"x": np.array([0, 4, 0, 0], np.float32)}, tokens=5, source="")
    weights = found.weights("x")
    assert weights is not None
    np.testing.assert_allclose(weights, [1e-6, 4, 1e-6, 1e-6])


def test_of_a_long_text_windows_at_equal_distances_are_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(
        importance.ObservedModel, "evaluate", lambda self, window, cancel: read.append(int(window[0]))
    )
    with pytest.raises(EngineError, match="no activations"):
        collect(model, [3 + at // 32 for at in range(32 * 9)], max_tokens=32 * 3)
    assert read == [3, 7, 11]


def test_fewer_tokens_than_a_window_make_a_shorter_window(model: Path) -> None:
    assert collect(model, context=512, max_tokens=40).tokens == 39
    assert collect(model, [5] * 20, context=512).tokens == 19


def test_progress_counts_tokens_to_the_end(model: Path) -> None:
    seen: list[tuple[float, float | None]] = []
    collect(model, max_tokens=96, progress=lambda done, total, detail: seen.append((done, total)))
    assert seen == [(0, 96), (32, 96), (64, 96), (96, 96)]


# --- what goes wrong --------------------------------------------------------------------------------


def test_a_text_that_is_too_short_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="too few"):
        collect(model, "short")
    with pytest.raises(ConfigError, match="windows of 4 tokens"):
        collect(model, context=4)


def test_cancelling_ends_it(model: Path) -> None:
    flag = Event()
    flag.set()
    with pytest.raises(KeyboardInterrupt):
        collect(model, cancel=flag)


def test_an_error_while_looking_is_raised(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("while looking")

    monkeypatch.setattr(importance._Sums, "add", fail)
    with pytest.raises(ZeroDivisionError, match="while looking"):
        collect(model)


def test_too_little_memory_is_said_before_anything_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "available_memory", lambda: 1 << 10)
    monkeypatch.setattr(importance, "ObservedModel", None)
    with pytest.raises(EngineError, match=r"needs \d+ MiB of memory, 0 MiB are free"):
        collect(model)


def test_a_library_with_another_layout_is_refused_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ctypes.Structure):
        _fields_ = (("type", ctypes.c_int), ("more", ctypes.c_void_p), *activations.GgmlTensor._fields_[1:])

    assert activations.operations.__wrapped__() == activations.operations()
    monkeypatch.setattr(activations, "GgmlTensor", Shifted)
    with pytest.raises(EngineError, match=version("llama-cpp-python")):
        activations.operations.__wrapped__()


# --- the file ---------------------------------------------------------------------------------------

FIGURES = st.floats(0, 1e6, width=32)
MATRICES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=20), st.lists(FIGURES, min_size=1, max_size=9), min_size=1, max_size=5
)


@given(MATRICES, st.integers(1, 10**6), st.text(max_size=20))
@settings(max_examples=40, deadline=None)
def test_what_is_saved_is_loaded_again(
    tmp_path_factory: pytest.TempPathFactory, figures: dict[str, list[float]], tokens: int, source: str
) -> None:
    path = tmp_path_factory.mktemp("saved") / "imatrix.gguf"
    saved = Importance({name: np.array(row, np.float32) for name, row in figures.items()}, tokens, source, 128)
    saved.save(path)
    loaded = Importance.load(path)
    assert (loaded.tokens, loaded.source, loaded.context) == (tokens, source, 128)
    assert loaded.squares.keys() == saved.squares.keys()
    for name, squares in saved.squares.items():
        np.testing.assert_allclose(loaded.squares[name], squares, rtol=1e-5)


def test_experts_are_saved_with_their_counts(tmp_path: Path) -> None:
    squares = np.array([[2.0, 3.0], [0.0, 0.0]], np.float32)
    Importance({"x": squares}, 5, "a text", counts={"x": np.array([5, 0])}).save(tmp_path / "i.gguf")
    loaded = Importance.load(tmp_path / "i.gguf")
    assert loaded.counts["x"].tolist() == [5, 0]
    np.testing.assert_allclose(loaded.squares["x"], squares, rtol=1e-6)


def test_llama_cpp_reads_the_file(tmp_path: Path, collected: Importance) -> None:
    path = tmp_path / "imatrix.gguf"
    collected.save(path)
    lib = activations._ggml()
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = (ctypes.c_char_p, InitParams)
    lib.gguf_get_tensor_name.restype = ctypes.c_char_p
    for name in ("gguf_get_tensor_name", "gguf_find_key", "gguf_get_val_u32"):
        getattr(lib, name).argtypes = (ctypes.c_void_p, ctypes.c_char_p if "find" in name else ctypes.c_int64)
    lib.gguf_get_n_tensors.argtypes = lib.gguf_free.argtypes = (ctypes.c_void_p,)
    lib.gguf_find_key.restype = lib.gguf_get_n_tensors.restype = ctypes.c_int64
    file = lib.gguf_init_from_file(str(path).encode(), InitParams(True, None))
    assert file
    try:
        names = {lib.gguf_get_tensor_name(file, at).decode() for at in range(lib.gguf_get_n_tensors(file))}
        assert names == {name + end for name in collected.squares for end in (".in_sum2", ".counts")}
        assert lib.gguf_get_val_u32(file, lib.gguf_find_key(file, b"imatrix.chunk_size")) == 64
    finally:
        lib.gguf_free(file)


class InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def write_matrix(path: Path, tensors: dict[str, list[float]], kind: str = "F32") -> Path:
    parts = {name: np.array(row, "<f4") for name, row in tensors.items()}
    new = [NewTensor(name, kind, part.shape, lambda part=part: iter([part])) for name, part in parts.items()]
    write_file(path, {"general.type": Field(STRING, "imatrix")}, new)
    return path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.in_sum2": [1, 2]}, "no counts for a"),
        ({"a.in_sum2": [1, -2], "a.counts": [1]}, "impossible figures for a"),
        ({"a.in_sum2": [1, 2, 3], "a.counts": [1, 1]}, "impossible figures for a"),
        ({"a.in_sum2": [1, float("nan")], "a.counts": [1]}, "no numbers in a"),
        ({"a.weight": [1, 2]}, "no importance matrix"),
    ],
)
def test_a_file_that_does_not_add_up_is_refused(
    tmp_path: Path, tensors: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(ModelDamagedError, match=message):
        Importance.load(write_matrix(tmp_path / "i.gguf", tensors))


def test_figures_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    tensors = [
        NewTensor(f"a.{name}", "I32", (1,), lambda: iter([np.ones(1, "<i4")])) for name in ("counts", "in_sum2")
    ]
    write_file(path, {"some": Field(F32, 1.0)}, tensors)
    with pytest.raises(ModelDamagedError, match="as I32, not F32"):
        Importance.load(path)


def test_llama_cpps_older_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(struct.pack("<ii5sii", 1, 5, b"blk.0", 1, 1) + bytes(40))
    with pytest.raises(ModelDamagedError, match=r"collect it again with --calibration-text; .*\.dat"):
        Importance.load(path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "i.gguf"
    Importance({"x": np.ones(4, np.float32), "y": np.ones((2, 3), np.float32)}, 9, "a text").save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        loaded = Importance.load(path)
    except EdgeError:
        return
    assert all(np.isfinite(squares).all() for squares in loaded.squares.values())


def test_a_matrix_of_another_model_is_refused(tmp_path: Path, model: Path, collected: Importance) -> None:
    wider = read_header(tiny_llama(tmp_path / "wider.gguf", embed=64))
    with pytest.raises(ConfigError, match=r"has 32 columns for .*, the model 64"):
        collected.check(wider)
    with pytest.raises(ConfigError, match="none of the model's tensors"):
        Importance({"other": np.ones(4, np.float32)}, 9, "").check(wider)
    collected.check(read_header(model))


# --- texts ------------------------------------------------------------------------------------------


def test_folders_are_searched_and_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text("# One\n\ntext of one", "utf-8")
    (tmp_path / "in" / "b.txt").write_bytes(b"\0\1\2")
    (tmp_path / "in" / "c.bin").write_bytes(b"not looked at")
    skipped: list[str] = []
    assert ["text of one" in text for text in read_texts([tmp_path / "in"], skipped)] == [True]
    assert len(skipped) == 1
    assert "b.txt" in skipped[0]
    with pytest.raises(DocumentError):
        read_texts([tmp_path / "in" / "b.txt"], [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no document"):
        read_texts([tmp_path / "empty"], [])


def test_of_a_very_long_text_pieces_of_all_parts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "_MOST_CHARACTERS", 256 * 4)
    pieces = importance._shortened([f"{at:07d} " for at in range(1000)]).split("\n\n")
    assert len("".join(pieces)) <= 256 * 4 + 2 * 256
    assert pieces[0].startswith("0000")
    assert importance._shortened(["one", "two"]) == "one\n\ntwo"


# --- real weights -----------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_is_collected_whole(smollm2_path: Path) -> None:
    found = collect_importance(smollm2_path, TEXT * 6, source="a text", max_tokens=512, threads=1)
    header = read_header(smollm2_path)
    assert found.squares.keys() == {tensor.name for tensor in header.tensors if len(tensor.shape) > 1}
    assert found.tokens == 511
    for name, squares in found.squares.items():
        assert (squares > 0).all(), name
    for layer in range(header.n_layer or 0):
        assert found.squares[f"blk.{layer}.attn_q.weight"] is found.squares[f"blk.{layer}.attn_v.weight"]
        assert found.squares[f"blk.{layer}.ffn_gate.weight"] is found.squares[f"blk.{layer}.ffn_up.weight"]
    found.check(header)
