"""The model catalog: which models exist, their licence, files, sizes, hashes and where each file may come from.

Reads and validates the catalog of the package and the user's own; bad entries are errors that name the entry.
It knows the grammar of a source but not how to fetch one, nor what is present on this machine.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import given_path
from ..errors import ConfigError, ModelNotFoundError

ModelRole = Literal["decoder", "encoder"]
ModelFormat = Literal["gguf", "onnx", "static"]
SourceKind = Literal["pypi", "npm", "hf", "https", "file"]

_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|verified\.json|.*\.part(\.json)?|.*\.")
_PACKAGE = r"(?P<package>(?:@[a-z0-9][a-z0-9._-]*/)?[A-Za-z0-9](?:[A-Za-z0-9._-]|\{\d+\.\.\d+\})*)"
_PATH = r"[\w-][\w.-]*(?:/[\w-][\w.-]*)"  # no segment begins with a dot
_FORMS: dict[SourceKind, re.Pattern[str]] = {
    "pypi": re.compile(_PACKAGE + r"==(?P<version>[A-Za-z0-9.+!]+)#(?P<member>.+)"),
    "npm": re.compile(_PACKAGE + r"@(?P<version>[A-Za-z0-9.+-]+)#(?P<member>.+)"),
    "hf": re.compile(rf"(?P<repository>{_PATH})/(?P<file>{_PATH}*)@(?P<revision>[\w-][\w.-]*)"),
    "https": re.compile(r"//[^/\s]+/\S+"),
    "file": re.compile(r"(?://)?(?P<path>[/~].*|[A-Za-z]:.*)"),
}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NUMBER = re.compile(r"\{n(?::0(\d))?\}")
_MOST_PARTS = 1000
_LOOPBACK = re.compile(r"http://(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:\d+)?/")


@dataclass(frozen=True, slots=True)
class PackageMember:
    """One file inside one pinned package."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file may come from.

    `members` are the parts, in order, of a package source; `location` is the URL, the path, or for `hf` the
    path below the hub's address.
    """

    text: str
    kind: SourceKind
    members: tuple[PackageMember, ...] = ()
    location: str = ""


@dataclass(frozen=True, slots=True)
class FileSpec:
    """One file of a model: what it must be, and the sources to try in order."""

    name: str
    bytes: int
    sha256: str
    sources: tuple[Source, ...]
    archive_bytes: int  # what the packages of the first source weigh together


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of the catalog. The first of `files` is the one that an engine opens.

    `memory` is the measured peak of resident bytes, `free_memory` what must be free before the model is chosen
    without being named; `rank` orders decoders by quality. `cites` is False for a model that numbered passages
    confuse, `evidence_tokens` not 0 for one that answers at least as well from chosen sentences.
    """

    name: str
    role: ModelRole
    format: ModelFormat
    licence: str
    description: str
    upstream: str
    memory: int
    context: int
    rank: int
    files: tuple[FileSpec, ...]
    free_memory: int
    aliases: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    cites: bool = True
    evidence_tokens: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Models by name, in the catalog's order; iterating gives the models."""

    models: Mapping[str, ModelSpec] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self.models.values())

    def find(self, name: str) -> ModelSpec | None:
        """The model with this name or alias, in any case."""
        wanted = name.lower()
        return self.models.get(wanted) or next((model for model in self if wanted in model.aliases), None)

    def __getitem__(self, name: str) -> ModelSpec:
        """As `find`; raises `ModelNotFoundError` with the names that come close."""
        found = self.find(name)
        if found is None:
            known = [known for model in self for known in (model.name, *model.aliases)]
            close = difflib.get_close_matches(name.lower(), known, n=2)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            raise ModelNotFoundError(
                f"model {name[:80]!r} is not in the catalog", hint=f"{meant}`edge models` lists the models"
            )
        return found


def load_catalog(extra: Path | None = None) -> Catalog:
    """Read the package's catalog and, where it exists, the user's, whose entries replace those of the same name.

    Raises `ConfigError` naming the file, the model and the key that is wrong.
    """
    shipped = package_files(__package__).joinpath("catalog.toml")
    models = _parse(shipped.read_bytes(), "the package's catalog")
    if extra is not None:
        try:
            models |= _parse(extra.read_bytes(), str(extra))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ConfigError(f"{extra} cannot be read: {error.strerror}") from error
    taken: dict[str, str] = {}
    for model in models.values():
        for name in (model.name, *model.aliases):
            if taken.setdefault(name, model.name) != model.name:
                raise ConfigError(f"{name!r} names both {taken[name]} and {model.name} in the catalog")
    return Catalog(models)


def parse_source(text: str) -> Source:
    """A source from its one-line form. Raises `ConfigError` when it has none of the known forms.

    >>> parse_source("pypi:parts-{9..10}==1.0#data/{n:02}.bin").members[0]
    PackageMember(package='parts-9', version='1.0', member='data/09.bin')
    >>> parse_source("hf:owner/repository/onnx/model.onnx@main").location
    'owner/repository/resolve/main/onnx/model.onnx'
    """
    kind, _, rest = text.partition(":")
    for known, form in _FORMS.items():
        if kind == known and (match := form.fullmatch(rest)):
            return _source(text, known, match)
    if _LOOPBACK.match(text):
        return Source(text, "https", location=text)
    raise ConfigError(f"source {text!r} has no known form", hint="use pypi:, npm:, hf:, https: or file:/")


def _source(text: str, kind: SourceKind, match: re.Match[str]) -> Source:
    if kind == "hf":
        return Source(text, kind, location=f"{match['repository']}/resolve/{match['revision']}/{match['file']}")
    if kind == "https":
        return Source(text, kind, location=text)
    if kind == "file":
        return Source(text, kind, location=str(given_path(match["path"], "the source")))
    return Source(text, kind, tuple(_members(match["package"], match["version"], match["member"])))


def _members(package: str, version: str, member: str) -> Iterator[PackageMember]:
    """The packages that a `{A..B}` stands for, in numeric order; one package where there is no range."""
    ranges = _RANGE.findall(package)
    first, last = map(int, ranges[0]) if ranges else (1, 1)
    if len(ranges) > 1 or not first <= last < first + _MOST_PARTS:
        raise ConfigError(f"package {package!r} needs one range of at most {_MOST_PARTS} parts, as in {{1..22}}")
    for number in range(first, last + 1):
        yield PackageMember(_RANGE.sub(str(number), package), version, _numbered(member, number))


def _numbered(member: str, number: int) -> str:
    return _NUMBER.sub(lambda form: f"{number:0{form[1] or 1}}", member)


# --- TOML to records --------------------------------------------------------------------------------


def _parse(content: bytes, where: str) -> dict[str, ModelSpec]:
    import tomllib

    try:
        document = tomllib.loads(content.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{where} is not a catalog: {error}") from error
    models: dict[str, ModelSpec] = {}
    for table in _Table(document, where).tables("model"):
        model = _model(table)
        if model.name in models:
            raise ConfigError(f"{where} lists {model.name} twice")
        models[model.name] = model
    return models


def _model(table: _Table) -> ModelSpec:
    name = table.text("name", _MODEL_NAME)
    table.where = f"{table.where}, model {name}"
    files = tuple(_file(row) for row in table.tables("file"))
    if not files or len({file.name.lower() for file in files}) < len(files):
        raise table.wrong("file", "must list at least one file, each name once")
    model = ModelSpec(
        name=name,
        role=_one_of(table, "role", get_args(ModelRole)),
        format=_one_of(table, "format", get_args(ModelFormat)),
        licence=table.text("licence"),
        description=table.text("description"),
        upstream=table.text("upstream"),
        memory=(memory := table.number("memory")),
        context=table.number("context"),
        rank=table.number("rank", 0),
        files=files,
        free_memory=table.number("free_memory", memory),
        aliases=table.texts("aliases", _MODEL_NAME),
        prompt_tokens=table.number("prompt_tokens", 0) or None,
        cites=table.flag("cites", True),
        evidence_tokens=table.number("evidence_tokens", 0),
    )
    table.finish()
    return model


def _file(table: _Table) -> FileSpec:
    name = table.text("name", _FILE_NAME)
    table.where = f"{table.where}, file {name}"
    if _RESERVED.fullmatch(name):
        raise table.wrong("name", f"is {name!r}, which is reserved")
    spec = FileSpec(
        name=name,
        bytes=(size := table.number("bytes")),
        sha256=table.text("sha256", re.compile("[0-9a-f]{64}")),
        sources=tuple(parse_source(text) for text in table.texts("sources")),
        archive_bytes=table.number("archive_bytes", size),
    )
    if not spec.sources:
        raise table.wrong("sources", "must list at least one source")
    table.finish()
    return spec


def _one_of(table: _Table, key: str, choices: tuple[Any, ...]) -> Any:
    value = table.text(key)
    if value not in choices:
        raise table.wrong(key, f"is {value!r}, not one of {', '.join(choices)}")
    return value


class _Table:
    """A TOML table that is taken apart key by key; what is missing, wrong or left over is a `ConfigError`."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._left, self.where = dict(content), where

    def wrong(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.where}: {key} {why}")

    def text(self, key: str, form: re.Pattern[str] | None = None) -> str:
        value = self._left.pop(key, None)
        if not isinstance(value, str) or not value.strip() or (form and not form.fullmatch(value)):
            raise self.wrong(key, f"is {value!r}, not a usable text")
        return value

    def texts(self, key: str, form: re.Pattern[str] | None = None) -> tuple[str, ...]:
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(
            isinstance(item, str) and (form is None or form.fullmatch(item)) for item in value
        ):
            raise self.wrong(key, f"is {value!r}, not a list of usable texts")
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._left.pop(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"is {value!r}, not true or false")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        value = self._left.pop(key, default)
        if type(value) is not int or value < (1 if default is None else 0):
            raise self.wrong(key, f"is {value!r}, not a whole number")
        return value

    def tables(self, key: str) -> list[_Table]:
        value = self._left.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, f"must be written [[{key}]]")
        return [_Table(item, self.where) for item in value]

    def finish(self) -> None:
        if self._left:
            raise self.wrong(", ".join(map(repr, self._left)), "is not known")
