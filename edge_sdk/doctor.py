"""What this machine and this install have, and what is wrong with the set-up, each with the next step.

Native packages are imported in a child process, so that one built for another CPU is reported and not suffered.
Nothing is fetched, no socket is opened, nothing is changed (a model file that was never hashed is hashed).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__, device
from .bundle.cache import Inspection, inspect_bundle
from .config import Settings, given_path
from .errors import EdgeError
from .hub.models import ModelRow, list_models, resolve

_PROBE_SECONDS = 60
_WAL_RESET_FIXED = (3, 51, 3)
_LEAST_DISK = 200_000_000
_BASE = ("click", "httpx", "jinja2", "numpy", "onnxruntime", "rich", "sqlite-utils", "tokenizers")
_EXTRAS = {
    "gguf": ("llama-cpp-python",),
    "parse": ("beautifulsoup4", "pypdf", "python-docx"),
    "bundle": ("cryptography",),
}
# Each prints one JSON list of texts: the version first.
_LLAMA = """
import json, llama_cpp
info = llama_cpp.llama_print_system_info().decode(errors="replace")
flags = [part.split("=")[0].split(":")[-1].strip() for part in info.split("|") if part.strip().endswith("= 1")]
print(json.dumps([llama_cpp.__version__, " ".join(flags)]))
"""
_ONNX = """
import json, onnxruntime
print(json.dumps([onnxruntime.__version__, " ".join(onnxruntime.get_available_providers())]))
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A titled list of facts, each a name and a value for people to read."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What `edge doctor` prints. Healthy means that `problems`, each with its next step, is empty."""

    sections: tuple[Section, ...]
    problems: tuple[str, ...]


def diagnose(settings: Settings) -> Report:
    """Look at everything and report; does not raise for anything that it finds."""
    notes: list[str] = []
    problems: list[str] = []
    bundle = _inspected(settings, problems)
    sections = [
        Section("versions", tuple(_versions(notes, problems))),
        Section("machine", tuple(_machine(settings, problems))),
        Section("models", tuple(_models(settings, bundle, problems))),
        *([Section("bundle", tuple(_bundle(settings, bundle)))] if bundle is not None else []),
        *([Section("store", tuple(_store(settings.store, problems)))] if _exists(settings.store) else []),
        Section("settings", tuple(_settings(settings))),
    ]
    problems += _calibration_problems(settings.home / "calibrations")
    if notes:
        sections.append(Section("notes", tuple(("", note) for note in notes)))
    return Report(tuple(sections), tuple(problems))


# --- versions ---------------------------------------------------------------------------------------


def _versions(notes: list[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} ({sys.executable or 'no executable'})"
    yield "edge-sdk", __version__
    yield "sqlite", _sqlite(notes, problems)
    yield "kernels", _kernels(notes, problems)
    yield (
        "llama.cpp",
        _native("llama-cpp-python", _LLAMA, problems) or "not installed: pip install 'edge-sdk[gguf]'",
    )
    yield "onnxruntime", _native("onnxruntime", _ONNX, problems) or "missing"
    for package in _BASE:
        found = _version(package)
        if package != "onnxruntime":
            yield package, found or "missing"
        if found is None:
            problems.append(f"{package} is missing: run `pip install edge-sdk` again")
    for extra, packages in _EXTRAS.items():
        if extra != "gguf":
            found_all = [f"{package} {found}" for package in packages if (found := _version(package))]
            complete = len(found_all) == len(packages)
            yield f"extra {extra}", ", ".join(found_all) if complete else f"pip install 'edge-sdk[{extra}]'"


def _sqlite(notes: list[str], problems: list[str]) -> str:
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
        except sqlite3.OperationalError:
            problems.append("this Python's SQLite has no FTS5 full-text search: use a Python built with it")
            return f"{sqlite3.sqlite_version} without FTS5"
    if sqlite3.sqlite_version_info < _WAL_RESET_FIXED:
        notes.append(
            f"SQLite {sqlite3.sqlite_version} is older than 3.51.3, which mended a very rare fault when two "
            "connections write one WAL file at once; edge-sdk has one writer at a time, so it is not met"
        )
    return f"{sqlite3.sqlite_version} with FTS5"


def _kernels(notes: list[str], problems: list[str]) -> str:
    try:
        faces = [importlib.import_module(f"kernels.{name}") for name in ("logits", "scan")]
        backends = {str(face.backend()) for face in faces}
        sets = [faces[1].INSTRUCTION_SETS[bit] for bit in faces[1].instruction_sets()]
    except (ImportError, OSError, AttributeError) as error:
        problems.append(f"the kernels cannot be loaded ({error}): run `pip install --force-reinstall edge-sdk`")
        return "cannot be loaded"
    if backends == {"c"}:
        return f"compiled C ({', '.join(sets)})"
    notes.append(
        "the C kernels are not compiled, so numpy does their work, more slowly; where there is a C compiler, "
        "`pip install --force-reinstall --no-deps edge-sdk` builds them"
    )
    return "numpy"


def _native(package: str, code: str, problems: list[str]) -> str | None:
    """Version and build of a package that holds native code; None when it is not installed."""
    installed = _version(package)
    if installed is None or not sys.executable:
        return installed
    again = f"reinstall it with `pip install --force-reinstall --no-cache-dir {package}`"
    environment = {name: value for name, value in os.environ.items() if name != "EDGE_REMOTE_KEY"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        problems.append(f"{package} {installed} cannot be tried: {error}")
        return installed
    if done.returncode == 0:
        try:
            return " · ".join(json.loads(done.stdout.splitlines()[-1]))
        except (ValueError, IndexError, TypeError):
            pass
    elif done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        problems.append(f"{package} {installed} crashes when it is loaded ({name}): {again}")
        return f"{installed}, crashes ({name})"
    last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
    problems.append(f"{package} {installed} cannot be loaded ({last}): {again}")
    return f"{installed}, cannot be loaded"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- machine, models, settings ----------------------------------------------------------------------


def _machine(settings: Settings, problems: list[str]) -> Iterator[tuple[str, str]]:
    total, available = device.total_memory(), device.available_memory()
    free = device.free_disk(settings.home)
    yield "system", f"{platform.system()} {platform.release()} on {platform.machine()}"
    yield "cpu", device.cpu_name()
    yield "cpu features", " ".join(device.cpu_features()) or "unknown"
    yield "usable cores", str(device.usable_cores())
    yield "threads", str(settings.threads or device.default_threads())
    yield "memory", f"{_gigabytes(available)} available of {_gigabytes(total)}"
    yield "isolation", _isolation()
    yield "disk", f"{_gigabytes(free)} free at {settings.home}"
    if free < _LEAST_DISK:
        problems.append(f"{free / 1e6:,.0f} MB are free at {settings.home}: free some space or set EDGE_HOME")
    above = next(folder for folder in (settings.home, *settings.home.absolute().parents) if _exists(folder))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        problems.append(f"{above} cannot be written: set EDGE_HOME to a folder that can")


def _isolation() -> str:
    """What a worker process gives up here, as found in one."""
    from .engines.confinement import confinement_here
    from .engines.worker_process import can_start, worker_environment

    found = confinement_here(worker_environment()) if can_start() else ()
    return "; ".join(found) or "no worker process can be started here"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above may not be entered
        return False


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"


def _models(settings: Settings, bundle: Inspection | None, problems: list[str]) -> Iterator[tuple[str, str]]:
    try:
        rows = list_models(settings)
    except EdgeError as error:
        problems.append(str(error))
        return
    for row in rows:
        if row.state == "absent":
            continue
        yield row.name, f"{row.role}, {row.bytes / 1e6:,.0f} MB, {row.state}, sha256 {row.sha256[:16]}"
        if row.state != "present":
            problems.append(f"model {row.name} is {row.state} ({row.problem}): run `edge pull {row.name}`")
        elif row.format == "gguf" and row.role == "decoder":
            yield from _profile(row.name, settings, problems)
            yield from _memory(row.name, settings)
    reported = {name for row in rows if row.state in ("damaged", "incomplete") for name in (row.name, *row.aliases)}
    bundled = _bundled(settings, bundle)
    wanted = {part: getattr(settings, part) for part in ("encoder", "model") if part not in bundled}
    for name in wanted.values():
        if name is not None and name not in reported:
            try:
                model = resolve(name, settings)
                if model.role == "encoder":
                    yield "encoder runs on", _runs_on(model.directory)
            except EdgeError as error:
                problems.append(str(error))
    if "model" in wanted and settings.model is None:
        problems += _decoder_problems(rows)
    if settings.reader is not None and settings.reader != "none":
        yield from _reader(settings.reader, problems)


def _reader(name: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    from .readers.description import Description

    try:
        description = Description.read(folder := given_path(name, "the reader"))
    except EdgeError as error:
        problems.append(str(error))
        return
    size = sum(path.stat().st_size for path in folder.iterdir())
    sure = "" if description.answerability else "; cannot tell how likely a passage holds the answer"
    yield "reader", f"{folder}, {size / 1e6:,.0f} MB{sure}"


def _profile(name: str, settings: Settings, problems: list[str]) -> Iterator[tuple[str, str]]:
    """What the model is loaded as here, where `edge tune` has found something better than its own file."""
    from .engines.profile import find_profile

    try:
        profile = find_profile(settings.home, resolve(name, settings).path)
    except EdgeError as error:
        problems.append(str(error))
        return
    if profile is not None:
        file = Path(profile.file).name if profile.file else "its own file"
        ratio = profile.figures.get("prefill_ratio")
        faster = f", prefill {ratio:.1f} times as fast" if isinstance(ratio, float) else ""
        yield f"{name} tuned", f"{file}, {profile.threads or 'default'} threads{faster}"


def _memory(name: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """What the model would take with the settings beside what it may; nothing where its header cannot be read."""
    from .engines.memory import estimate_memory, room
    from .engines.profile import DEFAULT, find_profile
    from .model_files.gguf_header import read_header

    try:
        path = resolve(name, settings).path
        profile = find_profile(settings.home, path)
        header = read_header(Path(profile.file) if profile is not None and profile.file else path)
    except EdgeError:  # said above, or when it is loaded
        return
    tuning = DEFAULT if profile is None else profile.tuning
    tuning = tuning.as_wished(cache_type=settings.cache_type, repack=settings.repack)
    context = min(settings.context, header.context_length or settings.context)
    estimate, free = estimate_memory(header, context, tuning), device.available_memory()
    parts = ", ".join(f"{what} {size / 1e6:,.0f}" for what, size in estimate.parts().items())
    may = "" if free is None else f"; {room(free) / 1e6:,.0f} MB may be taken"
    yield f"{name} memory", f"{estimate.needed / 1e6:,.0f} MB with a context of {context:,} ({parts}){may}"


def _inspected(settings: Settings, problems: list[str]) -> Inspection | None:
    """What the bundle of the settings says; it is not unpacked."""
    if settings.bundle is None:
        return None
    try:
        return inspect_bundle(settings.bundle, settings.home, require_signature=settings.require_signature)
    except EdgeError as error:
        problems.append(str(error))
        return None


def _bundled(settings: Settings, bundle: Inspection | None) -> set[str]:
    """The settings whose model is the bundle's."""
    if bundle is None:
        return set()
    held = {"model": bundle.manifest.decoder, "encoder": bundle.manifest.encoder}
    return {name for name, part in held.items() if part is not None and not settings.outranks(name, "bundle")}


def _bundle(settings: Settings, bundle: Inspection) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    yield "bundle", f"{manifest.name} {manifest.version}, id {manifest.id[:16]}, {bundle.bytes / 1e6:,.0f} MB"
    yield "signature", str(bundle.signed)
    bundled = _bundled(settings, bundle)
    for name, part in (("model", manifest.decoder), ("encoder", manifest.encoder)):
        if name in bundled and part is not None:
            yield name, f"{part.name}, from the bundle"
        elif part is not None:
            own = f"{getattr(settings, name)} ({settings.sources[name]})"
            yield name, f"{own} instead of the bundle's {part.name}"
    others = [role for role in manifest.roles() if role not in ("decoder", "encoder")]
    if others:
        yield "also holds", ", ".join(others)


def _store(path: Path, problems: list[str]) -> Iterator[tuple[str, str]]:
    """What the store holds; documents and passages are read, for damage shows nowhere else before a question."""
    from .storage.store import Store

    yield "store", str(path)
    try:
        with Store.open(path, read_only=True) as store:
            wrong, counts = store.check(), store.counts()
    except EdgeError as error:
        problems.append(str(error))
        return
    yield "documents", f"{counts.documents}, in {counts.passages} passages"
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        mend = "restore a copy, or move the file away and add the documents again"
        problems.append(f"the store fails its check ({wrong[0]}{more}): {mend}")


def _calibration_problems(folder: Path) -> Iterator[str]:
    from .confidence.calibration import load

    for path in sorted(folder.glob("*.json")):
        try:
            load(path)
        except EdgeError as error:
            yield str(error)


def _runs_on(encoder: Path) -> str:
    from .encoders.encoders import encoder_backend

    return encoder_backend(encoder)


def _decoder_problems(rows: tuple[ModelRow, ...]) -> Iterator[str]:
    decoders = [row for row in rows if row.role == "decoder" and row.state == "present"]
    if not decoders:
        yield "no language model is present: run `edge pull smollm2-135m-instruct`"
        return
    if not _has_llama() and all(row.format == "gguf" for row in decoders):
        yield "the language models that are present need llama.cpp: run `pip install 'edge-sdk[gguf]'`"
    room, least = device.available_memory(), min(row.memory for row in decoders)
    if room is not None and least > room:
        yield f"the smallest model needs {_gigabytes(least)} of memory, {_gigabytes(room)} are free: close programs"


def _has_llama() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def _settings(settings: Settings) -> Iterator[tuple[str, str]]:
    for name, source in settings.sources.items():
        value = getattr(settings, name)
        yield name, f"{'not set' if value is None else value} ({source})"
