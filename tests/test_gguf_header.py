"""GGUF headers: what is read, and that nothing malformed gets past or ends in anything but `ModelDamagedError`."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from gguf_files import (
    BOOL,
    CHATML,
    F32,
    I32,
    STRING,
    U8,
    U32,
    U64,
    Field,
    Weights,
    byte_alphabet,
    field_bytes,
    gguf_bytes,
    string,
    tiny_llama,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ModelDamagedError, ModelNotFoundError
from edge_sdk.model_files import gguf_header
from edge_sdk.model_files.gguf_header import TENSOR_TYPES, ArrayInfo, read_header

EDGES = (0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
SMALL = {
    "general.architecture": Field(STRING, "llama"),
    "llama.block_count": Field(U32, 2),
    "llama.embedding_length": Field(U32, 8),
    "llama.attention.head_count": Field(U32, 2),
    "llama.attention.head_count_kv": Field(U32, [1, 2]),
    "general.flag": Field(BOOL, 1),
    "tokenizer.ggml.tokens": Field(STRING, ["<s>", "a", "é"]),
    "tokenizer.ggml.token_type": Field(I32, [3, 1, 1]),
    "tokenizer.ggml.eos_token_id": Field(U32, 0),
}
TENSORS = {"a.weight": Weights((32, 2), 2, bytes(36)), "b.weight": Weights((16,), 0, bytes(64))}


def written(path: Path, extra: Mapping[str, Field] | None = None, drop: str = "") -> Path:
    metadata = {**SMALL, **(extra or {})}
    metadata.pop(drop, None)
    path.write_bytes(gguf_bytes(metadata, TENSORS))
    return path


def refuse(path: Path, match: str) -> None:
    with pytest.raises(ModelDamagedError, match=match):
        read_header(path)


# --- what is read -----------------------------------------------------------------------------------


def test_a_header_tells_what_an_engine_needs(tmp_path: Path) -> None:
    header = read_header(tiny_llama(tmp_path / "tiny.gguf", context=512))
    assert (header.architecture, header.name, header.context_length) == ("llama", "tiny", 512)
    assert (header.n_layer, header.n_embd, header.n_head, header.n_head_kv) == (1, 32, 2, (2,))
    assert (header.bos_token_id, header.eos_token_id, header.vocabulary) == (0, 2, 267)
    assert header.chat_template == CHATML
    assert header.longest_token == len("<|endoftext|>")
    assert header.kv_bytes(100) == 2 * 32 * 2 * 100  # key and value, 32 wide, 2 bytes each
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayInfo(STRING, 267, len("<|endoftext|>"))
    first, second = header.tensors[:2]
    assert (first.name, first.shape, first.type, first.bytes) == (
        "token_embd.weight",
        (32, 267),
        "F32",
        4 * 32 * 267,
    )
    assert second.offset == first.offset + first.bytes


def test_layers_may_differ_in_their_heads(tmp_path: Path) -> None:
    header = read_header(written(tmp_path / "m.gguf"))
    assert header.n_head_kv == (1, 2)
    assert header.kv_bytes(10) == (1 + 2) * (4 + 4) * 2 * 10


def test_what_a_header_does_not_say_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": Field(STRING, "x")}))
    header = read_header(path)
    assert (header.context_length, header.n_layer, header.chat_template, header.eos_token_id) == (None,) * 4
    assert header.kv_bytes(4096) == 0


def test_long_arrays_are_checked_but_not_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", {"general.some": Field(U32, list(range(5_000)))})
    assert read_header(path).metadata["general.some"] == ArrayInfo(U32, 5_000)


def test_the_number_for_no_token_is_read_as_none(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", {"tokenizer.ggml.eos_token_id": Field(U32, 2**32 - 1)})
    assert read_header(path).eos_token_id is None


def test_the_last_tensor_need_not_be_padded(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    path.write_bytes(gguf_bytes(SMALL, {"a": Weights((3,), 0, bytes(12))}))
    os.truncate(path, path.stat().st_size - 20)
    assert read_header(path).tensors[0].bytes == 12
    os.truncate(path, path.stat().st_size - 1)
    refuse(path, "its tensors need")


def test_sizes_of_tensor_types_are_those_of_ggml() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    library.ggml_blck_size.restype, library.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    for number, (name, weights, size) in TENSOR_TYPES.items():
        assert (library.ggml_blck_size(number), library.ggml_type_size(number)) == (weights, size), name


# --- what is refused --------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no file .*none\.gguf"):
        read_header(tmp_path / "none.gguf")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"<html>" * 100, b"\0" * 4096, b"GGML" + bytes(100)])
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    refuse(tmp_path / "m.gguf", "not a GGUF")


@pytest.mark.parametrize(
    ("version", "match"), [(1, "version 1 "), (4, "version 4 "), (3 << 24, "big-endian"), (0, "")]
)
def test_other_versions_are_refused(tmp_path: Path, version: int, match: str) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(SMALL, TENSORS, version=version))
    refuse(tmp_path / "m.gguf", match + ".*not supported")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    for size in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(ModelDamagedError):
            read_header(path)


def test_a_longer_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes() + bytes(64))
    refuse(path, "64 bytes follow")


def test_every_count_and_length_is_held_against_the_file(tmp_path: Path) -> None:
    """Each 8-byte number of the header in turn becomes each of the numbers at which integers overflow."""
    path = written(tmp_path / "m.gguf")
    whole = path.read_bytes()
    places = [8, 16]  # the numbers of tensors and of fields
    at = 24
    for key, field in SMALL.items():
        places.append(at)  # the length of the key
        body = at + len(string(key))
        if isinstance(field.value, list):
            places.append(body + 8)
        elif field.kind == STRING:
            places.append(body + 4)
        at = body + len(field_bytes(field))
    for name, weights in TENSORS.items():
        places.append(at)
        at += len(string(name)) + 4
        places += range(at, at + 8 * len(weights.shape), 8)
        at += 8 * len(weights.shape) + 4
        places.append(at)  # the offset
        at += 8
    for place in places:
        (right,) = struct.unpack_from("<Q", whole, place)
        for value in EDGES:
            if value != right:
                path.write_bytes(whole[:place] + struct.pack("<Q", value) + whole[place + 8 :])
                with pytest.raises(ModelDamagedError):
                    read_header(path)


def test_names_come_once(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([*SMALL.items(), ("general.flag", Field(BOOL, 1))], TENSORS))
    refuse(path, "'general.flag' comes twice")
    path.write_bytes(gguf_bytes(SMALL, [*TENSORS.items(), ("a.weight", Weights((8,), 0, bytes(32)))]))
    refuse(path, "'a.weight' is empty or comes twice")
    path.write_bytes(gguf_bytes({**SMALL, "": Field(U32, 1)}, TENSORS))
    refuse(path, "key is empty")  # 37 bytes with an empty key once ended llama.cpp's process


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (Weights((31,), 2, bytes(18)), "blocks of 32"),
        (Weights((0,), 0, b""), "does not fit"),
        (Weights((8,), 99, bytes(32)), "unknown tensor type 99"),
        (Weights((2, 2, 2, 2, 2), 0, bytes(128)), "5 dimensions"),
        (Weights((2**40, 2**40, 2**40, 2**40), 0, b""), "has .* bytes"),
        (Weights((16,), 0, bytes(32)), "its tensors need"),
    ],
)
def test_tensors_that_do_not_add_up_are_refused(tmp_path: Path, tensor: Weights, match: str) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(SMALL, {"a.weight": tensor}))
    refuse(tmp_path / "m.gguf", match)


def test_tensors_lie_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(SMALL, {"a": Weights((16,), 0, bytes(32)), "b": Weights((8,), 0, bytes(96))}))
    refuse(path, "b starts at 32 of the data and not at 64")


@pytest.mark.parametrize(
    ("key", "field", "match"),
    [
        ("general.architecture", Field(STRING, ""), "architecture"),
        ("general.architecture", Field(U32, 1), "architecture"),
        ("general.alignment", Field(U32, 48), "power of two"),
        ("general.alignment", Field(U32, 0), "general.alignment is 0"),
        ("general.alignment", Field(STRING, "32"), "general.alignment is '32'"),
        ("split.count", Field(U32, 2), "split over several files"),
        ("general.flag", Field(BOOL, 2), "boolean of value 2"),
        ("general.flags", Field(BOOL, [0, 1, 2] * 1000), "neither 0 nor 1"),
        ("general.name", Field(U32, 3), "not text"),
        ("tokenizer.chat_template", Field(U32, 3), "not text"),
        ("general.bad", Field(STRING, b"\xff\xfe"), "not UTF-8"),  # type: ignore[arg-type]
        ("llama.block_count", Field(U32, 513), "block_count"),  # llama.cpp asserts at most 512
        ("llama.block_count", Field(F32, 2.0), "block_count"),
        ("llama.embedding_length", Field(U32, 0), "embedding_length"),
        ("llama.attention.head_count", Field(U32, 0), "head_count"),
        ("llama.attention.head_count_kv", Field(U32, [1, 2, 3]), "3 entries for 2 layers"),
        ("llama.context_length", Field(U64, 2**40), "context_length"),
        ("llama.expert_count", Field(U32, 4), "0 of 4 experts"),
        ("llama.expert_used_count", Field(U32, 4), "4 of 0 experts"),
        ("llama.nextn_predict_layers", Field(U32, 3), "nextn"),
        ("llama.rope.scaling.type", Field(STRING, "x"), "rope.scaling.type"),
        ("llama.attention.layer_norm_rms_epsilon", Field(F32, -1.0), "epsilon"),
        ("llama.attention.layer_norm_rms_epsilon", Field(F32, float("nan")), "epsilon"),
        ("tokenizer.ggml.tokens", Field(STRING, ["a", "b", "a"]), "a token twice"),
        ("tokenizer.ggml.tokens", Field(STRING, ["a", "b", "a\0c"]), "a token twice"),  # as C strings
        ("tokenizer.ggml.tokens", Field(STRING, ["a", "b", b"\xff"]), "not UTF-8"),
        ("tokenizer.ggml.tokens", Field(STRING, ["a", "b", "c" * 1025]), "longer than 1024|more than 1024"),
        ("tokenizer.ggml.token_type", Field(I32, [1, 1]), "one entry for each"),
        ("tokenizer.ggml.token_type", Field(I32, [1, 1, 7]), "unknown type"),
        ("tokenizer.ggml.token_type", Field(I32, [1, 1, 6]), "not written as <0x00>"),
        ("tokenizer.ggml.token_type", Field(U8, [1, 1, 1]), "array of the type 0"),
        ("tokenizer.ggml.scores", Field(F32, [0.0] * 4), "one entry for each"),
        ("tokenizer.ggml.scores", Field(U8, [0] * 3), "array of the type 0"),  # llama.cpp would read past its end
        ("tokenizer.ggml.model", Field(STRING, "llama"), "single bytes"),
        ("tokenizer.ggml.eos_token_id", Field(U32, 3), "has 3 tokens"),
        ("tokenizer.ggml.eos_token_id", Field(I32, -1), "eos_token_id is -1"),
        ("tokenizer.ggml.some_token_id", Field(STRING, "0"), "some_token_id"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, key: str, field: Field, match: str) -> None:
    refuse(written(tmp_path / "m.gguf", {key: field}), match)


def test_arrays_of_arrays_are_refused(tmp_path: Path) -> None:
    nested = string("x.y") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", U32, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    content = header + string("general.architecture") + field_bytes(Field(STRING, "x")) + nested
    (tmp_path / "m.gguf").write_bytes(content)
    refuse(tmp_path / "m.gguf", "x.y is an array of the type 9")


def test_a_vocabulary_of_sentencepiece_needs_its_bytes(tmp_path: Path) -> None:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = Field(STRING, [*SMALL["tokenizer.ggml.tokens"].value, *byte_tokens])  # type: ignore[misc]
    kinds = Field(I32, [3, 1, 1] + [6] * 256)
    extra = {
        "tokenizer.ggml.model": Field(STRING, "llama"),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
    }
    assert read_header(written(tmp_path / "m.gguf", extra)).vocabulary == 259
    extra["tokenizer.ggml.tokens"] = Field(STRING, ["<s>", "a", "é", *byte_tokens[:-1], "<0xFG>"])
    refuse(written(tmp_path / "m.gguf", extra), "<0xFG>")


BASE = gguf_bytes(SMALL, TENSORS)


@settings(max_examples=1_500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_bytes_never_end_in_another_error(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(BASE)
    for at, value in changes:
        content[at] = value
    (tmp_path / "m.gguf").write_bytes(content)
    try:
        header = read_header(tmp_path / "m.gguf")
    except ModelDamagedError as error:
        assert "m.gguf" in str(error)
    else:
        assert all(0 <= tensor.offset <= len(BASE) - tensor.bytes for tensor in header.tensors)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_end_in_another_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + content)
    with pytest.raises(ModelDamagedError):
        read_header(tmp_path / "m.gguf")


def test_the_alphabet_of_the_test_files_is_complete() -> None:
    assert len(set(byte_alphabet())) == 256


# --- a real file ------------------------------------------------------------------------------------


@pytest.mark.model
def test_a_real_header_cut_at_its_boundaries_is_refused(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges: set[int] = set()
    take = gguf_header._Reader.take

    def recording(self: gguf_header._Reader, count: int, what: str) -> bytes:
        result = take(self, count, what)
        edges.add(self.at)
        return result

    monkeypatch.setattr(gguf_header._Reader, "take", recording)
    header = read_header(smollm2_path)
    monkeypatch.undo()
    assert (header.architecture, header.n_layer, header.vocabulary) == ("llama", 30, 49_152)
    assert header.tensors[-1].offset + header.tensors[-1].bytes <= header.file_bytes

    start = header.tensors[0].offset
    path = tmp_path / "m.gguf"
    with smollm2_path.open("rb") as file, path.open("wb") as copy:
        copy.write(file.read(start))
    os.truncate(path, header.file_bytes)  # the weights as a hole
    assert read_header(path).tensors == header.tensors
    last = header.tensors[-1].offset + header.tensors[-1].bytes
    inside = sorted(edge for edge in edges if edge < start)
    cuts = [*inside[:150], *inside[150::40], start - 1, start, start + 1, last // 2, last - 1]
    for size in sorted(cuts, reverse=True):
        os.truncate(path, size)
        with pytest.raises(ModelDamagedError):
            read_header(path)
    assert len(cuts) > 150
    shutil.rmtree(tmp_path, ignore_errors=True)
