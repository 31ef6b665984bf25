"""Two measurements of one kind beside each other: the ratio of every figure, with its spread.

Says where machine or settings differ, and refuses what cannot be compared. Knows nothing of single benchmarks, only
of the form that their JSON documents share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_NO_FIGURES = {"command", "date", "machine", "settings", "spread"}
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of both documents; `ratio` is b / a.

    `least` and `most` are the ratios of the ends of the two spreads; `clear` says whether these do not overlap.
    Without spreads they are None.
    """

    a: float
    b: float
    ratio: float | None
    least: float | None = None
    most: float | None = None
    clear: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`machine` and `settings`: what differs, with both values. `only_a`, `only_b`: figures of one document."""

    kind: str
    ratios: Mapping[str, Ratio]
    machine: Mapping[str, tuple[Any, Any]]
    settings: Mapping[str, tuple[Any, Any]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def read_result(path: Path) -> dict[str, Any]:
    """The JSON document of a file: all of it, or its last line, as a benchmark prints it below its table.

    Raises `ConfigError`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    text = content.decode("utf-8", "replace").strip() if len(content) <= _MOST_BYTES else ""
    for candidate in (text, text.splitlines()[-1] if text else ""):
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("command"), str):
            return found
    raise ConfigError(
        f"{path} holds no result of a benchmark", hint="keep the last line of `edge bench ... --json`"
    )


def kind(document: Mapping[str, Any]) -> str:
    """What was measured: the command without its arguments, or the name of the script.

    >>> kind({"command": "edge bench ask --limit 3"}), kind({"command": ".venv/bin/python tests/bench/reader.py x"})
    ('edge bench ask', 'reader.py')
    """
    words = str(document["command"]).split()
    script = next((word for word in words if word.endswith(".py")), "")
    if script:
        return script.rsplit("/", 1)[-1]
    return " ".join(words[: 3 if words[1:2] in (["bench"], ["eval"]) else 2])


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Every figure that both have. Raises `ConfigError` where they measured different things or share no figure."""
    kinds = kind(a), kind(b)
    if kinds[0] != kinds[1]:
        raise ConfigError(f"{kinds[0]!r} and {kinds[1]!r} measure different things", hint="compare two of one kind")
    left, right = dict(_figures(a)), dict(_figures(b))
    both = [name for name in left if name in right]
    if not both:
        raise ConfigError(f"the two results of {kinds[0]!r} share no figure")
    return Comparison(
        kinds[0],
        {name: _ratio(left[name], right[name]) for name in both},
        _differences(a.get("machine"), b.get("machine")),
        _differences(_settings(a), _settings(b)),
        tuple(name for name in left if name not in right),
        tuple(name for name in right if name not in left),
    )


@dataclass(frozen=True, slots=True)
class _Figure:
    value: float
    spread: tuple[float, float] | None


def _figures(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, _Figure]]:
    """Every number below `value` by its path, with the spread that stands beside it."""
    spreads = value.get("spread")
    for name, item in value.items():
        if name in _NO_FIGURES:
            continue
        if isinstance(item, Mapping):
            yield from _figures(item, f"{path}{name}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield f"{path}{name}", _Figure(item, _spread(spreads, name))


def _spread(spreads: object, name: str) -> tuple[float, float] | None:
    found = spreads.get(name) if isinstance(spreads, Mapping) else None
    if isinstance(found, list) and len(found) == 2 and all(isinstance(end, int | float) for end in found):
        return float(found[0]), float(found[1])
    return None


def _ratio(a: _Figure, b: _Figure) -> Ratio:
    ratio = b.value / a.value if a.value else None
    if a.spread is None or b.spread is None or ratio is None:
        return Ratio(a.value, b.value, ratio)
    (low_a, high_a), (low_b, high_b) = a.spread, b.spread
    clear = high_a < low_b or high_b < low_a
    if low_a <= 0:
        return Ratio(a.value, b.value, ratio, clear=clear)
    return Ratio(a.value, b.value, ratio, low_b / high_a, high_b / low_a, clear)


def _settings(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings, or what was asked where a document has none of its own."""
    found = document.get("settings")
    return found if isinstance(found, Mapping) else {"command": document["command"]}


def _differences(a: object, b: object) -> dict[str, tuple[Any, Any]]:
    left, right = (value if isinstance(value, Mapping) else {} for value in (a, b))
    names = dict.fromkeys([*left, *right])
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}
