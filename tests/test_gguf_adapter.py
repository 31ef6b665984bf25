"""LoRA adapters are read with care: what would end the process, or silently do nothing, is refused in one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_files import BOOL, F32, F64, STRING, U32, Field, Weights, tiny_llama
from hypothesis import given
from hypothesis import strategies as st
from lora_files import halves, tiny_adapter

from edge_sdk.errors import EdgeError, ModelDamagedError, ModelError, ModelNotFoundError
from edge_sdk.model_files.gguf_adapter import AdapterHeader, read_adapter
from edge_sdk.model_files.gguf_header import GgufHeader, read_header


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return read_header(tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf"))


def test_an_adapter_says_what_it_adapts_and_how_it_reads(tmp_path: Path, model: GgufHeader) -> None:
    fields = {
        "general.name": Field(STRING, "careful"),
        "edge.prompt_tokens": Field(U32, 512),
        "edge.evidence_tokens": Field(U32, 64),
        "edge.numbered": Field(BOOL, True),
        "edge.extractive": Field(BOOL, True),
        "edge.base_model": Field(STRING, "tiny"),
    }
    path = tiny_adapter(tmp_path / "a.gguf", fields=fields)
    names = ("blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight")
    size = path.stat().st_size
    assert read_adapter(path, model) == AdapterHeader(
        "llama", "careful", 8.0, 4, names, size, 512, True, "tiny", 64, True
    )
    plain = read_adapter(tiny_adapter(tmp_path / "b.gguf"))
    assert (plain.name, plain.prompt_tokens, plain.numbered, plain.base) == (None, None, None, None)
    assert (plain.evidence_tokens, plain.extractive) == (0, False)


@pytest.mark.parametrize(
    ("fields", "drop", "match"),
    [
        ({"general.type": Field(STRING, "model")}, (), "general.type is 'model'"),
        ({"general.type": Field(U32, 1)}, (), "general.type is 1"),
        ({"adapter.type": Field(STRING, "dora")}, (), "adapter.type is 'dora'"),
        ({}, ("adapter.type",), "adapter.type is None"),
        ({}, ("adapter.lora.alpha",), "alpha is None"),
        ({"adapter.lora.alpha": Field(F32, float("nan"))}, (), "alpha is nan"),
        ({"adapter.lora.alpha": Field(F32, -1.0)}, (), "alpha is -1"),
        ({"adapter.lora.alpha": Field(F64, 8.0)}, (), "alpha has the type 12"),
        ({"adapter.lora.alpha": Field(U32, 8)}, (), "alpha has the type 4"),
        ({"adapter.alora.invocation_tokens": Field(U32, [1, 2])}, (), "switched on by tokens"),
        ({"edge.prompt_tokens": Field(BOOL, True)}, (), "prompt_tokens is True"),
        ({"edge.prompt_tokens": Field(U32, 1)}, (), "prompt_tokens is 1"),
        ({"edge.evidence_tokens": Field(BOOL, True)}, (), "evidence_tokens is True"),
        ({"edge.numbered": Field(U32, 1)}, (), "numbered is 1"),
        ({"edge.extractive": Field(STRING, "yes")}, (), "extractive is 'yes'"),
        ({"edge.base_model": Field(U32, 1)}, (), "base_model is 1"),
    ],
)
def test_metadata_that_is_no_adapters_is_refused(
    tmp_path: Path, fields: dict[str, Field], drop: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ModelDamagedError, match=match):
        read_adapter(tiny_adapter(tmp_path / "a.gguf", fields=fields, drop=drop))


def without(name: str) -> Callable[[dict[str, Weights]], None]:
    return lambda tensors: tensors.__delitem__(name)  # type: ignore[no-any-return]


def changed(name: str, weights: Weights) -> Callable[[dict[str, Weights]], None]:
    return lambda tensors: tensors.__setitem__(name, weights)  # type: ignore[no-any-return]


QUERY = "blk.0.attn_q.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without(f"{QUERY}.lora_a"), "lacks its other half"),
        (without(f"{QUERY}.lora_b"), "lacks its other half"),
        (dict.clear, "without tensors"),
        (changed("blk.0.attn_norm.weight", Weights((32,), 0, bytes(128))), "neither .lora_a nor .lora_b"),
        (changed(f"{QUERY}.lora_a", Weights((32,), 0, bytes(128))), "is no matrix"),
        (changed(f"{QUERY}.lora_a", Weights((32, 2, 2), 0, bytes(512))), "is no matrix"),
        (changed(f"{QUERY}.lora_a", Weights((32, 4), 26, bytes(512))), "is no matrix of .*: I32"),
        (changed(f"{QUERY}.lora_a", Weights((32, 3), 0, bytes(384))), "the ranks 3 and 4"),
    ],
)
def test_matrices_that_make_no_pairs_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Weights]], None], match: str
) -> None:
    tensors = halves()
    change(tensors)
    with pytest.raises(ModelDamagedError, match=match):
        read_adapter(tiny_adapter(tmp_path / "a.gguf", tensors=tensors))


@pytest.mark.parametrize(
    ("fields", "shapes", "match"),
    [
        ({"general.architecture": Field(STRING, "qwen2")}, {QUERY: (32, 32)}, "is for qwen2, the model is llama"),
        ({}, {QUERY: (64, 32)}, "of 64 x 32, the model's is 32 x 32"),
        ({}, {QUERY: (32, 64)}, "of 32 x 64, the model's is 32 x 32"),
        ({}, {"blk.1.attn_q.weight": (32, 32)}, "does not have or multiply with"),
        ({}, {"token_embd.weight": (32, 267)}, "does not have or multiply with"),
        ({}, {"output_norm.weight": (32, 1)}, "does not have or multiply with"),
    ],
)
def test_the_adapter_of_another_model_is_refused(
    tmp_path: Path,
    model: GgufHeader,
    fields: dict[str, Field],
    shapes: dict[str, tuple[int, int]],
    match: str,
) -> None:
    path = tiny_adapter(tmp_path / "a.gguf", fields=fields, tensors=halves(shapes=shapes))
    with pytest.raises(ModelError, match=match) as caught:
        read_adapter(path, model)
    assert "trained on" in caught.value.hint
    assert not isinstance(caught.value, ModelDamagedError)
    read_adapter(path)  # in itself it is one


def test_a_missing_file_and_a_model_are_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read_adapter(tmp_path / "none.gguf")
    with pytest.raises(ModelDamagedError, match=r"general\.type is None"):
        read_adapter(tiny_llama(tmp_path / "tiny.gguf"))


@given(seed=st.integers(0, 1 << 32), cut=st.booleans())
def test_a_damaged_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, model: GgufHeader, seed: int, cut: bool
) -> None:
    path = tiny_adapter(tmp_path_factory.getbasetemp() / "damaged.gguf")
    content, pick = bytearray(path.read_bytes()), random.Random(seed)
    if cut:
        del content[pick.randrange(len(content)) :]
    else:
        content[pick.randrange(1200)] ^= 1 << pick.randrange(8)
    path.write_bytes(content)
    try:
        read_adapter(path, model)
    except EdgeError as error:
        assert "\n" not in str(error)
