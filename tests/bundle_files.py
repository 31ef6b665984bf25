"""Small bundles made for tests, and archives with whatever is wrong that a test wants, written with `zipfile`.

The archives are put together without the code under test: a sound one has the bytes that `quantize.pack` gives.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf_files import tiny_llama
from made_calibrations import calibration
from onnx_files import write_encoder

from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.confidence.setup import Setup
from edge_sdk.encoders.encoders import open_encoder
from quantize.pack import Part, Recipe, build_bundle

FIGURES = {"kld_mean": 0.25, "runs": 3}


def make_parts(folder: Path) -> list[Part]:
    """A decoder, an encoder and everything that goes with them, a few hundred kilobytes."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder = tiny_llama(folder / "tiny-f32.gguf", context=256)
    write_encoder(folder / "words", np.random.default_rng(1).standard_normal((259, 4)).astype(np.float32))
    setup = {
        "model": hashlib.sha256(decoder.read_bytes()).hexdigest(),
        "encoder": open_encoder(folder / "words").fingerprint[:16],
    }
    calibrated = Calibrations(folder / "calibrations").save(calibration(setup=Setup(setup)))
    questions = folder / "questions.jsonl"
    questions.write_text('{"question": "How high is it?", "answers": ["4 m"]}\n')
    (folder / "LICENSE.txt").write_text("Do as you like.\n")
    (folder / "speed.json").write_text('{"decode": 100.5}')
    return [
        Part("decoder", decoder, "Apache-2.0", "tiny"),
        Part("encoder", folder / "words", "MIT"),
        Part("calibration", calibrated, "Apache-2.0"),
        Part("evaluation", questions, "CC-BY-4.0"),
        Part("licence", folder / "LICENSE.txt", "Apache-2.0"),
        Part("measurements", folder / "speed.json", "Apache-2.0"),
    ]


def recipe(parts: Sequence[Part], **changes: Any) -> Recipe:
    return Recipe(**{"name": "demo", "version": "1.0", "parts": parts, "figures": FIGURES, **changes})


def make_bundle(folder: Path, private_key: Path | None = None) -> Path:
    """`demo.edge` in a folder, with its parts beside it."""
    out = folder / "demo.edge"
    build_bundle(recipe(make_parts(folder / "parts")), out, private_key=private_key)
    return out


Content = dict[str, bytes]


def take_apart(path: Path) -> tuple[dict[str, Any], Content]:
    """The manifest's values without the id, and the files by path (and the signature by its name)."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    values = json.loads(files.pop("bundle.json"))
    del values["id"]
    return values, files


def canonical(values: object) -> bytes:
    """Canonical JSON as far as these values need it: no numbers that ECMAScript writes otherwise."""
    return json.dumps(_plain(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def manifest_bytes(values: Mapping[str, Any]) -> bytes:
    """`bundle.json` with the right id, whatever else is wrong with it."""
    id = hashlib.sha256(canonical(dict(values))).hexdigest()
    return canonical({**values, "id": id})


def restate(values: dict[str, Any], files: Content) -> dict[str, Any]:
    """The values with sizes and hashes that are those of the files."""
    values = copy.deepcopy(values)
    for entry in values["files"]:
        if entry["path"] in files:
            content = files[entry["path"]]
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return values


def member_info(name: str) -> zipfile.ZipInfo:
    """As bundles have them."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o100644 << 16
    return info


def zipped(members: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """A zip of these members in this order."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore")  # that a name comes twice
        for name, content in members:
            info = member_info(name) if isinstance(name, str) else name
            archive.writestr(info, content, info.compress_type)
    return buffer.getvalue()


def put_together(values: Mapping[str, Any], files: Content, manifest: bytes | None = None) -> bytes:
    """An archive of a manifest and its files in the order that bundles have."""
    first = [("bundle.json", manifest_bytes(values) if manifest is None else manifest)]
    first += [(name, files[name]) for name in ("signature.json",) if name in files]
    names = [entry["path"] if isinstance(entry["path"], str) else "x" for entry in values["files"]]
    return zipped([*first, *((name, files.get(name, b"")) for name in names)])


def content_ranges(path: Path) -> dict[str, range]:
    """Where in an archive the content of each file is; all else is structure."""
    with zipfile.ZipFile(path) as archive:
        found = {}
        for info in archive.infolist():
            start = info.header_offset + 30 + len(info.filename)
            found[info.filename] = range(start, start + info.file_size)
    return found
