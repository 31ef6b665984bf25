"""What the files of a bundle must be before native code may read them: each is walked in Python, by its role.

A kind of file that has no check here is refused. Knows nothing of where the files come from or of signatures.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from ..confidence.calibration import Calibrations, load
from ..encoders.static_encoder import DESCRIPTION_FILE, STATIC_FILE
from ..errors import BundleError, CalibrationError, ModelError
from ..heads.head_file import ARRAYS_FILE, HEAD_FILE, read_head
from ..model_files.gguf_adapter import read_adapter
from ..model_files.gguf_header import GgufHeader, read_header
from ..model_files.onnx_session import find_model, inspect_onnx
from ..readers.description import Description
from .manifest import BundleFile, DecoderPart, Manifest

CHECKS: Final = 3
"""Counts up when a check is added: what passed the older ones is checked again."""
_MAX_TEXT = 1 << 26
_MAX_TEMPLATE = 1 << 16
_TEXTS = (".txt", ".md", ".jinja")


def check_structure(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Check every file of a bundle; sizes and hashes must have been checked before.

    Returns for each path what was found. Raises `BundleError` naming the file.
    """
    found = {}
    for entry in manifest.files:
        try:
            found[entry.path] = _CHECKS[entry.role.partition(":")[0]](manifest, entry, folder / entry.path)
        except (ModelError, CalibrationError) as error:
            what = error.message.replace(f"{folder / entry.path}", "it").replace(f"{folder}{os.sep}", "")
            raise BundleError(f"{entry.path} cannot be used: {what}") from error
        except OSError as error:
            raise BundleError(f"{folder / entry.path} cannot be read: {error.strerror or error}") from error
    for role in manifest.roles():
        if role.startswith("head:") and any(entry.path.endswith(f"/{HEAD_FILE}") for entry in manifest.of(role)):
            _check_head(manifest, role, folder)
        elif role in ("encoder", "reader") or role.startswith("head:"):
            _check_folder(manifest, role, folder)
            if role == "reader":
                _check_reader(manifest, folder)
    if manifest.decoder is not None and manifest.decoder.format == "onnx":
        _check_folder(manifest, "decoder", folder)
    return found


# --- by role ----------------------------------------------------------------------------------------


def _decoder(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    assert manifest.decoder is not None
    if manifest.decoder.format == "onnx":
        return _model_file(manifest, entry, path)
    header = read_header(path)
    _check_decoder(manifest, manifest.decoder, header, entry.path)
    return f"GGUF of {len(header.tensors)} tensors, {header.architecture}"


def _check_decoder(manifest: Manifest, part: DecoderPart, header: GgufHeader, path: str) -> None:
    """What the manifest says of a GGUF decoder is what its header says."""
    if header.architecture != part.architecture:
        _fail(path, f"its architecture is {header.architecture}, the manifest has {part.architecture}")
    if header.context_length is not None and part.context > header.context_length:
        _fail(path, f"it was trained for {header.context_length} tokens, the manifest has {part.context}")
    if not manifest.of("template"):  # else the template that counts is checked there
        _check_template(path, header.chat_template, part.chat_template)


def _adapter(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    """An adapter that fits the bundle's decoder; without one it is for a decoder that is not in the bundle."""
    decoder = None
    if manifest.decoder is not None:
        if manifest.decoder.format != "gguf":
            _fail(entry.path, f"an adapter goes with a GGUF decoder, not with {manifest.decoder.format}")
        folder = path.parents[len(Path(entry.path).parts) - 1]
        decoder = read_header(folder / manifest.of("decoder")[0].path)
    found = read_adapter(path, decoder)
    return f"LoRA adapter of rank {found.rank} for {len(found.adapted)} matrices"


def _model_file(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    """A file of a folder that holds an ONNX model or a static encoder and what goes with it."""
    if path.suffix == ".onnx":
        graph = inspect_onnx(path)
        return f"ONNX of {len(graph.operators)} kinds of operators"
    if path.suffix == ".json":
        _json_object(entry, path)
        return "JSON"
    if path.suffix == ".npz":
        return _arrays(entry, path)
    if path.suffix in _TEXTS:
        return _text(manifest, entry, path)
    if not any(path in inspect_onnx(model).external for model in sorted(path.parent.glob("*.onnx"))):
        _fail(entry.path, "a file of this kind has no place there")
    return "data of an ONNX model"


def _calibration(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    calibration = load(path)
    if Calibrations(path.parent).path(calibration.setup) != path:
        _fail(entry.path, f"a calibration of this set-up is named {calibration.setup.fingerprint[:16]}.json")
    return f"calibration on {calibration.n} questions"


def _evaluation(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    lines = _content(entry, path).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            right = isinstance(row["question"], str) and isinstance(row["answers"], list)
        except (ValueError, KeyError, TypeError, RecursionError):
            right = False
        if not right:
            _fail(entry.path, f"line {number} is no object with a question and a list of answers")
    return f"{len(lines)} questions"


def _measurements(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    _json_object(entry, path)
    return "JSON"


def _text(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    return f"{len(_content(entry, path))} characters of text"


def _template(manifest: Manifest, entry: BundleFile, path: Path) -> str:
    text = _content(entry, path, most=_MAX_TEMPLATE)
    assert manifest.decoder is not None
    _check_template(entry.path, text, manifest.decoder.chat_template)
    return f"chat template of {len(text)} characters"


_CHECKS: Final[dict[str, Callable[[Manifest, BundleFile, Path], str]]] = {
    "decoder": _decoder,
    "encoder": _model_file,
    "reader": _model_file,
    "head": _model_file,
    "adapter": _adapter,
    "calibration": _calibration,
    "evaluation": _evaluation,
    "measurements": _measurements,
    "licence": _text,
    "template": _template,
}


# --- parts of checks --------------------------------------------------------------------------------


def _check_folder(manifest: Manifest, role: str, folder: Path) -> None:
    """The folder of a role holds all that its loader wants, and one model only."""
    files = manifest.of(role)
    place = Path(files[0].path).parent
    names = {Path(entry.path).name for entry in files}
    static = role == "encoder" and manifest.encoder is not None and manifest.encoder.format == "static"
    _check_encoder_files(place, names, static=static, folder=folder, tokenizer=not role.startswith("head:"))


def _check_encoder_files(
    place: Path, names: set[str], *, static: bool, folder: Path, tokenizer: bool = True
) -> None:
    wanted = {"tokenizer.json"} if tokenizer else set()
    if static:
        wanted |= {STATIC_FILE, DESCRIPTION_FILE}
    if lacking := sorted(wanted - names):
        _fail(place.as_posix(), f"{lacking[0]} is missing")
    if not static and STATIC_FILE in names:
        _fail(place.as_posix(), "it holds the vectors of a static encoder, and is none")
    if not static and sum(name.endswith(".onnx") for name in names) != 1:
        _fail(place.as_posix(), "it does not hold exactly one .onnx file")
    if not static:
        lost = [path.name for path in inspect_onnx(find_model(folder / place)).external if path.name not in names]
        if lost:
            _fail(place.as_posix(), f"{lost[0]!r} is missing")


def _check_head(manifest: Manifest, role: str, folder: Path) -> None:
    """A head is sound, and the encoder that it was fitted with is beside it or the bundle's own."""
    place = Path(manifest.of(role)[0].path).parent
    names = {Path(entry.path).name for entry in manifest.of(role)}
    try:
        head = read_head(folder / place)
    except ModelError as error:
        _fail(place.as_posix(), error.message.replace(f"{folder}{os.sep}", ""))
    if names - {HEAD_FILE, ARRAYS_FILE}:
        _check_encoder_files(place, names, static=STATIC_FILE in names, folder=folder)
    elif head.encoder is not None and (manifest.encoder is None or manifest.encoder.fingerprint != head.encoder):
        _fail(place.as_posix(), "the encoder that it was fitted with is neither beside it nor the bundle's")


def _check_reader(manifest: Manifest, folder: Path) -> None:
    """A reader says beside its model how it reads."""
    place = Path(manifest.of("reader")[0].path).parent
    try:
        Description.read(folder / place)
    except ModelError as error:
        _fail(place.as_posix(), error.message.replace(f"{folder}{os.sep}", ""))


def _check_template(path: str, template: str | None, stated: str | None) -> None:
    digest = None if template is None else hashlib.sha256(template.encode()).hexdigest()
    if digest != stated:
        _fail(path, f"its chat template has sha256 {digest}, the manifest has {stated}")


def _arrays(entry: BundleFile, path: Path) -> str:
    """A `.npz` whose arrays are stored as they are, so that reading one takes no more than the file's size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            sound = all(
                member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1 for member in members
            )
            if not sound or sum(member.file_size for member in members) > entry.bytes or archive.testzip():
                _fail(entry.path, "its arrays are compressed, encrypted or damaged")
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        _fail(entry.path, f"it holds no arrays: {error}")
    return f"{len(members)} arrays"


def _json_object(entry: BundleFile, path: Path) -> None:
    try:
        value = json.loads(_content(entry, path))
    except (ValueError, RecursionError) as error:
        _fail(entry.path, f"it is not JSON: {' '.join(str(error).split())[:100]}")
    if not isinstance(value, dict):
        _fail(entry.path, "it is not a JSON object")


def _content(entry: BundleFile, path: Path, most: int = _MAX_TEXT) -> str:
    if entry.bytes > most:
        _fail(entry.path, f"it has {entry.bytes} bytes, more than {most}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        _fail(entry.path, "it is not UTF-8")


def _fail(path: str, message: str) -> NoReturn:
    raise BundleError(f"{path} cannot be used: {message}", hint="get the bundle again")
