"""Checks JSON schemas before they are made grammars.

A schema is a promise to whoever reads the answer, so a demand that cannot be enforced while the answer is written
is refused, not ignored. Follows JSON Schema 2020-12. Knows nothing of grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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
_MAX_SCHEMA, _MAX_DEPTH, _MAX_COUNT = 64 << 10, 32, 400


def checked_schema(text: str) -> dict[str, Any]:
    """A JSON Schema document, if all that it demands can be enforced while a text is generated.

    Raises `GrammarError` with the place for what is no schema, for keywords that would be ignored (`minimum`,
    `uniqueItems`, ...) and for sizes that llama.cpp cannot take. A list of types becomes `anyOf`.

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
    return _checked(content, "#", 0)


def _checked(schema: object, place: str, depth: int) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise GrammarError(f"the JSON schema has {json.dumps(schema)[:40]} at {place} and not an object")
    if depth > _MAX_DEPTH:
        raise GrammarError(f"the JSON schema is nested more than {_MAX_DEPTH} deep")
    kinds = schema.get("type")
    if isinstance(kinds, list):
        schema = {"anyOf": [{**schema, "type": kind} for kind in kinds]}
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
    _check_values(schema, place)
    result = dict(schema)
    if "pattern" in schema:  # the converter loses the quotes around all but one of several alternatives
        result["pattern"] = f"^({schema['pattern'][1:-1]})$"
    for key in _LISTS:
        if key in schema:
            result[key] = [_checked(part, f"{place}/{key}", depth + 1) for part in _of(list, schema, key, place)]
    for key in _MAPS:
        if key in schema:
            parts: Mapping[str, object] = _of(dict, schema, key, place)
            result[key] = {name: _checked(part, f"{place}/{key}/{name}", depth + 1) for name, part in parts.items()}
    for key in _SINGLES:
        if key in schema:
            result[key] = _checked(schema[key], f"{place}/{key}", depth + 1)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = _checked(schema["additionalProperties"], f"{place}/…", depth + 1)
    return result


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
