"""Finds Python modules without importing them, and follows names from one module to the next.

The path entry finders alone say where a module is, and syntax trees what is in it. Only what the standard
library has written in C is described by a child process that imports it (`python_worker`). Knows nothing of
documents.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from ..errors import DocumentError
from .python_definitions import Definition, ModuleDefinitions, read_definitions

MAX_SOURCE_BYTES = 5_000_000
WORKER_SECONDS = 30.0

_NOT_IMPORTED = {"antigravity", "idlelib", "lib2to3", "this", "turtle", "turtledemo", "__main__"}  # they act
_SKIPPED = {"test", "tests", "testing", "idle_test", "conftest", "setup"}
_ALIASES = {"os.path": os.path.__name__}  # a name that is no file: `posixpath` or `ntpath`


@dataclass(frozen=True, slots=True)
class Module:
    """Where a module is. `source` is None when it is compiled or a namespace package."""

    name: str
    source: Path | None
    directories: tuple[str, ...] | None  # of a package
    standard: bool  # part of the standard library


def find_module(name: str) -> Module:
    """Where a module is; no parent package is imported. Raises `DocumentError` when there is none.

    A name of the standard library is looked for there only, so that a `json.py` of the user is not taken
    for it.
    """
    standard = name.partition(".")[0] in sys.stdlib_module_names
    parts = _ALIASES.get(name, name).split(".")
    path = _standard_directories() if standard else None
    spec: ModuleSpec | None = None
    for count in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:count]), path)
        if spec is None:
            break
        path = list(spec.submodule_search_locations or ())
    if spec is None:
        if standard and "." not in name:  # built into the interpreter
            return Module(name, None, None, standard)
        raise DocumentError(f"there is no module {name!r}", hint="check its name, or install it")
    source = Path(spec.origin) if isinstance(spec.loader, SourceFileLoader) and spec.origin else None
    directories = spec.submodule_search_locations
    return Module(name, source, None if directories is None else tuple(directories), standard)


def submodules(package: Module) -> Iterator[str]:
    """The full names of the public modules in a package, at any depth, in order; tests are left out."""
    found: set[str] = set()
    for directory in map(Path, package.directories or ()):
        for entry in directory.iterdir() if directory.is_dir() else ():
            is_package = entry.is_dir() and (entry / "__init__.py").is_file()
            if (is_package or entry.suffix == ".py") and _is_public(entry.stem):
                found.add(f"{package.name}.{entry.stem}")
    for name in sorted(found):
        yield name
        if (module := _find_related(name, package)) is not None:
            yield from submodules(module)


def read_module(module: Module) -> ModuleDefinitions:
    """What the source of a module defines; nothing for one without source. Raises `DocumentError`."""
    if module.source is None:
        return ModuleDefinitions("")
    try:
        facts = module.source.stat()
        if facts.st_size > MAX_SOURCE_BYTES:
            raise DocumentError(f"its source has {facts.st_size:,} bytes, more than {MAX_SOURCE_BYTES:,}")
        return _read_source(module, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise DocumentError(f"its source cannot be read ({error})") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DocumentError(f"its source cannot be parsed ({error})") from error


@lru_cache(maxsize=256)
def describe_compiled(module: Module) -> Mapping[str, Any]:
    """What the child process says of a standard-library module; empty for any other, and when it fails.

    The keys are those of `python_worker.main`.
    """
    if not module.standard or module.name.partition(".")[0] in _NOT_IMPORTED:
        return {}
    worker = Path(__file__).with_name("python_worker.py")
    kept = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(worker), module.name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WORKER_SECONDS,
            env=kept,
            check=False,
        )
        reply = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}
    return reply if isinstance(reply, dict) else {}


def offered_names(module: Module, depth: int = 8) -> list[str]:
    """The public names that a module offers, as far as its source tells.

    These are those of `__all__`. Without it: what the module defines, and for a package also what it imports
    from its own modules. Star imports count unless `__all__` is complete.
    """
    own = read_module(module)
    names = list(own.exports or ())
    if own.exports is None:
        names += own.definitions
        if module.directories is not None:
            names += [name for name, (origin, _) in own.imports.items() if origin.startswith(module.name + ".")]
    if depth and (own.exports is None or not own.exports_complete):
        for origin in own.star_imports:
            if (other := _find_related(origin, module)) is not None:
                names += offered_names(other, depth - 1)
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def trace_name(module: Module, name: str, depth: int = 8) -> tuple[Module, Definition] | None:
    """The definition behind a name, and the module whose source holds it, through aliases and imports."""
    own = read_module(module)
    name = own.aliases.get(name, name) if name not in own.definitions else name
    if name in own.definitions:
        return module, own.definitions[name]
    origins = [own.imports[name]] if name in own.imports else [(origin, name) for origin in own.star_imports]
    for origin, original in origins if depth else ():
        other = _find_related(origin, module)
        if other is not None and (found := trace_name(other, original, depth - 1)) is not None:
            return found
    return None


def parents(module: Module) -> Iterator[Module]:
    """The packages around a module, nearest first."""
    name = module.name
    while "." in name:
        name = name.rpartition(".")[0]
        if (parent := _find_related(name, module)) is not None:
            yield parent


def is_public_part(module: Module, package: Module) -> bool:
    """Whether `module` lies in `package` and has a document of its own."""
    prefix = package.name + "."
    return module.name.startswith(prefix) and all(map(_is_public, module.name.removeprefix(prefix).split(".")))


def _is_public(part: str) -> bool:
    return part.isidentifier() and not part.startswith(("_", "test_")) and part not in _SKIPPED


def _find_related(name: str, module: Module) -> Module | None:
    """A readable module of the same package, or both of the standard library; else None."""
    top = name.partition(".")[0]
    related = top == module.name.partition(".")[0] or (module.standard and top in sys.stdlib_module_names)
    if not related or name == module.name:
        return None
    try:
        found = find_module(name)
        read_module(found)
    except DocumentError:
        return None
    return found


def _spec(name: str, path: list[str] | None) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, path)
    except (ImportError, KeyError, ValueError):  # KeyError: a namespace package in another one
        return None


@cache
def _standard_directories() -> list[str]:
    roots = dict.fromkeys(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib"))
    dynamic = [entry for entry in sys.path if entry.endswith(("lib-dynload", "DLLs"))]
    return [*roots, *dynamic]


@lru_cache(maxsize=256)
def _read_source(module: Module, modified: int, size: int) -> ModuleDefinitions:
    """Read and cached for as long as the file is the same."""
    assert module.source is not None
    return read_definitions(module.source.read_bytes(), module.name, is_package=module.directories is not None)
