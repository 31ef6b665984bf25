"""Checks JSON schemas before they are made grammars.

A schema is a promise to whoever reads the answer, so a demand that cannot be enforced while the answer is written
is refused, not ignored. Follows JSON Schema 2020-12. Knows nothing of grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import GrammarError

# What the conversion to a grammar enforces, what says nothing about the value, where schemas stand.
_ENFORCED = frozenset(
    "$ref additionalProperties allOf anyOf const enum items maxItems maxLength minItems minLength oneOf pattern"
    " prefixItems properties required type".split()
)
_REMARKS = frozenset(
    "$comment $defs $id $schema default definitions deprecated description examples format readOnly title"
    " writeOnly".split()
)
_ALONE = ("$ref", "anyOf", "oneOf", "allOf")  # what stands beside these is not enforced
_LISTS, _MAPS, _SINGLES = (
    ("allOf", "anyOf", "oneOf", "prefixItems"),
    ("$defs", "definitions", "properties"),
    ("items",),
)
_PLAIN = r"[^\\\"^$.\[\](){}|*+?\x00-\x1f\x7f-]"
_PATTERN = re.compile(
    rf"\^(?:{_PLAIN}|-|\\[.\-/+*?()\[\]{{}}|^$]|\((?!\?)|[)|*+?]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}}"
    rf"|\[(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|{_PLAIN}|\\[\-\[\]]|[.$(){{}}|*+?])+-?\])*\$"
)
_MAX_SCHEMA, _MAX_DEPTH, _MAX_COUNT, _MAX_PARTS = 64 << 10, 32, 400, 2000
_OF_KIND = {  # what says nothing about values of other types
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
}
_DEFINITIONS = ("$defs", "definitions")
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def checked_schema(text: str) -> dict[str, Any]:
    """A JSON Schema document, if all that it demands can be enforced while a text is generated.

    Raises `GrammarError` with the place for what is no schema, for keywords that would be ignored (`minimum`,
    `uniqueItems`, ...) and for sizes that llama.cpp cannot take. A list of types becomes `anyOf`, and definitions
    get names by which the converter makes each into a rule once.

    >>> checked_schema('{"type": "integer", "minimum": 3}')
    Traceback (most recent call last):
    ...
    edge_sdk.errors.GrammarError: the JSON schema demands 'minimum' at #, which cannot be enforced; remove it and...
    """
    if len(text) > _MAX_SCHEMA:
        raise GrammarError(f"the JSON schema has {len(text)} characters, more than {_MAX_SCHEMA}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not JSON: {error}") from error
    return _renamed(_Checking().checked(content, "#", 0), text)


def _renamed(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """The schema with definitions and references named by numbers.

    The converter takes the last part of a reference for the name of a rule: one that is spelled otherwise there is
    made anew at every reference, and one that is called like another rule is not made at all.
    """
    own = "definition"
    while own in text:
        own += "-"
    places = [(kind, name) for kind in _DEFINITIONS for name in schema.get(kind, {})]
    names = {f"#/{kind}/{name}": (kind, f"{own}{number}") for number, (kind, name) in enumerate(places)}

    def visit(value: Any) -> Any:
        if not isinstance(value, dict):  # additionalProperties may be a boolean
            return value
        made: dict[str, Any] = {}
        for key, each in value.items():
            if key in _MAPS:
                made[key] = {name: visit(part) for name, part in each.items()}
            elif key in _LISTS:
                made[key] = [visit(part) for part in each]
            else:
                made[key] = visit(each) if key in _SINGLES or key == "additionalProperties" else each
        if isinstance(made.get("$ref"), str):
            if made["$ref"] not in names:
                raise GrammarError(
                    f"'$ref' of the JSON schema names no definition: {made['$ref']!r}",
                    hint="references are #/$defs/NAME, with $defs at the top",
                )
            made["$ref"] = "#/{}/{}".format(*names[made["$ref"]])
        return made

    remarks = {key: each for key, each in schema.items() if key in _REMARKS}
    result: dict[str, Any] = remarks | visit({key: each for key, each in schema.items() if key not in _REMARKS})
    for kind in _DEFINITIONS:
        if kind in schema:
            result[kind] = {names[f"#/{kind}/{name}"][1]: visit(each) for name, each in schema[kind].items()}
    return result


class _Checking:
    """Goes through a schema and counts its parts, those of each type of a list for themselves."""

    def __init__(self) -> None:
        self._parts = 0

    def checked(self, schema: object, place: str, depth: int) -> dict[str, Any]:
        """One part and all that is in it."""
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise GrammarError(f"the JSON schema has more than {_MAX_PARTS} parts", hint="use a simpler one")
        if not isinstance(schema, dict):
            raise GrammarError(f"the JSON schema has {json.dumps(schema)[:40]} at {place} and not an object")
        if depth > _MAX_DEPTH:
            raise GrammarError(f"the JSON schema is nested more than {_MAX_DEPTH} deep")
        kinds = schema.get("type")
        if isinstance(kinds, list):
            schema = _of_each_type(schema, kinds)
        _check_keywords(schema, place)
        _check_values(schema, place)
        result = dict(schema)
        if "pattern" in schema:  # the converter loses the quotes around all but one of several alternatives
            result["pattern"] = f"^({schema['pattern'][1:-1]})$"
        for key in _LISTS:
            if key in schema:
                parts: list[object] = _of(list, schema, key, place)
                result[key] = [self.checked(part, f"{place}/{key}", depth + 1) for part in parts]
        for key in _MAPS:
            if key in schema:
                named: dict[str, object] = _of(dict, schema, key, place)
                result[key] = {
                    name: self.checked(part, f"{place}/{key}/{name}", depth + 1) for name, part in named.items()
                }
        for key in _SINGLES:
            if key in schema:
                result[key] = self.checked(schema[key], f"{place}/{key}", depth + 1)
        if isinstance(schema.get("additionalProperties"), dict):
            result["additionalProperties"] = self.checked(schema["additionalProperties"], f"{place}/…", depth + 1)
        return result


def _check_keywords(schema: Mapping[str, Any], place: str) -> None:
    """That nothing is demanded which would be ignored."""
    for key in schema:
        if key not in _ENFORCED | _REMARKS and not key.startswith("x-"):
            raise GrammarError(
                f"the JSON schema demands {key!r} at {place}, which cannot be enforced",
                hint="remove it and check the answer afterwards",
            )
    demands = _ENFORCED.intersection(schema)
    for key in demands.intersection(_ALONE):
        if demands - {key} - ({"type"} if schema.get("type") == "object" and key == "allOf" else set()):
            raise GrammarError(
                f"the JSON schema has {key!r} beside other demands at {place}, which cannot be enforced"
            )


def _of_each_type(schema: Mapping[str, Any], kinds: Sequence[object]) -> dict[str, Any]:
    """A schema that allows several types as `anyOf`, each with what says something about its values."""
    others = {key: value for key, value in schema.items() if key not in _REMARKS and key != "type"}
    parts = []
    for kind in dict.fromkeys(map(str, kinds)):
        foreign = {key for other, keys in _OF_KIND.items() if other != kind for key in keys}
        parts.append({"type": kind} | {key: value for key, value in others.items() if key not in foreign})
    return {key: value for key, value in schema.items() if key in _REMARKS} | {"anyOf": parts}


def _of(kind: type, schema: Mapping[str, Any], key: str, place: str) -> Any:
    value = schema[key]
    if not isinstance(value, kind) or not value:
        raise GrammarError(f"{key!r} of the JSON schema at {place} is {json.dumps(value)[:40]}")
    return value


def _check_values(schema: Mapping[str, Any], place: str) -> None:
    """The keywords that are not schemas themselves."""
    for key in ("minItems", "maxItems", "minLength", "maxLength"):
        value = schema.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
            raise GrammarError(f"{key!r} of the JSON schema at {place} is {value!r}, not 0 to {_MAX_COUNT}")
    for least, most in (("minItems", "maxItems"), ("minLength", "maxLength")):
        if schema.get(least, 0) > schema.get(most, _MAX_COUNT):
            raise GrammarError(f"{least!r} of the JSON schema at {place} is more than {most!r}")
    if "type" in schema and schema["type"] not in _TYPES:
        raise GrammarError(
            f"'type' of the JSON schema at {place} is {json.dumps(schema['type'])[:40]}",
            hint=f"types are {', '.join(_TYPES)}",
        )
    if "enum" in schema:
        _of(list, schema, "enum", place)
    if "pattern" in schema:
        _check_pattern(schema["pattern"], place)
    if "$ref" in schema and not str(schema["$ref"]).startswith("#/"):
        raise GrammarError(f"'$ref' of the JSON schema at {place} must begin with #/", hint="nothing is fetched")
    required = _of(list, schema, "required", place) if schema.get("required") else []
    properties = _of(dict, schema, "properties", place) if schema.get("properties") else {}
    missing = set(map(str, required)).difference(properties)
    if missing:
        raise GrammarError(f"the JSON schema requires {sorted(missing)[0]!r} at {place}, which is no property")


def _check_pattern(pattern: object, place: str) -> None:
    """A regular expression is put into the grammar nearly as it stands, so it must not match what JSON escapes."""
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
        raise GrammarError(
            f"'pattern' of the JSON schema at {place} cannot be enforced",
            hint="it must begin with ^, end with $, and use only plain characters, [a-z], ( ), |, *, +, ? and {}",
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise GrammarError(f"'pattern' of the JSON schema at {place} is no regular expression: {error}") from error
