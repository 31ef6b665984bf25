"""Packing: the same input gives the same bytes, what does not go together is refused, nothing half done is left."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_files import FIGURES, make_parts, put_together, recipe, take_apart
from gguf_files import tiny_llama
from lora_files import tiny_adapter
from made_calibrations import calibration
from onnx_files import decoder_tensors, write_decoder, write_encoder

from edge_sdk.bundle.cache import open_bundle, verify_bundle
from edge_sdk.bundle.manifest import Sampling
from edge_sdk.bundle.signature import make_keys
from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.confidence.setup import Setup
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.errors import BundleError, DiskFullError, EdgeError, SignatureError
from edge_sdk.prompt import Reading
from edge_sdk.readers.description import Description
from quantize import publish
from quantize.pack import Part, build_bundle, build_date, read_figures
from quantize.publish import sign_bundle


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    return make_parts(tmp_path_factory.mktemp("parts"))


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_the_same_parts_give_the_same_bytes(parts: list[Part], tmp_path: Path) -> None:
    """Whatever their order, times and permissions, where they are, and who builds when with which umask."""
    build_bundle(recipe(parts), tmp_path / "a.edge")
    copy = Path(shutil.copytree(parts[0].path.parent, tmp_path / "elsewhere"))
    moved = [replace(part, path=copy / part.path.relative_to(parts[0].path.parent)) for part in parts[::-1]]
    for at, path in enumerate(sorted(copy.rglob("*"))):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (at * 1e8, at * 1e8))
    before = os.umask(0o077)
    try:
        build_bundle(recipe(moved), tmp_path / "b.edge")
    finally:
        os.umask(before)
    assert (tmp_path / "a.edge").read_bytes() == (tmp_path / "b.edge").read_bytes()


def test_what_is_built_is_what_an_independent_writer_makes(parts: list[Part], tmp_path: Path) -> None:
    found = build_bundle(recipe(parts), tmp_path / "a.edge")
    values, files = take_apart(tmp_path / "a.edge")
    assert put_together(values, files) == (tmp_path / "a.edge").read_bytes()
    assert files["decoder/tiny-f32.gguf"] == parts[0].path.read_bytes()
    assert found.inspection.bytes == (tmp_path / "a.edge").stat().st_size
    assert left(tmp_path) == ["a.edge"]


def test_the_manifest_says_what_the_models_are(parts: list[Part], tmp_path: Path) -> None:
    made = recipe(
        parts,
        created="2026-11-21",
        reading=Reading(330, False, 90, True),
        sampling=Sampling(temperature=0.5),
        context=9999,
    )
    manifest = build_bundle(made, tmp_path / "a.edge").inspection.manifest
    assert (manifest.name, manifest.version, manifest.created, manifest.figures) == (
        "demo",
        "1.0",
        "2026-11-21",
        FIGURES,
    )
    assert manifest.licence == "Apache-2.0 AND CC-BY-4.0 AND MIT"
    assert manifest.decoder is not None and manifest.encoder is not None
    assert (manifest.decoder.name, manifest.decoder.architecture, manifest.decoder.quantization) == (
        "tiny",
        "llama",
        "F32",
    )
    assert manifest.decoder.context == 256  # at most what it was trained for
    assert manifest.decoder.reading == Reading(330, False, 90, True)
    assert manifest.decoder.sampling == Sampling(temperature=0.5)
    assert (manifest.encoder.name, manifest.encoder.dimension, manifest.encoder.pooling) == ("words", 4, "mean")
    assert {entry.licence for entry in manifest.of("evaluation")} == {"CC-BY-4.0"}
    assert recipe(parts).created is None


def test_only_files_that_a_loader_reads_are_taken(parts: list[Part], tmp_path: Path) -> None:
    folder = tmp_path / "words"
    write_encoder(folder, np.ones((259, 4), np.float32))
    for name in ("verified.json", "README.md", ".cache", "model.bin", "config.json"):
        (folder / name).write_text("{}")
    found = build_bundle(recipe([Part("encoder", folder, "MIT")]), tmp_path / "a.edge")
    assert list(found.checked) == ["encoder/config.json", "encoder/model.onnx", "encoder/tokenizer.json"]


def test_an_onnx_decoder_goes_in_as_a_folder(tmp_path: Path) -> None:
    write_decoder(tmp_path / "writer", decoder_tensors(), quantized=True)
    found = build_bundle(recipe([Part("decoder", tmp_path / "writer", "MIT")]), tmp_path / "a.edge")
    decoder = found.inspection.manifest.decoder
    assert decoder is not None
    assert (decoder.format, decoder.quantization, decoder.context, decoder.name) == ("onnx", "int8", 256, "writer")


def test_heads_adapters_and_readers_have_their_places(tmp_path: Path) -> None:
    write_encoder(tmp_path / "reader", np.ones((259, 2), np.float32))
    Description().write(tmp_path / "reader")
    head = tmp_path / "reader" / "model.onnx"
    found = build_bundle(
        recipe([Part("reader", tmp_path / "reader", "MIT"), Part("head:intent", head, "MIT")]), tmp_path / "a.edge"
    )
    assert list(found.checked) == ["heads/intent/model.onnx", "reader/model.onnx", "reader/reader.json",
                                   "reader/tokenizer.json"]  # fmt: skip


@pytest.mark.parametrize("description", [None, "{}", '{"format": 9}'])
def test_a_reader_that_does_not_say_how_it_reads_is_not_packed(tmp_path: Path, description: str | None) -> None:
    write_encoder(tmp_path / "reader", np.ones((259, 2), np.float32))
    if description is not None:
        (tmp_path / "reader" / "reader.json").write_text(description)
    with pytest.raises(BundleError, match=r"reader/reader\.json"):
        build_bundle(recipe([Part("reader", tmp_path / "reader", "MIT")]), tmp_path / "a.edge")


def test_a_template_replaces_the_decoders(parts: list[Part], tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ own }}")
    more = Part("template", tmp_path / "own.jinja", "MIT")
    plain = build_bundle(recipe(parts), tmp_path / "a.edge").inspection.manifest.decoder
    other = build_bundle(recipe([*parts, more]), tmp_path / "b.edge").inspection.manifest.decoder
    assert plain is not None and other is not None
    assert plain.chat_template != other.chat_template


def changed(parts: list[Part], role: str, **changes: Any) -> list[Part]:
    return [replace(part, **changes) if part.role == role else part for part in parts]


def test_a_calibration_of_decoder_and_adapter_goes_with_both(parts: list[Part], tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "style.gguf")
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (parts[0].path, adapter)]
    own = {"model": hashlib.sha256(" ".join(hashes).encode()).hexdigest(),
           "encoder": open_encoder(parts[1].path).fingerprint[:16], "reader": "none"}  # fmt: skip

    def packed(setup: dict[str, str], *more: Part) -> None:
        made = Calibrations(tmp_path / "calibrations").save(calibration(setup=Setup(setup)))
        build_bundle(
            recipe([*parts[:2], Part("calibration", made, "MIT"), *more]), tmp_path / "a.edge", overwrite=True
        )

    packed(own, Part("adapter:style", adapter, "MIT"))
    with pytest.raises(BundleError, match="made with another model"):
        packed(own)
    with pytest.raises(BundleError, match="made with another reader"):
        packed(own | {"reader": "0123456789abcdef"}, Part("adapter:style", adapter, "MIT"))


def test_parts_that_do_not_go_together_are_refused(parts: list[Part], tmp_path: Path) -> None:
    """Each in one line, and with nothing left behind."""
    other = tmp_path / "other"
    other.mkdir()
    decoder = tiny_llama(other / "other.gguf", seed=2)
    words = other / "words"
    write_encoder(words, np.full((259, 4), 2.0, np.float32))
    stray = Calibrations(other / "calibrations").save(calibration())
    (other / "a b.txt").write_text("x")
    (other / "broken.gguf").write_bytes(decoder.read_bytes()[:-500])
    (other / "broken.json").write_text("{")
    cases: list[tuple[list[Part], str]] = [
        (changed(parts, "decoder", path=decoder), "made with another model"),
        (changed(parts, "encoder", path=words), "made with another encoder"),
        (changed(parts, "calibration", path=stray), "another model and another encoder"),
        (changed(parts, "decoder", path=other / "broken.gguf"), "its tensors need"),
        (changed(parts, "decoder", path=other / "none.gguf"), "there is no"),
        (changed(parts, "encoder", path=decoder), "takes a folder"),
        (changed(parts, "licence", path=words), "takes a file"),
        (changed(parts, "licence", path=other / "a b.txt"), "'a b.txt', not of the form"),
        (changed(parts, "measurements", path=other / "broken.json"), "measurements/broken.json cannot be used"),
        (changed(parts, "evaluation", licence="free for all"), "the licence of evaluation is 'free for all'"),
        ([*parts, parts[0]], "would both be decoder/"),
        ([*parts, replace(parts[0], path=decoder)], "2 parts of the role decoder"),
        ([*parts, replace(parts[4], role="script")], "there is no role 'script'"),
        ([], "demo has no parts"),
    ]
    (tmp_path / "out").mkdir()
    for wrong, words_of in cases:
        with pytest.raises(EdgeError) as caught:
            build_bundle(recipe(wrong), tmp_path / "out" / "a.edge")
        assert words_of in str(caught.value)
        assert "\n" not in str(caught.value)
        assert left(tmp_path / "out") == []


@pytest.mark.parametrize("changes", [{"name": "Demo X"}, {"version": ""}, {"created": "today"}, {"licence": "-"},
                                     {"figures": {"x": float("inf")}}, {"figures": {"x": "y" * 1_100_000}},
                                     {"context": 3}, {"sampling": Sampling(top_p=2.0)}])  # fmt: skip
def test_a_manifest_that_its_reader_would_refuse_is_not_written(
    parts: list[Part], tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(BundleError):
        build_bundle(recipe(parts, **changes), tmp_path / "a.edge")
    assert left(tmp_path) == []


def test_an_existing_bundle_is_replaced_only_where_said_so(parts: list[Part], tmp_path: Path) -> None:
    out = tmp_path / "a.edge"
    out.write_bytes(b"mine")
    with pytest.raises(BundleError, match="--force"):
        build_bundle(recipe(parts), out)
    assert out.read_bytes() == b"mine"
    build_bundle(recipe(parts), out, overwrite=True)
    assert verify_bundle(out, tmp_path / "home").inspection.manifest.name == "demo"
    with pytest.raises(BundleError, match=r"does not end with \.edge"):
        build_bundle(recipe(parts), tmp_path / "a.zip")


def test_an_interrupted_build_leaves_what_was_there(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.edge"
    out.write_bytes(b"mine")

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for name in ("verify_bundle", "write_archive"):
        monkeypatch.setattr(publish, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_bundle(recipe(parts), out, overwrite=True)
        assert (left(tmp_path), out.read_bytes()) == (["a.edge"], b"mine")


def test_a_bundle_that_would_not_open_is_not_published(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer with a fault: what it wrote is opened as on a device before it gets its name."""
    real = publish.write_archive

    def faulty(file: Any, content: Any) -> int:
        real(file, content)
        file.seek(-100, 2)
        file.write(b"\0")
        return 0

    monkeypatch.setattr(publish, "write_archive", faulty)
    with pytest.raises(BundleError, match="not the directory"):
        build_bundle(recipe(parts), tmp_path / "a.edge")
    assert left(tmp_path) == []


def test_too_little_disk_is_said_before(parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "free_disk", lambda path: 1_000)
    with pytest.raises(DiskFullError, match=r"MB while it is made.* write to a folder"):
        build_bundle(recipe(parts), tmp_path / "a.edge")
    assert left(tmp_path) == []


def test_signing_changes_the_signature_only(parts: list[Part], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    public, _ = make_keys(tmp_path / "key")
    build_bundle(recipe(parts), tmp_path / "later.edge")
    before = take_apart(tmp_path / "later.edge")
    build_bundle(recipe(parts), tmp_path / "at-once.edge", private_key=tmp_path / "key")
    sign_bundle(tmp_path / "later.edge", tmp_path / "key")
    assert (tmp_path / "later.edge").read_bytes() == (tmp_path / "at-once.edge").read_bytes()
    values, files = take_apart(tmp_path / "later.edge")
    assert files.pop("signature.json")
    assert (values, files) == before
    open_bundle(tmp_path / "later.edge", tmp_path / "home", require_signature=True, keys=[public])
    other, _ = make_keys(tmp_path / "other")
    sign_bundle(tmp_path / "later.edge", tmp_path / "other")  # replaces the first
    open_bundle(tmp_path / "later.edge", tmp_path / "home", require_signature=True, keys=[other])
    with pytest.raises(SignatureError):
        open_bundle(tmp_path / "later.edge", tmp_path / "home", require_signature=True, keys=[public])


def test_a_folder_is_signed_with_a_file_beside(parts: list[Part], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    public, _ = make_keys(tmp_path / "key")
    build_bundle(recipe(parts), tmp_path / "a.edge")
    folder = open_bundle(tmp_path / "a.edge", tmp_path / "home").folder
    sign_bundle(folder, tmp_path / "key")
    assert open_bundle(folder, tmp_path / "home", require_signature=True, keys=[public]).signed.name == "key"
    assert not list(folder.parent.glob("*.part"))


def test_what_is_damaged_is_not_signed(parts: list[Part], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    make_keys(tmp_path / "key")
    build_bundle(recipe(parts), tmp_path / "a.edge")
    damaged = bytearray((tmp_path / "a.edge").read_bytes())
    damaged[damaged.index(b"GGUF") + 70_000] ^= 1
    (tmp_path / "a.edge").write_bytes(damaged)
    with pytest.raises(BundleError, match="has sha256"):
        sign_bundle(tmp_path / "a.edge", tmp_path / "key")
    assert (tmp_path / "a.edge").read_bytes() == damaged
    assert left(tmp_path) == ["a.edge", "key", "key.pub"]


def test_the_date_is_the_one_given_or_that_of_the_source() -> None:
    assert build_date("2026-11-21", {"SOURCE_DATE_EPOCH": "0"}) == "2026-11-21"
    assert build_date(None, {"SOURCE_DATE_EPOCH": "0"}) == "1970-01-01"
    assert build_date(None, {"SOURCE_DATE_EPOCH": ""}) is None
    for wrong in ("now", "1e9", "9" * 30, "-" + "9" * 30):
        with pytest.raises(BundleError, match="SOURCE_DATE_EPOCH"):
            build_date(None, {"SOURCE_DATE_EPOCH": wrong})


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_figures_that_are_no_object_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "figures.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"figures\.json"):
        read_figures(tmp_path / "figures.json")
