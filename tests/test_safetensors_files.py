"""Safetensors: what is written is read, and a header is believed in nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folders import read_safetensors, safetensors_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ModelDamagedError, ModelNotFoundError
from quantize.gguf_models.safetensors_files import open_weights, read_entries, to_bf16, to_floats, write_safetensors

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def raw_file(path: Path, header: Any, data: bytes = bytes(24), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_types_and_shapes_come_back(tmp_path: Path) -> None:
    pick = np.random.default_rng(1)
    tensors = {
        "a": pick.normal(size=(5, 7)).astype(np.float32),
        "b": pick.normal(size=(3,)).astype(np.float16),
        "c": pick.normal(size=(2, 2)).astype(np.float64),
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    weights = open_weights(tmp_path)
    assert weights.shapes == {"a": (5, 7), "b": (3,), "c": (2, 2)}
    for name, values in tensors.items():
        found = np.concatenate(list(weights.floats(name)))
        assert np.array_equal(found.reshape(values.shape), values.astype(np.float32)), name
    order = np.array([4, 2, 0, 1, 3])
    assert np.array_equal(np.concatenate(list(weights.floats("a", order))), tensors["a"][order])


def test_what_is_written_is_a_file_that_others_read(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    halves = [("x", (4, 3), lambda: iter([values[:2], values[2:]])), ("y", (3,), lambda: iter([values[0]]))]
    write_safetensors(tmp_path / "model.safetensors", halves, "F32")
    found = read_safetensors(tmp_path / "model.safetensors")
    assert np.array_equal(found["x"], values)
    assert np.array_equal(found["y"], values[0])
    length = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert length % 8 == 0
    write_safetensors(tmp_path / "model.safetensors", halves, "BF16")
    assert np.array_equal(next(open_weights(tmp_path).floats("x")), values)


@given(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=20))
def test_bfloat16_is_the_nearest(values: list[float]) -> None:
    exact = np.array(values, np.float32)
    codes = to_bf16(exact)
    near = to_floats(codes.view(np.uint8).reshape(1, -1), "BF16")[0].astype(np.float64)
    for other in (codes - np.uint16(1), codes + np.uint16(1)):
        beside = to_floats(other.view(np.uint8).reshape(1, -1), "BF16")[0].astype(np.float64)
        closer = np.abs(beside - exact) < np.abs(near - exact)
        assert not (closer & np.isfinite(beside)).any()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": GOOD | {"data_offsets": [0, 28]}}, "28 bytes, its shape needs 24"),
        ({"w": GOOD | {"data_offsets": [-24, 0]}}, "offsets"),
        ({"w": GOOD | {"data_offsets": [24, 0]}}, "-24 bytes"),
        ({"w": GOOD | {"data_offsets": [0, 24.0]}}, "offsets"),
        ({"w": GOOD | {"data_offsets": [0, True]}}, "offsets"),
        ({"w": GOOD | {"shape": [2, -3]}}, "shape"),
        ({"w": GOOD | {"shape": [2**40, 2**40], "data_offsets": [0, 2**82]}}, "end"),
        ({"w": GOOD | {"shape": "23"}}, "shape"),
        ({"w": GOOD | {"shape": [1] * 9}}, "shape"),
        ({"w": GOOD | {"dtype": "F31"}}, "F31"),
        ({"w": GOOD | {"dtype": ["F32"]}}, "F32"),
        ({"w": GOOD | {"more": 1}}, "something else"),
        ({"w": 3}, "something else"),
        ({"w": GOOD, "v": GOOD}, "gap or an overlap"),
        ({"w": GOOD | {"data_offsets": [4, 28]}}, "gap or an overlap"),
        ({"w": GOOD | {"shape": [2, 2], "data_offsets": [0, 16]}}, "its tensors end"),
        ({}, "its tensors end"),
        ([], "no JSON object"),
        (b'{"w": 1, "w": 2}', "twice"),
        (b'{"w": NaN}', "NaN"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 50_000, "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"w": {"dtype": "F32", "shape": [' + b"9" * 5_000 + b'], "data_offsets": [0, 24]}}', "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(ModelDamagedError, match=message):
        read_entries(raw_file(tmp_path / "model.safetensors", header))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 33 << 20, 500])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelDamagedError, match="no safetensors file"):
        read_entries(raw_file(tmp_path / "model.safetensors", {"w": GOOD}, length=length))


def test_a_file_that_is_cut_or_empty_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = raw_file(path, {"w": GOOD}).read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelDamagedError):
            read_entries(path)
    with pytest.raises(ModelNotFoundError):
        read_entries(tmp_path / "none")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "Q4"]) | VALUES,
        "shape": st.lists(st.integers(-2, 2**65), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-4, 2**65), min_size=2, max_size=2) | VALUES,
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=6), ENTRIES | VALUES, max_size=3), data=st.binary(max_size=64))
def test_whatever_a_header_says_every_tensor_lies_in_the_file(tmp_path: Path, header: Any, data: bytes) -> None:
    path = raw_file(tmp_path / "model.safetensors", header, data)
    try:
        entries = read_entries(path)
    except ModelDamagedError:
        return
    size = path.stat().st_size
    assert sum(entry.end - entry.start for entry in entries.values()) == len(data)
    assert all(0 <= entry.start <= entry.end <= size for entry in entries.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 200), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_refused_or_harmless(tmp_path: Path, place: int, bit: int) -> None:
    tensors = {"first": np.ones((2, 3), np.float32), "second": np.ones(4, np.float16)}
    whole = bytearray(safetensors_bytes(tensors))
    whole[place % (len(whole) - 32)] ^= 1 << bit
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole)
    try:
        entries = read_entries(path)
    except ModelDamagedError:
        return
    assert sum(entry.end - entry.start for entry in entries.values()) == 32


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"w": "../outside.safetensors"}}, "outside"),
        ({"weight_map": {"w": "/etc/passwd"}}, "passwd"),
        ({"weight_map": {"w": "a.bin"}}, "a.bin"),
        ({"weight_map": {"w": 3}}, "the file 3"),
        ({"weight_map": []}, "weight_map"),
        ([], "weight_map"),
        ({"weight_map": {"other": "a.safetensors"}}, "lacks the tensor 'other'"),
        ({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}, "does not place the tensor"),
    ],
)
def test_an_index_names_only_files_of_its_folder(tmp_path: Path, index: Any, message: str) -> None:
    raw_file(tmp_path / "a.safetensors", {"w": GOOD})
    two = {
        "v": GOOD | {"shape": [3]} | {"data_offsets": [0, 12]},
        "x": GOOD | {"shape": [3], "data_offsets": [12, 24]},
    }
    raw_file(tmp_path / "b.safetensors", two)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelDamagedError, match=message):
        open_weights(tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"neither model\.safetensors nor"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelDamagedError, match="runs code"):
        open_weights(tmp_path)
