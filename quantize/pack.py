"""Packs models and what goes with them as one bundle: the same input gives the same bytes.

No clock, no file times, no permissions and no order of a folder get into it. Parts that do not go together are
refused. Knows nothing of how the models were made.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from edge_sdk.bundle.archive import Member, member_of
from edge_sdk.bundle.cache import Progress, Verification
from edge_sdk.bundle.manifest import (
    MANIFEST,
    SIGNATURE,
    BundleFile,
    DecoderPart,
    EncoderPart,
    Manifest,
    Sampling,
    check_licence,
    place,
)
from edge_sdk.bundle.signature import sign
from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.confidence.calibration import load as load_calibration
from edge_sdk.encoders.encoders import is_static, open_encoder
from edge_sdk.encoders.static_encoder import DESCRIPTION_FILE, STATIC_FILE
from edge_sdk.engines.engine import adapted_fingerprint
from edge_sdk.errors import BundleError
from edge_sdk.heads.classifier import has_encoder
from edge_sdk.heads.head_file import ARRAYS_FILE, HEAD_FILE, is_head
from edge_sdk.model_files.gguf_header import GgufHeader, read_header
from edge_sdk.model_files.onnx_session import OnnxFile, find_model, inspect_onnx
from edge_sdk.model_files.transformers_config import DecoderConfig
from edge_sdk.prompt import Reading
from edge_sdk.readers.description import FILE as READER_FILE
from edge_sdk.readers.reader import Reader

from .publish import blocks_of, publish

_COMPANIONS = (
    "tokenizer.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    READER_FILE,
)
_LARGEST_FIGURES = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """What goes into a bundle in one role: a file, or the folder of an ONNX model or a static encoder.

    `licence` is an SPDX expression. `title` is the model's name for people; by default that of the file or folder.
    """

    role: str
    path: Path
    licence: str
    title: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.title or (self.path.stem if self.path.is_file() else self.path.resolve().name)


@dataclass(frozen=True)
class Recipe:
    """What a bundle is made of. `context` is what the decoder was tested with, at most what it was trained for.

    `licence` None: that of all parts together. `created` is a date (see `build_date`) or None. `figures` are what
    was measured when it was made, any JSON object.
    """

    name: str
    version: str
    parts: Sequence[Part]
    licence: str | None = None
    created: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    context: int = 4096
    reading: Reading = field(default_factory=Reading)
    sampling: Sampling = field(default_factory=Sampling)

    def of(self, role: str) -> Part | None:
        """The one part of a role. Raises `BundleError` where there are several."""
        found = [part for part in self.parts if part.role == role]
        if len(found) > 1:
            raise BundleError(f"there are {len(found)} parts of the role {role}", hint="give one")
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class _Source:
    """A file on its way into the bundle, read once."""

    path: Path
    entry: BundleFile
    crc: int

    @property
    def member(self) -> Member:
        return Member(self.entry.path, self.entry.bytes, self.crc)


def build_bundle(
    recipe: Recipe,
    out: Path,
    *,
    private_key: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Write the archive `out`, signed where there is a key, and return what was found when it was opened again.

    Raises `BundleError` for parts that do not go together, `ModelError` for models that cannot be used,
    `DiskFullError` before anything is written; nothing is left under the name `out` unless it is whole.
    """
    if out.suffix != ".edge":
        raise BundleError(f"{out} does not end with .edge", hint=f"name it {out.name}.edge")
    if not recipe.parts:
        raise BundleError(f"{recipe.name} has no parts", hint="give a decoder, an encoder or both")
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists", hint="give another name, or --force to replace it")
    try:
        sources = _gather(recipe, progress)
        manifest = _describe(recipe, sources)
        content = manifest.to_bytes()
        Manifest.from_bytes(content)  # what its own reader refuses is not written
        members: list[tuple[Member, Iterable[bytes]]] = [(member_of(MANIFEST, content), [content])]
        if private_key is not None:
            signature = sign(content, private_key)
            members.append((member_of(SIGNATURE, signature), [signature]))
        members += [(source.member, blocks_of(source.path)) for source in sources]
        return publish(members, out, manifest.total_bytes, progress)
    except OSError as error:
        raise BundleError(f"{error.filename or out} cannot be used: {error.strerror or error}") from error


def build_date(given: str | None, environment: Mapping[str, str]) -> str | None:
    """The date of a bundle: the one given, else that of SOURCE_DATE_EPOCH (reproducible-builds.org), else None.

    >>> build_date(None, {"SOURCE_DATE_EPOCH": "1700000000"}), build_date(None, {})
    ('2023-11-14', None)
    """
    if given is not None:
        return given
    epoch = environment.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return None
    try:
        return datetime.fromtimestamp(int(epoch), UTC).date().isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise BundleError(
            f"SOURCE_DATE_EPOCH is {epoch[:40]!r}", hint="it counts seconds since 1970, in digits"
        ) from error


def read_figures(path: Path) -> dict[str, Any]:
    """A JSON object of measured figures. Raises `BundleError`."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_LARGEST_FIGURES))
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON of at most a megabyte: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path} is not a JSON object", hint='write {"name": figure, ...}')
    return value


# --- what goes in -----------------------------------------------------------------------------------


def _gather(recipe: Recipe, progress: Progress | None) -> list[_Source]:
    """Every file with its place, ordered by it, and what it is."""
    found: dict[str, tuple[Part, Path]] = {}
    for part in recipe.parts:
        check_licence(part.licence, f"the licence of {part.role}")
        for name, path in _files(part):
            where = place(part.role, name)
            if where in found:
                raise BundleError(f"{found[where][1]} and {path} would both be {where}", hint="rename one of them")
            found[where] = part, path
    total, done = sum(path.stat().st_size for _, path in found.values()), 0
    sources = []
    for where, (part, path) in sorted(found.items()):
        if progress is not None:
            progress(done, total, where)
        digest, size, crc = sha256(), 0, 0
        for block in blocks_of(path):
            digest.update(block)
            size, crc = size + len(block), zlib.crc32(block, crc)
        done += size
        sources.append(_Source(path, BundleFile(where, part.role, size, digest.hexdigest(), part.licence), crc))
    return sources


def _files(part: Part) -> Iterator[tuple[str, Path]]:
    """The names that a part's files will have, and where they are now."""
    kind = part.role.partition(":")[0]
    if not part.path.exists():
        raise BundleError(f"there is no {part.path} for the role {part.role}")
    if part.path.is_dir():
        if kind not in ("decoder", "encoder", "reader", "head"):
            raise BundleError(f"{part.path} is a folder; the role {part.role} takes a file")
        yield from ((path.name, path) for path in _model_files(part.path))
    elif kind == "calibration":
        yield Calibrations(part.path.parent).path(load_calibration(part.path).setup).name, part.path
    elif kind in ("encoder", "reader"):
        raise BundleError(f"{part.path} is a file; the role {part.role} takes a folder")
    else:
        yield part.path.name, part.path


def _model_files(folder: Path) -> list[Path]:
    """The files of a folder that its loader reads, and no others."""
    if is_head(folder):
        own = encoder_files(folder) if has_encoder(folder) else []
        return [folder / HEAD_FILE, folder / ARRAYS_FILE, *own]
    return encoder_files(folder)


def encoder_files(folder: Path) -> list[Path]:
    """The files of an encoder, or of another ONNX model, that its loader reads."""
    if is_static(folder):
        return [folder / name for name in (STATIC_FILE, DESCRIPTION_FILE, "tokenizer.json")]
    model = inspect_onnx(find_model(folder))
    return [model.path, *model.external, *(folder / name for name in _COMPANIONS if (folder / name).is_file())]


# --- what it is -------------------------------------------------------------------------------------


def _describe(recipe: Recipe, sources: Sequence[_Source]) -> Manifest:
    decoder, encoder = _decoder(recipe), _encoder(recipe)
    _check_calibrations(recipe, sources, encoder)
    return Manifest(
        name=recipe.name,
        version=recipe.version,
        licence=recipe.licence or _together(part.licence for part in recipe.parts),
        files=tuple(source.entry for source in sources),
        decoder=decoder,
        encoder=encoder,
        created=recipe.created,
        figures=recipe.figures,
    )


def _decoder(recipe: Recipe) -> DecoderPart | None:
    part, template = recipe.of("decoder"), recipe.of("template")
    if part is None:
        return None
    if part.path.is_dir():
        positions = DecoderConfig.read(part.path).positions  # from here on `config.json` is JSON
        config = part.path / "config.json"
        stated = json.loads(config.read_bytes()) if config.is_file() else {}
        architecture = str(stated.get("model_type", "unknown"))
        quantization = _onnx_bits(inspect_onnx(find_model(part.path)))
        context, text = min(recipe.context, positions or recipe.context), None
    else:
        header = read_header(part.path)
        architecture, quantization = header.architecture, _commonest_type(header)
        context, text = min(recipe.context, header.context_length or recipe.context), header.chat_template
    if template is not None:
        text = _text(template.path)
    return DecoderPart(
        name=part.name,
        format="onnx" if part.path.is_dir() else "gguf",
        architecture=architecture,
        quantization=quantization,
        context=context,
        chat_template=None if text is None else sha256(text.encode()).hexdigest(),
        prompt_tokens=recipe.reading.prompt_tokens,
        numbered=recipe.reading.numbered,
        evidence_tokens=recipe.reading.evidence_tokens,
        extractive=recipe.reading.extractive,
        sampling=recipe.sampling,
    )


def _encoder(recipe: Recipe) -> EncoderPart | None:
    part = recipe.of("encoder")
    if part is None:
        return None
    encoder, static = open_encoder(part.path, name=part.name), is_static(part.path)
    return EncoderPart(
        name=part.name,
        format="static" if static else "onnx",
        dimension=encoder.dimension,
        pooling="weighted sum" if static else "mean",
        fingerprint=encoder.fingerprint,
    )


def _check_calibrations(recipe: Recipe, sources: Sequence[_Source], encoder: EncoderPart | None) -> None:
    """A calibration for other models would never be found on a device: better said now."""
    if all(part.role != "calibration" for part in recipe.parts):
        return
    models = [each.entry.sha256 for each in sources if each.entry.role == "decoder"]
    adapters = [each.entry.sha256 for each in sources if each.entry.role.startswith("adapter:")]
    models += [adapted_fingerprint(model, adapter) for model in models for adapter in adapters]
    reader = recipe.of("reader")
    read = None if reader is None else Reader.open(reader.path, threads=1).fingerprint
    for part in recipe.parts:
        if part.role == "calibration":
            parts = load_calibration(part.path).setup.parts
            wrong = [] if parts.get("model") in (*models, read) else ["model"]
            if parts.get("reader", "none") not in ("none", (read or "")[:16]):
                wrong.append("reader")
            if encoder is None or parts.get("encoder") != encoder.fingerprint[:16]:
                wrong.append("encoder")
            if wrong:
                raise BundleError(
                    f"the calibration {part.path} was made with another {' and another '.join(wrong)}",
                    hint="calibrate with the models that go into the bundle",
                )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8", hint="save it as UTF-8") from error


def _commonest_type(header: GgufHeader) -> str:
    """The tensor type that most bytes have."""
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    return max(sorted(sizes), key=sizes.__getitem__, default="none")


def _onnx_bits(model: OnnxFile) -> str:
    if "MatMulNBits" in model.operators:
        return "MatMulNBits"
    return "int8" if model.operators & {"MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul"} else "float"


def _together(licences: Iterable[str]) -> str:
    """One expression under which all of them hold."""
    terms = [f"({each})" if " OR " in each else each for each in sorted(set(licences))]
    return terms[0].removeprefix("(").removesuffix(")") if len(terms) == 1 else " AND ".join(terms)
