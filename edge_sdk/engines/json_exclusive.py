"""Whether the parts of `oneOf` in a JSON schema exclude each other; a grammar cannot tell that only one holds.

Schemas are as `json_schema` has checked them. Knows nothing of grammars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import GrammarError

UNTYPED = "x-untyped"
"""Marks a schema that names no type, so that values of others than it is about fit it too."""

_Schema = Mapping[str, Any]
_MOST, _DEEPEST = 5000, 24  # comparisons of a whole schema, and how far one goes
_KINDS = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


class Exclusive:
    """Compares parts, so many for one schema."""

    def __init__(self, definition: Callable[[_Schema], _Schema]) -> None:
        """`definition` gives what a `$ref` refers to."""
        self._definition, self._compared = definition, 0

    def check(self, schema: _Schema, place: str) -> None:
        """Raise `GrammarError` where a value that is made for one part of `oneOf` may also fit another."""
        parts = schema["oneOf"]
        for at, part in enumerate(parts):
            for other in (*parts[:at], *parts[at + 1 :]):
                if not self._never(part, other, 0):
                    raise GrammarError(
                        f"several parts of 'oneOf' of the JSON schema at {place} may hold at once",
                        hint="use 'anyOf', or require a property with a 'const' of its own in each part",
                    )

    def _never(self, made: _Schema, other: _Schema, depth: int) -> bool:
        """Whether no value that is made for the one schema can fit the other."""
        self._compared += 1
        if self._compared > _MOST or depth > _DEEPEST or "allOf" in made or "allOf" in other:
            return False
        if "$ref" in made or "$ref" in other:
            made, other = (self._definition(each) if "$ref" in each else each for each in (made, other))
            return self._never(made, other, depth + 1)
        for key in ("anyOf", "oneOf"):
            if key in made:
                return all(self._never(part, other, depth + 1) for part in made[key])
            if key in other:
                return UNTYPED not in other and all(self._never(made, part, depth + 1) for part in other[key])
        if "type" in made and made["type"] == other.get("type") == "object":
            return self._never_as_objects(made, other, depth)
        return _values(made).isdisjoint(_values(other)) and _kinds_differ(made, other)

    def _never_as_objects(self, made: _Schema, other: _Schema, depth: int) -> bool:
        own, others = made.get("properties", {}), other.get("properties", {})
        more = made.get("additionalProperties")
        closed = more is False or ("properties" in made and more is None)  # no others are made then
        required = made.get("required", ())
        return (
            (closed and not own.keys() >= set(other.get("required", ())))
            or (other.get("additionalProperties") is False and not others.keys() >= set(required))
            or any(name in others and self._never(own[name], others[name], depth + 1) for name in required)
        )


def _values(schema: _Schema) -> set[object]:
    """What it allows, where it names its values; of objects and arrays only the kind, and True is not 1."""
    named = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return {(kind, None if kind in ("object", "array") else each) for each in named if (kind := _kind(each))}


def _kinds_differ(made: _Schema, other: _Schema) -> bool:
    """Whether the types exclude each other, or both schemas name their values."""
    if "type" not in made and "type" not in other:
        return True
    if UNTYPED in other:
        return False
    kinds = []
    for schema in (made, other):
        kind = "number" if schema.get("type") == "integer" else schema.get("type")
        kinds.append({kind} if kind else {_kind(value) for value in schema.get("enum", [schema.get("const")])})
    return kinds[0].isdisjoint(kinds[1])


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")
