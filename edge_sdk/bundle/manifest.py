"""`bundle.json`: what is in a bundle: every file with its role, size and sha256, and how they are used together.

Read strictly: every field has its form, nothing else is there, and the bytes are the only ones for these values. A
file's place follows from its role, so that no name can lead elsewhere. Knows nothing of archives, keys or models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from ..prompt import Reading
from ..records import GenerateOptions
from . import fields
from .canonical import canonical_json, parse_canonical
from .fields import fail

SCHEMA = 3
MANIFEST = "bundle.json"
SIGNATURE = "signature.json"
MAX_MANIFEST = 1 << 20
MAX_FILES = 1_000
MAX_BYTES = 1 << 40  # of one file: above any model, below what a sum of sizes could overflow

FOLDERS: Final[Mapping[str, str]] = {
    "decoder": "decoder",
    "encoder": "encoder",
    "reader": "reader",
    "head": "heads",
    "adapter": "adapters",
    "calibration": "calibrations",
    "evaluation": "evaluation",
    "measurements": "measurements",
    "licence": "licences",
    "template": "template",
}
"""Role to folder. A role with a name, as in `head:intent`, has a folder of that name below it."""
_NAMED: Final = ("head", "adapter")
_SINGLE: Final = ("evaluation", "template")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.")  # names that Windows takes for others
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_LICENCE_TOKEN = re.compile(r"\s*([()]|[A-Za-z0-9][A-Za-z0-9.+-]*)")

DecoderFormat = Literal["gguf", "onnx"]
EncoderFormat = Literal["onnx", "static"]


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file: where it is below the bundle's folder, what it is for, and what it must be."""

    path: str
    role: str
    bytes: int
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampler that the figures and the calibrations belong to; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0

    def options(self) -> GenerateOptions:
        """The same for an engine; everything else as by default."""
        return GenerateOptions(**asdict(self))


@dataclass(frozen=True, slots=True)
class DecoderPart:
    """The language model. `context` is what it was tested with, in tokens; `chat_template` a sha256, or None.

    `prompt_tokens`, `numbered`, `evidence_tokens` and `extractive` say how it reads documents best.
    """

    name: str
    format: DecoderFormat
    architecture: str
    quantization: str
    context: int
    chat_template: str | None
    prompt_tokens: int = Reading().prompt_tokens
    numbered: bool = True
    evidence_tokens: int = 0
    extractive: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def reading(self) -> Reading:
        """How the model reads documents best."""
        return Reading(self.prompt_tokens, self.numbered, self.evidence_tokens, self.extractive)


@dataclass(frozen=True, slots=True)
class EncoderPart:
    """The text encoder. `fingerprint` is the loaded encoder's own: vectors with another one cannot be mixed."""

    name: str
    format: EncoderFormat
    dimension: int
    pooling: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says about itself. Making one checks it: raises `BundleError` naming the field and the value.

    `files` are ordered by path. `licence` and each file's are SPDX expressions. `created` is a date or None:
    no clock is read, so that the same files give the same bundle. `figures` is any JSON object.
    """

    name: str
    version: str
    licence: str
    files: tuple[BundleFile, ...]
    decoder: DecoderPart | None = None
    encoder: EncoderPart | None = None
    created: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def id(self) -> str:
        """The sha256 of the manifest's canonical form without this, hexadecimal. It names exactly these bytes."""
        return hashlib.sha256(canonical_json(self._values())).hexdigest()

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)

    def of(self, role: str) -> tuple[BundleFile, ...]:
        """The files of a role, such as `decoder` or `head:intent`, by path."""
        return tuple(file for file in self.files if file.role == role)

    def roles(self) -> tuple[str, ...]:
        """The roles that have files, sorted."""
        return tuple(sorted({file.role for file in self.files}))

    def to_bytes(self) -> bytes:
        """`bundle.json`."""
        return canonical_json({**self._values(), "id": self.id})

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read `bundle.json`. Raises `BundleError` unless these are the very bytes that `to_bytes` gives."""
        if len(data) > MAX_MANIFEST:
            fail(f"it has {len(data)} bytes, more than {MAX_MANIFEST}")
        try:
            values = parse_canonical(data)
        except ValueError as error:
            fail(f"{MANIFEST} cannot be read: {' '.join(str(error).split())[:200]}")
        if isinstance(values, dict) and values.get("schema") != SCHEMA:
            fail(f"schema is {values.get('schema')!r}, this version reads {SCHEMA}", hint="update edge-sdk")
        top = fields.Object(values, "")
        top.take("schema", fields.whole)
        stated = top.take("id", fields.sha256)
        made = cls(
            name=top.take("name", fields.text),
            version=top.take("version", fields.text),
            licence=top.take("licence", fields.text),
            created=top.take("created", fields.optional(fields.text)),
            files=top.take("files", fields.list_of(_file)),
            decoder=top.take("decoder", fields.optional(_decoder)),
            encoder=top.take("encoder", fields.optional(_encoder)),
            figures=top.take("figures", fields.mapping),
        )
        top.end()
        if stated != made.id:
            fail(f"id is {stated}, its content gives {made.id}")
        if made.to_bytes() != data:
            fail("it is not written as its values are")
        return made

    def _values(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "licence": self.licence,
            "created": self.created,
            "files": [asdict(file) for file in self.files],
            "decoder": None if self.decoder is None else asdict(self.decoder),
            "encoder": None if self.encoder is None else asdict(self.encoder),
            "figures": dict(self.figures),
        }


def place(role: str, name: str) -> str:
    """Where a file of a role belongs. Raises `BundleError` for an unknown role or a name that is not portable.

    >>> place("decoder", "tiny-q8_0.gguf"), place("head:intent", "model.onnx")
    ('decoder/tiny-q8_0.gguf', 'heads/intent/model.onnx')
    """
    kind, colon, own = role.partition(":")
    if kind not in FOLDERS or bool(colon) != (kind in _NAMED):
        known = ", ".join(f"{each}:NAME" if each in _NAMED else each for each in FOLDERS)
        fail(f"there is no role {role[:60]!r}", hint=f"use one of {known}")
    if colon:
        _matches(_NAME, f"the name in the role {role[:60]!r}", own)
    _matches(_FILE, f"the file name of a {kind}", name)
    if _RESERVED.fullmatch(name) or _RESERVED.fullmatch(own):
        fail(f"{name!r} of the role {role!r} is a name that Windows keeps for itself")
    return "/".join([FOLDERS[kind], *([own] if colon else []), name])


def check_licence(expression: str, where: str = "licence") -> str:
    """The expression, if it has the form of an SPDX one (specification 2.3, annex D); its names are not checked.

    >>> check_licence("Apache-2.0 AND (MIT OR LicenseRef-own)")
    'Apache-2.0 AND (MIT OR LicenseRef-own)'
    """
    tokens, at = [], 0
    while found := _LICENCE_TOKEN.match(expression, at):
        tokens.append(found[1])
        at = found.end()
    kinds = "".join("o" if each in ("AND", "OR", "WITH") else each if each in "()" else "n" for each in tokens)
    while (shorter := re.sub(r"\(n\)|non", "n", kinds)) != kinds:
        kinds = shorter
    if at != len(expression) or kinds != "n" or len(expression) > 200:
        fail(f"{where} is {expression[:60]!r}, not an SPDX licence expression", hint="write for example Apache-2.0")
    return expression


# --- what must hold between the fields --------------------------------------------------------------


def _check(it: Manifest) -> None:
    _matches(_NAME, "name", it.name)
    _matches(_VERSION, "version", it.version)
    check_licence(it.licence)
    if it.created is not None:
        _matches(_DATE, "created", it.created)
    if not 0 < len(it.files) <= MAX_FILES:
        fail(f"files has {len(it.files)} entries, not 1 to {MAX_FILES}")
    for at, file in enumerate(it.files):
        where = f"files[{at}]"
        if place(file.role, file.path.rpartition("/")[2]) != file.path:
            fail(f"{where}.path is {file.path[:100]!r}, which is not the place of a {file.role}")
        if not 0 <= file.bytes <= MAX_BYTES:
            fail(f"{where}.bytes is {file.bytes}")
        _matches(_SHA256, f"{where}.sha256", file.sha256)
        check_licence(file.licence, f"{where}.licence")
    paths = [file.path for file in it.files]
    if paths != sorted(paths):
        fail("files is not ordered by path")
    if len({path.lower() for path in paths}) != len(paths):
        fail("files has two names that are the same, or the same in lower case")
    for role in _SINGLE:
        if len(it.of(role)) > 1:
            fail(f"files has {len(it.of(role))} of the role {role}, at most one is possible")
    _check_decoder(it)
    if (it.encoder is None) != (not it.of("encoder")):
        fail("encoder and the files of the role encoder do not go together")
    try:
        size = len(canonical_json(it._values()))
    except ValueError as error:
        fail(f"figures: {error}")
    if size > MAX_MANIFEST:
        fail(f"it has {size} bytes, more than {MAX_MANIFEST}", hint="shorten figures")


def _check_decoder(it: Manifest) -> None:
    found = it.of("decoder")
    if (it.decoder is None) != (not found):
        fail("decoder and the files of the role decoder do not go together")
    models = [file for file in found if file.path.endswith(".gguf")]
    if it.decoder is not None and it.decoder.format == "gguf" and (len(found) != 1 or not models):
        fail(f"a GGUF decoder is exactly one .gguf file, files has {len(found)} of the role decoder")
    if it.of("template") and (it.decoder is None or it.decoder.format != "gguf"):
        fail("a template goes with a GGUF decoder only")


# --- from JSON --------------------------------------------------------------------------------------


def _file(values: object, where: str) -> BundleFile:
    it = fields.Object(values, where)
    made = BundleFile(
        path=it.take("path", fields.text),
        role=it.take("role", fields.text),
        bytes=it.take("bytes", fields.whole),
        sha256=it.take("sha256", fields.text),
        licence=it.take("licence", fields.text),
    )
    it.end()
    return made


def _decoder(values: object, where: str) -> DecoderPart:
    it = fields.Object(values, where)
    made = DecoderPart(
        name=it.take("name", fields.label),
        format=it.take("format", fields.choice("gguf", "onnx")),  # type: ignore[arg-type]
        architecture=it.take("architecture", fields.label),
        quantization=it.take("quantization", fields.label),
        context=it.take("context", fields.between(64, 1 << 27)),
        chat_template=it.take("chat_template", fields.optional(fields.sha256)),
        prompt_tokens=it.take("prompt_tokens", fields.between(64, 1 << 20)),
        numbered=it.take("numbered", fields.flag),
        evidence_tokens=it.take("evidence_tokens", fields.between(0, 1 << 20)),
        extractive=it.take("extractive", fields.flag),
        sampling=it.take("sampling", _sampling),
    )
    it.end()
    return made


def _sampling(values: object, where: str) -> Sampling:
    it = fields.Object(values, where)
    made = Sampling(
        temperature=it.take("temperature", fields.number(0, 100)),
        top_k=it.take("top_k", fields.between(0, 1 << 20)),
        top_p=it.take("top_p", fields.number(0, 1)),
        min_p=it.take("min_p", fields.number(0, 1)),
        repeat_penalty=it.take("repeat_penalty", fields.number(0.01, 100)),
    )
    it.end()
    return made


def _encoder(values: object, where: str) -> EncoderPart:
    it = fields.Object(values, where)
    made = EncoderPart(
        name=it.take("name", fields.label),
        format=it.take("format", fields.choice("onnx", "static")),  # type: ignore[arg-type]
        dimension=it.take("dimension", fields.between(1, 1 << 16)),
        pooling=it.take("pooling", fields.label),
        fingerprint=it.take("fingerprint", fields.sha256),
    )
    it.end()
    return made


def _matches(pattern: re.Pattern[str], where: str, text: str) -> str:
    if not pattern.fullmatch(text):
        fail(f"{where} is {text[:100]!r}, not of the form {pattern.pattern}")
    return text
