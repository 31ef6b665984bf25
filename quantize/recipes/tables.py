"""Tables of a TOML file to frozen dataclasses, strictly: what a dataclass does not name is refused by its full key.

A field's type says what its value must be, its metadata (`between`, `one_of`) which values are allowed. Relative
paths are those of the file's folder, and may hold variables such as `$EDGE_DATA`. Knows nothing of recipes.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from edge_sdk.config import given_path
from edge_sdk.errors import ConfigError

T = TypeVar("T")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def between(least: float, most: float, default: Any = MISSING) -> Any:
    """A field whose number is from `least` to `most`."""
    return field(default=default, metadata={"between": (least, most)})


def one_of(*choices: str) -> Any:
    """A field with one of these texts, the first of them by default."""
    return field(default=choices[0], metadata={"one_of": choices})


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or not UTF-8
        raise ConfigError(f"{path} is not TOML: {error}") from error


def table(kind: type[T], values: Mapping[str, Any], where: str, folder: Path) -> T:
    """The dataclass `kind` from the keys of a table; `where` begins every complaint, as in `recipe.toml: reader`.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Tea:
    ...     minutes: int = between(1, 9, default=3)
    >>> table(Tea, {"minutes": 4}, "tea.toml", Path())
    Tea(minutes=4)
    >>> table(Tea, {"minute": 4}, "tea.toml", Path())
    Traceback (most recent call last):
    ...
    edge_sdk.errors.ConfigError: tea.toml has an unknown key minute; did you mean minutes?
    """
    hints, known = get_type_hints(kind), {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            close = get_close_matches(name, known, 1, 0.6)
            hint = f"did you mean {close[0]}?" if close else f"it may have {', '.join(known)}"
            raise ConfigError(f"{where} has an unknown key {name[:60]}", hint=hint)
    found = {}
    for name, each in known.items():
        if name in values:
            found[name] = _value(hints[name], values[name], f"{where}.{name}", folder, each.metadata)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{where} has no {name}", hint=f"add the key {name}")
    return kind(**found)


def _value(kind: Any, value: Any, where: str, folder: Path, limits: Mapping[str, Any]) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:  # only ever `X | None`: what is there is no None
        (kind,) = (each for each in parts if each is not NoneType)
        return _value(kind, value, where, folder, limits)
    if origin is tuple:
        rows = value if isinstance(value, list) else [value]  # one needs no brackets
        return tuple(_value(parts[0], row, f"{where}[{at}]", folder, limits) for at, row in enumerate(rows))
    if is_dataclass(kind) or origin is not None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {_short(value)}, not a table")
        if is_dataclass(kind):
            return table(kind, value, where, folder)  # type: ignore[arg-type]
        return {name: _value(parts[1], each, f"{where}.{name}", folder, limits) for name, each in value.items()}
    if not _is(kind, value):
        raise ConfigError(f"{where} is {_short(value)}, not {_WORDS[kind]}")
    _check(value, where, limits)
    if kind is Path:
        return folder / _path(value, where)
    return float(value) if kind is float else value


def _path(value: str, where: str) -> Path:
    """The path, with the home folder and variables of the environment put in."""
    path = os.path.expandvars(value)
    if missing := re.search(r"\$(\w+|\{\w+\})", path):
        raise ConfigError(f"{where} names {missing[0]}, which is not set", hint="set it in the environment")
    return given_path(path, where)


def _is(kind: type, value: object) -> bool:
    if kind in (bool, int):
        return type(value) is kind  # a bool is an int
    if kind is float:
        return type(value) in (int, float) and isfinite(value)  # type: ignore[arg-type]
    return isinstance(value, str) and bool(value)


def _check(value: Any, where: str, limits: Mapping[str, Any]) -> None:
    if "between" in limits and not limits["between"][0] <= value <= limits["between"][1]:
        least, most = limits["between"]
        raise ConfigError(f"{where} is {_short(value)}, not from {least:g} to {most:g}")
    if "one_of" in limits and value not in limits["one_of"]:
        raise ConfigError(f"{where} is {_short(value)}", hint=f"use one of {', '.join(limits['one_of'])}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
