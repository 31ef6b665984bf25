"""Takes the fields of parsed JSON one by one, each with its form, and refuses what is missing, wrong or left over.

Errors name the field by its path, such as `files[3].bytes`, with the value. Knows nothing of what fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from ..errors import BundleError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


def fail(message: str, *, hint: str = "") -> NoReturn:
    """Raise the `BundleError` of a manifest."""
    raise BundleError(f"the manifest is not sound: {message}", hint=hint)


class Object:
    """A JSON object whose fields are taken one by one; what is left over at the `end` is an error."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            fail(f"{where or 'it'} is {_short(values)}, not an object")
        self._values, self._where = dict(values), where

    def take(self, name: str, read: Callable[[object, str], _T]) -> _T:
        where = f"{self._where}.{name}".lstrip(".")
        if name not in self._values:
            fail(f"{where} is missing")
        return read(self._values.pop(name), where)

    def end(self) -> None:
        if self._values:
            fail(f"{self._where or 'it'} has the unknown field {min(self._values)[:60]!r}")


def text(value: object, where: str) -> str:
    if not isinstance(value, str):
        fail(f"{where} is {_short(value)}, not a text")
    return value


def label(value: object, where: str) -> str:
    """A short text for people: one line."""
    line = text(value, where)
    if not 0 < len(line) <= 200 or not line.isprintable():
        fail(f"{where} is {_short(line)}, not one line of at most 200 characters")
    return line


def sha256(value: object, where: str) -> str:
    digits = text(value, where)
    if not _SHA256.fullmatch(digits):
        fail(f"{where} is {_short(digits)}, not a sha256")
    return digits


def whole(value: object, where: str) -> int:
    if type(value) is not int:
        fail(f"{where} is {_short(value)}, not a whole number")
    return value


def flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        fail(f"{where} is {_short(value)}, neither true nor false")
    return value


def mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        fail(f"{where} is {_short(value)}, not an object")
    return value


def between(least: int, most: int) -> Callable[[object, str], int]:
    def read(value: object, where: str) -> int:
        if not least <= whole(value, where) <= most:
            fail(f"{where} is {_short(value)}, not from {least} to {most}")
        return whole(value, where)

    return read


def number(least: float, most: float) -> Callable[[object, str], float]:
    def read(value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            fail(f"{where} is {_short(value)}, not a number from {least} to {most}")
        return float(value)

    return read


def choice(*known: str) -> Callable[[object, str], str]:
    def read(value: object, where: str) -> str:
        if value not in known:
            fail(f"{where} is {_short(value)}, not one of {', '.join(known)}")
        return str(value)

    return read


def optional(read: Callable[[object, str], _T]) -> Callable[[object, str], _T | None]:
    return lambda value, where: None if value is None else read(value, where)


def list_of(read: Callable[[object, str], _T]) -> Callable[[object, str], tuple[_T, ...]]:
    def read_all(value: object, where: str) -> tuple[_T, ...]:
        if not isinstance(value, list):
            fail(f"{where} is {_short(value)}, not a list")
        return tuple(read(each, f"{where}[{at}]") for at, each in enumerate(value))

    return read_all


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
