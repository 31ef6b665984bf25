"""The manifest: one reading for one file, every field with its form, every name in its place."""

from __future__ import annotations

import copy
import json
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from bundle_files import manifest_bytes
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bundle.manifest import (
    BundleFile,
    DecoderPart,
    EncoderPart,
    Manifest,
    Sampling,
    check_licence,
    place,
)
from edge_sdk.errors import BundleError
from edge_sdk.prompt import Reading
from edge_sdk.records import GenerateOptions

DIGEST = "ab" * 32


def entry(path: str, role: str, size: int = 10) -> BundleFile:
    return BundleFile(path, role, size, DIGEST, "MIT")


MANIFEST = Manifest(
    name="demo",
    version="1.0-rc.1",
    licence="Apache-2.0 AND MIT",
    files=(
        entry("adapters/style/lora.gguf", "adapter:style"),
        entry("decoder/tiny.gguf", "decoder", 1 << 33),
        entry("encoder/model.onnx", "encoder"),
        entry("encoder/tokenizer.json", "encoder"),
        entry("heads/intent/model.onnx", "head:intent"),
        entry("licences/MIT.txt", "licence", 0),
    ),
    decoder=DecoderPart(
        "Tiny", "gguf", "llama", "Q8_0", 4096, DIGEST, 330, False, 90, True, Sampling(temperature=0.7)
    ),
    encoder=EncoderPart("words", "onnx", 384, "mean", DIGEST),
    created="2026-11-21",
    figures={"kld_mean": 0.0041, "runs": [1, 2]},
)


def values() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(MANIFEST.to_bytes())
    del parsed["id"]
    return parsed


def test_a_manifest_comes_back_with_the_same_bytes_and_id() -> None:
    data = MANIFEST.to_bytes()
    read = Manifest.from_bytes(data)
    assert read == MANIFEST
    assert read.to_bytes() == data == manifest_bytes(values())
    assert read.id == json.loads(data)["id"]
    assert re.fullmatch("[0-9a-f]{64}", read.id)


def test_the_id_names_every_value() -> None:
    others = [
        replace(MANIFEST, version="1.1"),
        replace(MANIFEST, created=None),
        replace(MANIFEST, figures={}),
        replace(MANIFEST, files=MANIFEST.files[:-1]),
    ]
    assert len({each.id for each in (MANIFEST, *others)}) == 5


def test_files_are_found_by_role() -> None:
    assert [each.path for each in MANIFEST.of("encoder")] == ["encoder/model.onnx", "encoder/tokenizer.json"]
    assert MANIFEST.of("head:intent")[0].path == "heads/intent/model.onnx"
    assert MANIFEST.of("reader") == ()
    assert MANIFEST.roles() == ("adapter:style", "decoder", "encoder", "head:intent", "licence")
    assert MANIFEST.total_bytes == (1 << 33) + 40


def test_sampling_and_reading_are_those_of_the_engine() -> None:
    assert Sampling().options() == GenerateOptions()
    assert Sampling(temperature=0.7, top_k=20).options() == GenerateOptions(temperature=0.7, top_k=20)
    assert MANIFEST.decoder is not None
    assert MANIFEST.decoder.reading == Reading(330, False, 90, True)
    read = Manifest.from_bytes(replace(MANIFEST, decoder=replace(MANIFEST.decoder, sampling=Sampling())).to_bytes())
    assert read.decoder is not None
    assert repr(read.decoder.sampling.options()) == repr(GenerateOptions())  # calibrations hash this text


def paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in the values below which something stands, but for what is free."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    return found + [each for name, inner in items if name != "figures" for each in paths(inner, (*path, name))]


PLACES = paths(values())


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_field_that_is_missing_or_of_another_kind_is_refused_by_name(path: tuple[str | int, ...]) -> None:
    for wrong in (["x"], {"x": 1}, None, "\u202e", -1, 1e300, "gone"):
        changed = copy.deepcopy(values())
        holder: Any = changed
        for step in path[:-1]:
            holder = holder[step]
        if wrong == holder[path[-1]] or (wrong is None and path in [("created",), ("decoder", "chat_template")]):
            continue
        if wrong == "gone":
            del holder[path[-1]]
        else:
            holder[path[-1]] = wrong
        if wrong == "gone" and isinstance(holder, list) and path[-1] != 1:
            continue  # a decoder must be there; whether the others suffice is seen in the files
        with pytest.raises(BundleError) as caught:
            Manifest.from_bytes(manifest_bytes(changed))
        assert "\n" not in str(caught.value)


@given(st.sampled_from(PLACES), st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300))
def test_any_value_anywhere_gives_a_manifest_that_is_its_file_or_a_bundle_error(
    path: tuple[str | int, ...], wrong: object
) -> None:
    changed = copy.deepcopy(values())
    holder: Any = changed
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = wrong
    try:
        data = manifest_bytes(changed)
    except ValueError:  # a lone surrogate has no bytes
        return
    with suppress(BundleError):
        assert Manifest.from_bytes(data).to_bytes() == data


def test_unknown_fields_and_other_schemas_are_refused() -> None:
    with pytest.raises(BundleError, match="unknown field 'more'"):
        Manifest.from_bytes(manifest_bytes({**values(), "more": 1}))
    with pytest.raises(BundleError, match=r"schema is 4, this version reads 3; update edge-sdk"):
        Manifest.from_bytes(manifest_bytes({**values(), "schema": 4}))


def test_an_id_of_another_content_is_refused() -> None:
    data = MANIFEST.to_bytes()
    with pytest.raises(BundleError, match="id is 0000"):
        Manifest.from_bytes(data.replace(MANIFEST.id.encode(), b"0" * 64))
    with pytest.raises(BundleError, match="its content gives"):
        Manifest.from_bytes(data.replace(b'"version":"1.0-rc.1"', b'"version":"1.0-rc.2"'))


def test_a_float_written_where_an_integer_reads_the_same_is_refused() -> None:
    data = manifest_bytes(values())
    with pytest.raises(BundleError, match="canonical"):
        Manifest.from_bytes(data.replace(b'"top_p":0.95', b'"top_p":0.950'))


@pytest.mark.parametrize(
    "role",
    ["", "script", "Decoder", "decoder:x", "head", "adapter", "head:", "head:a/b", "head:..", "head:A", "head:con"],
)
def test_unknown_roles_are_refused(role: str) -> None:
    with pytest.raises(BundleError):
        place(role, "model.onnx")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "../x", "a/b", "a\\b", "C:x", "a b", "a\0", "a\n", "é.onnx", "con", "AUX.json",
     "lpt1.gguf", "x.", "a" * 121, "-x", "a:b", "a*"],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_are_not_portable_are_refused(name: str) -> None:
    with pytest.raises(BundleError):
        place("decoder", name)


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_place_is_always_below_its_folder(role: str, name: str) -> None:
    try:
        found = place(role, name)
    except BundleError:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part) and part.isascii() for part in found.split("/"))


@pytest.mark.parametrize(
    "text",
    [
        "MIT",
        "GPL-2.0+",
        "MIT OR Apache-2.0",
        "(MIT AND (BSD-3-Clause OR X))",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "LicenseRef-own",
    ],
)
def test_licence_expressions(text: str) -> None:
    assert check_licence(text) == text


@pytest.mark.parametrize(
    "text", ["", " ", "MIT OR", "OR", "MIT MIT", "(MIT", "MIT)", "()", "MIT ( X )", "MIT,X", "A/B", "ü"]
)
def test_what_is_no_licence_expression_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="SPDX"):
        check_licence(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": MANIFEST.files[::-1]}, "ordered"),
        ({"files": ()}, "0 entries"),
        ({"files": (*MANIFEST.files, MANIFEST.files[-1])}, "two names"),
        ({"files": (*MANIFEST.files, replace(MANIFEST.files[-1], path="licences/mit.txt"))}, "lower case"),
        ({"decoder": None}, "do not go together"),
        ({"encoder": None}, "do not go together"),
        ({"files": MANIFEST.files[2:]}, "do not go together"),
        ({"name": "Demo"}, "name is 'Demo'"),
        ({"version": "1 0"}, "version is '1 0'"),
        ({"created": "2026-13-01"}, "created is"),
        ({"licence": "free"} | {"licence": "a b"}, "licence is 'a b'"),
        ({"figures": {"x": float("nan")}}, "figures: nan"),
        ({"figures": {"x": "y" * (1 << 20)}}, "more than 1048576"),
        ({"files": (*MANIFEST.files, entry("template/a.jinja", "template"), entry("template/b.jinja", "template"))},
         "2 of the role template"),
        ({"files": (entry("decoder/a.gguf", "decoder"), *MANIFEST.files[1:])}, "exactly one .gguf"),
        ({"files": (*MANIFEST.files[1:], entry("reader/tokenizer.json", "head:intent"))}, "not the place"),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=re.escape(words)):
        replace(MANIFEST, **changes)
