"""Each role's files are what native code expects, or are refused by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_files import STRING, U32, Field, gguf_bytes, tiny_llama
from lora_files import halves, tiny_adapter
from onnx_files import write_decoder, write_encoder, write_tokenizer

from edge_sdk.bundle.checks import check_structure
from edge_sdk.bundle.manifest import BundleFile, DecoderPart, EncoderPart, Manifest
from edge_sdk.errors import BundleError

ENCODER = EncoderPart("words", "onnx", 4, "mean", "00" * 32)
TEMPLATE = "{{ messages }}"


def manifest(folder: Path, decoder: DecoderPart | None = None, encoder: EncoderPart | None = None) -> Manifest:
    """Of all files in a folder, by their place."""
    roles = {"heads": "head:{}", "adapters": "adapter:{}", "calibrations": "calibration", "licences": "licence"}
    files = []
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        role = roles.get(path.parts[0], path.parts[0]).format(path.parts[1])
        content = (folder / path).read_bytes()
        files.append(BundleFile(path.as_posix(), role, len(content), hashlib.sha256(content).hexdigest(), "MIT"))
    return Manifest("demo", "1", "MIT", tuple(files), decoder, encoder)


def gguf_part(**changes: object) -> DecoderPart:
    part = DecoderPart("tiny", "gguf", "llama", "F32", 256, None)
    return replace(part, **changes)  # type: ignore[arg-type]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def refused(folder: Path, match: str, **parts: object) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        check_structure(manifest(folder, **parts), folder)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A folder with a GGUF decoder that has a template and was trained for 512 tokens."""
    (tmp_path / "decoder").mkdir()
    tiny_llama(tmp_path / "decoder" / "tiny.gguf", template=TEMPLATE)
    return tmp_path


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "encoder", np.ones((259, 4), np.float32))
    return tmp_path


def test_a_decoder_is_what_the_manifest_says(decoder: Path) -> None:
    found = check_structure(manifest(decoder, gguf_part(chat_template=digest(TEMPLATE))), decoder)
    assert found == {"decoder/tiny.gguf": "GGUF of 11 tensors, llama"}
    refused(decoder, "its chat template has sha256", decoder=gguf_part())
    refused(decoder, "its architecture is llama", decoder=gguf_part(architecture="qwen2"))
    refused(decoder, "trained for 512 tokens", decoder=gguf_part(chat_template=digest(TEMPLATE), context=513))


def test_a_template_takes_the_place_of_the_decoders(decoder: Path) -> None:
    (decoder / "template").mkdir()
    (decoder / "template" / "own.jinja").write_text("{{ own }}")
    found = check_structure(manifest(decoder, gguf_part(chat_template=digest("{{ own }}"))), decoder)
    assert found["template/own.jinja"] == "chat template of 9 characters"
    refused(
        decoder, "own.jinja cannot be used: its chat template", decoder=gguf_part(chat_template=digest(TEMPLATE))
    )
    (decoder / "template" / "own.jinja").write_text("x" * 70_000)
    refused(decoder, "more than 65536", decoder=gguf_part(chat_template=digest("x" * 70_000)))


def test_an_adapter_is_one_and_for_this_decoder(decoder: Path) -> None:
    path = decoder / "adapters" / "style" / "lora.gguf"
    path.parent.mkdir(parents=True)
    part = gguf_part(chat_template=digest(TEMPLATE))
    for kind, architecture, match in (
        ("model", "llama", "no LoRA adapter"),
        ("adapter", "qwen2", "adapter.type is None"),
    ):
        fields = {"general.architecture": Field(STRING, architecture), "general.type": Field(STRING, kind)}
        path.write_bytes(gguf_bytes({**fields, "x": Field(U32, 1)}))
        refused(decoder, match, decoder=part)
    tiny_adapter(path, tensors=halves(shapes={"blk.0.attn_q.weight": (64, 32)}))
    refused(decoder, "of 64 x 32, the model's is 32 x 32", decoder=part)
    tiny_adapter(path)
    found = check_structure(manifest(decoder, part), decoder)
    assert found["adapters/style/lora.gguf"] == "LoRA adapter of rank 4 for 4 matrices"
    (decoder / "decoder" / "tiny.gguf").unlink()
    assert list(check_structure(manifest(decoder), decoder)) == ["adapters/style/lora.gguf"]


def test_an_encoder_folder_holds_what_its_loader_wants_and_nothing_else(encoder: Path) -> None:
    folder = encoder / "encoder"
    assert check_structure(manifest(encoder, encoder=ENCODER), encoder).keys() == {
        "encoder/model.onnx",
        "encoder/tokenizer.json",
    }
    (folder / "extra.bin").write_bytes(b"x")
    refused(encoder, "extra.bin cannot be used: a file of this kind", encoder=ENCODER)
    (folder / "extra.bin").rename(folder / "second.onnx")
    (folder / "second.onnx").write_bytes((folder / "model.onnx").read_bytes())
    refused(encoder, "exactly one .onnx", encoder=ENCODER)
    (folder / "second.onnx").unlink()
    np.savez(folder / "static.npz", codes=np.zeros((2, 2), np.int8))
    refused(encoder, "static encoder, and is none", encoder=ENCODER)
    refused(encoder, "static.json is missing", encoder=replace(ENCODER, format="static"))
    (folder / "static.npz").unlink()
    (folder / "tokenizer.json").unlink()
    refused(encoder, "tokenizer.json is missing", encoder=ENCODER)


def test_compressed_arrays_are_refused(encoder: Path) -> None:
    folder = encoder / "encoder"
    (folder / "model.onnx").unlink()
    (folder / "static.json").write_text("{}")
    static = replace(ENCODER, format="static")
    np.savez_compressed(folder / "static.npz", codes=np.zeros((1000, 1000), np.int8))
    refused(encoder, "compressed", encoder=static)
    (folder / "static.npz").write_bytes(b"PK")
    refused(encoder, "holds no arrays", encoder=static)
    np.savez(folder / "static.npz", codes=np.zeros((2, 2), np.int8), scales=np.zeros(2, np.float32))
    assert check_structure(manifest(encoder, encoder=static), encoder)["encoder/static.npz"] == "2 arrays"


def test_an_onnx_decoder_is_a_folder(tmp_path: Path) -> None:
    shapes = {"table": (259, 8), "places": (16, 8), "head": (8, 259)}
    write_decoder(tmp_path / "decoder", {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    part = gguf_part(format="onnx")
    assert len(check_structure(manifest(tmp_path, part), tmp_path)) == 4
    (tmp_path / "decoder" / "tokenizer.json").unlink()
    refused(tmp_path, "tokenizer.json is missing", decoder=part)
    write_tokenizer(tmp_path / "decoder")
    (tmp_path / "decoder" / "config.json").write_text("{")
    refused(tmp_path, "config.json cannot be used: it is not JSON", decoder=part)


@pytest.mark.parametrize(
    ("place", "content", "match"),
    [
        ("evaluation/q.jsonl", '{"question": "a?"}', "line 1 is no object"),
        ("evaluation/q.jsonl", '{"question": "a?", "answers": ["b"]}\n[1]', "line 2 is no object"),
        ("measurements/m.json", "[1, 2]", "not a JSON object"),
        ("measurements/m.json", "{" * 50_000, "not JSON"),
        ("calibrations/c.json", "{}", "no calibration"),
        ("heads/intent/model.onnx", "not onnx", "not a whole ONNX"),
        ("heads/intent/config.json", "{}", "exactly one .onnx"),
        ("licences/MIT.txt", "\udcff", "not UTF-8"),
    ],
)
def test_other_files_that_are_not_what_their_role_needs(
    tmp_path: Path, place: str, content: str, match: str
) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(tmp_path, match)


def test_errors_name_the_place_in_the_bundle_and_not_the_folder(encoder: Path) -> None:
    (encoder / "encoder" / "model.onnx").write_bytes(b"\x08")
    with pytest.raises(BundleError) as caught:
        check_structure(manifest(encoder, encoder=ENCODER), encoder)
    assert str(encoder) not in str(caught.value)
    assert json.dumps("encoder/model.onnx")[1:-1] in str(caught.value)
