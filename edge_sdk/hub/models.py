"""The models of this machine: pulled into `EDGE_HOME/models/NAME`, checked, found by name, listed, removed.

A file counts as present only when its sha256 was seen to be the catalog's; what was seen is kept with size and
time in `verified.json`, so that it is hashed once. Knows nothing of how an engine opens a model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import Settings
from ..device import available_memory
from ..errors import ModelDamagedError, ModelError, ModelNotFoundError
from ..prompt import Reading
from .catalog import Catalog, FileSpec, ModelFormat, ModelRole, ModelSpec, load_catalog
from .download import fetch
from .partial import hash_file, storage_errors

Progress = Callable[[float, float | None, str], None]
State = Literal["present", "absent", "incomplete", "damaged"]

_RECORD = "verified.json"
_ONNX_FILES = ("model.onnx", "model_quantized.onnx")
_STATIC_FILE = "static.npz"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that can be opened: `path` is the file for the engine, `directory` holds it and what goes with it.

    `spec` and `sha256` (of `path`) are None for a model given by path: nothing vouches for it.
    """

    name: str
    role: ModelRole
    format: ModelFormat
    path: Path
    directory: Path
    spec: ModelSpec | None = None
    sha256: str | None = None

    @property
    def reading(self) -> Reading:
        """How the catalog says that the model reads documents best; the default for one that it does not know."""
        spec, usual = self.spec, Reading()
        if spec is None:
            return usual
        return Reading(spec.prompt_tokens or usual.prompt_tokens, spec.cites, spec.evidence_tokens)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A row of `edge models`. `problem` says what is wrong with a model that is incomplete or damaged."""

    name: str
    aliases: tuple[str, ...]
    role: ModelRole
    format: ModelFormat
    bytes: int
    memory: int
    licence: str
    state: State
    description: str
    sha256: str  # of the first file, as the catalog has it
    problem: str = ""


def pull(name: str, settings: Settings, progress: Progress | None = None) -> InstalledModel:
    """Fetch what is missing of a catalog model and return it; a model that is present costs nothing.

    `progress(done, total, detail)` counts bytes of the model; total is None while another process pulls it.
    An interrupted pull keeps what arrived and is resumed by the next. Raises `ModelNotFoundError`,
    `OfflineError`, `DiskFullError`, `DownloadError` and `ModelDamagedError`.
    """
    spec = _catalog(settings)[name]
    folder, tell = _folder(spec, settings), progress or (lambda done, total, detail: None)
    if _state(folder, spec)[0] == "present":
        return _installed(folder, spec)
    downloads = settings.home / "downloads" / spec.name
    with storage_errors(settings.home):
        downloads.mkdir(parents=True, exist_ok=True)
        with _lock(downloads, lambda: tell(0, None, f"waiting for another pull of {spec.name}")):
            record = _Record(folder)
            missing = [file for file in spec.files if record.check(file)[0] != "present"]
            done, total = 0, sum(file.bytes for file in missing)
            for file in missing:

                def on_fraction(fraction: float, detail: str, start: int = done, size: int = file.bytes) -> None:
                    tell(start + fraction * size, total, detail)

                fetch(file, folder, downloads, offline=settings.offline, on_fraction=on_fraction)
                record.seen(file.name, file.sha256)
                done += file.bytes
            shutil.rmtree(downloads, ignore_errors=True)
    tell(total, total, spec.name)
    return _installed(folder, spec)


def resolve(name_or_path: str | Path, settings: Settings) -> InstalledModel:
    """The model of a catalog name or alias, a `.gguf` file, or a folder with `tokenizer.json` and
    `model.onnx` or `static.npz`.

    Nothing is fetched. Raises `ModelNotFoundError` when there is none, with the command that fetches it or the
    names that come close, and `ModelDamagedError` when a file is not the catalog's.
    """
    name = str(name_or_path)
    catalog = _catalog(settings)
    spec = catalog.find(name)
    if spec is None:
        try:
            path = Path(name).expanduser()
            if path.suffix == ".gguf" or path.is_dir() or any(mark in name for mark in "/~" + os.sep):
                return _by_path(path)
        except (OSError, RuntimeError, ValueError) as error:  # too long a name, the home of nobody, a null
            raise ModelNotFoundError(f"{name[:80]!r} is no usable path: {error}") from error
        spec = catalog[name]  # raises, with the names that come close
    return _by_name(spec, settings)


def best_decoder(settings: Settings) -> InstalledModel | None:
    """The decoder of the highest rank that is present, that this install can run and that leaves memory to the app.

    None when no decoder is present. Where even the smallest does not fit, `ModelError` with the figures.
    """
    ready = [
        spec
        for spec in _catalog(settings)
        if spec.role == "decoder"
        and _can_run(spec.format)
        and _state(_folder(spec, settings), spec)[0] == "present"
    ]
    if not ready:
        return None
    room = available_memory()
    fitting = [spec for spec in ready if room is None or spec.free_memory <= room]
    best = max(fitting, key=lambda spec: spec.rank) if fitting else min(ready, key=lambda spec: spec.memory)
    if room is not None and best.memory > room:
        raise ModelError(
            f"{best.name} needs {best.memory / 1e6:,.0f} MB of memory and {room / 1e6:,.0f} MB are free",
            hint="close other programs, or name a model with --model to try all the same",
        )
    return _installed(_folder(best, settings), best)


def list_models(settings: Settings, *, verify: bool = False) -> tuple[ModelRow, ...]:
    """Every model of the catalog and whether it is present; `verify` hashes every file again."""
    return tuple(_row(spec, *_state(_folder(spec, settings), spec, verify=verify)) for spec in _catalog(settings))


def remove(name: str, settings: Settings) -> int:
    """Delete a catalog model's files and what a broken-off pull left of it; return the bytes freed."""
    spec = _catalog(settings)[name]
    downloads, freed = settings.home / "downloads" / spec.name, 0
    with storage_errors(settings.home), _lock(downloads, lambda: None):
        for folder in (_folder(spec, settings), downloads):
            freed += sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
            if folder.is_symlink():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
    return freed


# --- what is on disk --------------------------------------------------------------------------------


def _catalog(settings: Settings) -> Catalog:
    return load_catalog(settings.home / "catalog.toml")


def _folder(spec: ModelSpec, settings: Settings) -> Path:
    return settings.home / "models" / spec.name


def _state(folder: Path, spec: ModelSpec, *, verify: bool = False) -> tuple[State, str]:
    """How much of a model is on disk, and what is wrong with it."""
    record = _Record(folder)
    found = {file.name: record.check(file, verify=verify) for file in spec.files}
    missing = [name for name, (state, _) in found.items() if state == "absent"]
    for state, problem in found.values():
        if state == "damaged":
            return state, problem
    if len(missing) == len(spec.files):
        return "absent", ""
    return ("incomplete", f"{', '.join(missing)} missing") if missing else ("present", "")


class _Record:
    """`verified.json` of one model folder: size, time and hash of every file that was hashed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            content = json.loads((folder / _RECORD).read_bytes())
            self._rows: dict[str, object] = content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            self._rows = {}

    def check(self, file: FileSpec, *, verify: bool = False) -> tuple[State, str]:
        """Whether a file is present and right, and what is wrong. Hashes what was not seen as it is now."""
        path = self._folder / file.name
        try:
            status = path.stat()
            if status.st_size != file.bytes:
                return "damaged", f"{path} has {status.st_size} bytes, expected {file.bytes}"
            row = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": file.sha256}
            if verify or self._rows.get(file.name) != row:
                digest = hash_file(path)
                if digest != file.sha256:
                    return "damaged", f"{path} has sha256 {digest}, expected {file.sha256}"
                self.seen(file.name, digest)
        except FileNotFoundError:
            return "absent", ""
        except OSError as error:
            return "damaged", f"{path} cannot be read: {error.strerror}"
        return "present", ""

    def seen(self, name: str, digest: str) -> None:
        """Remember that a file has this hash."""
        status = (self._folder / name).stat()
        row = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
        if self._rows.get(name) == row:
            return
        self._rows[name] = row
        with suppress(OSError):  # a read-only folder: then it is hashed again next time
            part = self._folder / f"{_RECORD}.{os.getpid()}.part"
            part.write_text(json.dumps(self._rows, indent=1))
            part.replace(self._folder / _RECORD)


@contextmanager
def _lock(downloads: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the advisory lock of a model's downloads: a second pull of the model waits for the first."""
    downloads.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two pulls at once cost time; renames keep the files whole
        yield
        return
    with downloads.with_name(f"{downloads.name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- from a name or a path to a model ---------------------------------------------------------------


def _installed(folder: Path, spec: ModelSpec) -> InstalledModel:
    first = spec.files[0]
    return InstalledModel(spec.name, spec.role, spec.format, folder / first.name, folder, spec, first.sha256)


def _by_name(spec: ModelSpec, settings: Settings) -> InstalledModel:
    folder = _folder(spec, settings)
    state, problem = _state(folder, spec)
    if state == "present":
        return _installed(folder, spec)
    hint = f"run `edge pull {spec.name}`"
    if state == "damaged":
        raise ModelDamagedError(problem, hint=hint)
    raise ModelNotFoundError(f"model {spec.name} is not on this machine", hint=hint)


def _by_path(path: Path) -> InstalledModel:
    if path.suffix == ".gguf" and path.is_file():
        return InstalledModel(path.stem, "decoder", "gguf", path, path.parent)
    if (path / _STATIC_FILE).is_file():
        return InstalledModel(path.resolve().name, "encoder", "static", path / _STATIC_FILE, path)
    model = next((path / name for name in _ONNX_FILES if (path / name).is_file()), None)
    if model and (path / "tokenizer.json").is_file():
        return InstalledModel(path.resolve().name, _onnx_role(path), "onnx", model, path)
    raise ModelNotFoundError(
        f"there is no model at {path}",
        hint="give a .gguf file, or a folder with tokenizer.json and model.onnx or static.npz",
    )


def _onnx_role(folder: Path) -> ModelRole:
    """What `config.json` says, as transformers writes it; without one, an encoder."""
    try:
        architectures = json.loads((folder / "config.json").read_bytes())["architectures"]
        return "decoder" if any("CausalLM" in name for name in architectures) else "encoder"
    except (OSError, ValueError, KeyError, TypeError):
        return "encoder"


def _can_run(form: ModelFormat) -> bool:
    return form != "gguf" or importlib.util.find_spec("llama_cpp") is not None


def _row(spec: ModelSpec, state: State, problem: str) -> ModelRow:
    return ModelRow(
        name=spec.name,
        aliases=spec.aliases,
        role=spec.role,
        format=spec.format,
        bytes=spec.bytes,
        memory=spec.memory,
        licence=spec.licence,
        state=state,
        description=spec.description,
        sha256=spec.files[0].sha256,
        problem=problem,
    )
