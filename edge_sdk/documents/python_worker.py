"""The child process that imports one standard-library module and describes its public names.

Run as `python -I -S python_worker.py MODULE`, so it must stand alone: no import from this package, and nothing
of the user's can be found in place of the standard library. `python_source` starts it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
import types
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SIGNATURE_LINE = re.compile(r"[\w.]*\(.*\)( -> .*)?$")
_MAX_CONSTANT = 100


def main(name: str) -> None:
    """Print one JSON object: `doc`, `names` (public, in order), `entries` {name: entry}, `constants`."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some modules print when imported
    module = importlib.import_module(name)
    entries: dict[str, dict[str, Any]] = {}
    constants: dict[str, str] = {}
    names = _public_names(module)
    for public in names:
        value = getattr(module, public, None)
        if isinstance(value, (bool, int, float, str)) and type(value).__module__ == "builtins":
            if len(repr(value)) <= _MAX_CONSTANT:
                constants[public] = repr(value)
        elif callable(value):
            entries[public] = _describe(public, value, module)
    with output:
        json.dump({"doc": _doc(module), "names": names, "entries": entries, "constants": constants}, output)


def _public_names(module: types.ModuleType) -> list[str]:
    exports = getattr(module, "__all__", None)
    if exports is not None:
        return [name for name in exports if isinstance(name, str) and not name.startswith("_")]
    return [name for name, value in vars(module).items() if not name.startswith("_") and _belongs(value, module)]


def _belongs(value: object, module: types.ModuleType) -> bool:
    """Whether a module without `__all__` offers `value`, rather than having imported it for its own use."""
    if isinstance(value, types.ModuleType):
        return False
    origin = getattr(value, "__module__", None)
    if not isinstance(origin, str):  # a constant
        return True
    return origin.lstrip("_").partition(".")[0] == module.__name__.lstrip("_").partition(".")[0]


def _describe(name: str, value: Any, module: types.ModuleType) -> dict[str, Any]:
    signature, doc = _signature(name, value)
    if not inspect.isclass(value):
        kind = "function" if inspect.isroutine(value) else "value"
        return {"name": name, "kind": kind, "signature": signature, "doc": doc}
    if value.__module__ == "builtins" != module.__name__:
        doc = f"The same as the built-in {value.__name__}: {doc.partition(chr(10))[0]}"
        return {"name": name, "kind": "class", "signature": "", "doc": doc}
    members = []
    for member, raw in vars(value).items():
        if member.startswith("_"):
            continue
        if inspect.isroutine(raw) or isinstance(raw, (staticmethod, classmethod)):
            bound_signature, member_doc = _signature(
                member, getattr(value, member, raw), bound=inspect.isroutine(raw)
            )
            kind = "function"
        elif inspect.isdatadescriptor(raw):
            bound_signature, member_doc, kind = "", _doc(raw), "value"
        else:
            continue
        if member_doc:
            members.append({"name": member, "kind": kind, "signature": bound_signature, "doc": member_doc})
    bases = [base.__name__ for base in value.__bases__ if base is not object]
    return {"name": name, "kind": "class", "signature": signature, "doc": doc, "bases": bases, "members": members}


def _signature(name: str, value: Any, *, bound: bool = False) -> tuple[str, str]:
    """The text that follows the name, and the docstring; functions in C may keep the first in the second."""
    doc = _doc(value)
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):
        first, _, rest = doc.partition("\n")
        if first.startswith(name) and _SIGNATURE_LINE.fullmatch(first):
            return first[len(name) :], rest.strip("\n") or first
        return "", doc
    parameters = list(signature.parameters.values())
    if bound and parameters and parameters[0].name in ("self", "cls"):
        signature = signature.replace(parameters=parameters[1:])
    return _ADDRESS.sub("", str(signature)).replace(str(sys.maxsize), "sys.maxsize"), doc


def _doc(value: Any) -> str:
    doc = getattr(value, "__doc__", None)
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


if __name__ == "__main__":
    main(sys.argv[1])
