"""Checks JSON schemas before they are made grammars.

A schema is a promise to whoever reads the answer, so a demand that cannot be enforced while the answer is written
is refused, not ignored. Follows JSON Schema 2020-12. Knows nothing of grammars.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..errors import GrammarError
from .json_exclusive import UNTYPED, Exclusive
from .json_pattern import check_pattern, convertible

# What the conversion to a grammar enforces, what says nothing about the value, where schemas stand.
_ENFORCED = frozenset(
    "$ref additionalProperties allOf anyOf const enum items maxItems maxLength minItems minLength oneOf pattern"
    " prefixItems properties required type".split()
)
_REMARKS = frozenset(
    "$comment $defs $id $schema default definitions deprecated description discriminator examples format readOnly"
    " title writeOnly".split()
)
_ALONE = ("$ref", "anyOf", "oneOf", "allOf")  # what stands beside these is not enforced
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_DEFINITIONS = ("$defs", "definitions")
_MAPS, _SINGLES = (*_DEFINITIONS, "properties"), ("items",)
_MAX_SCHEMA, _MAX_DEPTH, _MAX_COUNT, _MAX_PARTS = 64 << 10, 32, 400, 2000
_MAX_NESTING = 200  # of values too, which may be nested where schemas may not
_OF_KIND = {  # what says nothing about values of other types
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"pattern", "minLength", "maxLength", "format"},
}
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_ANY = tuple(kind for kind in _TYPES if kind != "integer")  # which is a number


def checked_schema(text: str) -> dict[str, Any]:
    """A JSON Schema document, if all that it demands can be enforced while a text is generated.

    Raises `GrammarError` with the place for what is no schema, for keywords that would be ignored (`minimum`,
    `uniqueItems`, ...) and for sizes that llama.cpp cannot take. What the converter would lose is put otherwise: a
    list of types, or none, becomes `anyOf`, and definitions get names by which each is made into a rule once.

    >>> checked_schema('{"type": "integer", "minimum": 3}')
    Traceback (most recent call last):
    ...
    edge_sdk.errors.GrammarError: the JSON schema demands 'minimum' at #, which cannot be enforced; remove it and...
    """
    if not isinstance(text, str):
        raise GrammarError(
            f"the JSON schema is a {type(text).__name__} and no text", hint="give the schema as text, by json.dumps"
        )
    return _Naming(_Checking().checked(_read(text), "#", 0)).named()


def _read(text: str) -> object:
    if len(text) > _MAX_SCHEMA:
        raise GrammarError(f"the JSON schema has {len(text)} characters, more than {_MAX_SCHEMA}")
    try:
        content: object = json.loads(text, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the JSON schema is not JSON: {error}") from error
    level, depth = [content], 0
    while level := [part for each in level for part in _inside(each)]:
        if (depth := depth + 1) > _MAX_NESTING:
            raise GrammarError(f"the JSON schema is nested more than {_MAX_NESTING} deep")
    return content


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number that JSON can hold")
    return number


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


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
        _check_keywords(schema, place)
        _check_values(schema, place)
        result = _of_its_types(schema, place)
        for key in _LISTS:
            if key in result:
                parts: list[object] = _of(list, result, key, place)
                result[key] = [self.checked(part, f"{place}/{key}", depth + 1) for part in parts]
        for key in _MAPS:
            if key in result:
                named: dict[str, object] = _of(dict, result, key, place, empty=True)
                result[key] = {
                    name: self.checked(part, f"{place}/{key}/{name}", depth + 1) for name, part in named.items()
                }
        for key in _SINGLES:
            if key in result:
                result[key] = self.checked(result[key], f"{place}/{key}", depth + 1)
        if isinstance(result.get("additionalProperties"), dict):
            result["additionalProperties"] = self.checked(result["additionalProperties"], f"{place}/…", depth + 1)
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
    for keys in (*({key} for key in _ALONE), {"enum", "const"}):
        beside = {"type"} if "enum" in keys or ("allOf" in keys and schema.get("type") == "object") else set()
        if demands & keys and demands - keys - beside:
            raise GrammarError(
                f"the JSON schema has {min(demands & keys)!r} beside other demands at {place}, which cannot be"
                " enforced",
                hint=f"remove {min(demands - keys - beside)!r}",
            )


def _of_its_types(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A schema of one type, or `anyOf` with one for each, with what says something about the values of that type.

    Where no type is named, it is the one that the demands are about; without demands any.
    """
    if "enum" in schema or "const" in schema:
        return _of_values(schema, place)
    if any(key in schema for key in _ALONE):
        return dict(schema)
    demands = {key: value for key, value in schema.items() if key in _ENFORCED or key == "format"}
    remarks = {key: value for key, value in schema.items() if key not in demands}
    named = _types(schema, place)
    about = [kind for kind, keys in _OF_KIND.items() if demands.keys() & keys - {"format"}]
    parts = []
    if about and not named:
        remarks[UNTYPED] = True
    for kind in named or about or _ANY:
        foreign = {"type"}.union(*(keys for other, keys in _OF_KIND.items() if other != kind))
        parts.append({"type": kind} | {key: value for key, value in demands.items() if key not in foreign})
    if len(parts) > 1:
        return remarks | {"anyOf": parts}
    return remarks | _FORMS.get(parts[0]["type"], _as_it_is)(parts[0], place)


def _types(schema: Mapping[str, Any], place: str) -> list[str]:
    """The types that a schema names."""
    if "type" not in schema:
        return []
    found = schema["type"]
    for kind in found if isinstance(found, list) and found else [found]:
        if kind not in _TYPES:
            raise GrammarError(
                f"'type' of the JSON schema at {place} is {json.dumps(kind)[:40]}",
                hint=f"types are {', '.join(_TYPES)}",
            )
    return list(dict.fromkeys(found)) if isinstance(found, list) else [found]


def _of_values(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A schema that names its values, without those of other types."""
    key = "const" if "const" in schema else "enum"
    kinds = _types(schema, place)
    values = [schema["const"]] if key == "const" else _of(list, schema, "enum", place)
    if key == "const" and "enum" in schema:
        others = map(json.dumps, _of(list, schema, "enum", place))  # as text, for True is 1
        if json.dumps(schema["const"]) not in others:
            raise GrammarError(f"'const' of the JSON schema at {place} is not in its 'enum'")
    fitting = [value for value in values if not kinds or not _kinds_of(value).isdisjoint(kinds)]
    if not fitting:
        raise GrammarError(f"no value of {key!r} of the JSON schema at {place} is of type {' or '.join(kinds)}")
    remarks = {key: value for key, value in schema.items() if key not in _ENFORCED}
    return remarks | {key: fitting[0] if key == "const" else fitting}


def _kinds_of(value: object) -> set[str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"integer", "number"} if isinstance(value, int) or value.is_integer() else {"number"}
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean"}
    return {kinds.get(type(value), "null")}


def _object_form(schema: dict[str, Any], place: str) -> dict[str, Any]:
    """An object; a name that is none of its properties' cannot be told from theirs by the converter."""
    properties = schema.get("properties", {})
    if schema.get("additionalProperties") in (True, {}):
        demanded = ("type", "properties", "required") if properties else ("type",)
        schema = {key: schema[key] for key in demanded if key in schema}  # nobody has to give more
    elif properties and schema.get("additionalProperties"):
        raise GrammarError(
            f"'additionalProperties' beside 'properties' of the JSON schema at {place} cannot be enforced",
            hint="put the additional ones into a property of their own",
        )
    if "*" in properties:  # what the converter calls additional properties
        raise GrammarError(
            f"the JSON schema has a property '*' at {place}, which cannot be enforced", hint="rename it"
        )
    optional = len(properties.keys() - set(schema.get("required", [])))
    if optional > _MAX_COUNT:
        raise GrammarError(
            f"the JSON schema has {optional} optional properties at {place}, more than {_MAX_COUNT}",
            hint="require some of them",
        )
    return schema


def _array_form(schema: dict[str, Any], place: str) -> dict[str, Any]:
    """An array; one with `prefixItems` has just those."""
    if "prefixItems" in schema:
        count = len(_of(list, schema, "prefixItems", place))
        if "items" in schema or not schema.get("minItems", 0) <= count <= schema.get("maxItems", count):
            raise GrammarError(
                f"'prefixItems' of the JSON schema at {place} cannot be enforced beside its other demands",
                hint=f"there will be {count} items: leave out 'items', 'minItems' and 'maxItems'",
            )
    elif "minItems" in schema or "maxItems" in schema:
        return {"items": {}} | schema
    return schema


def _string_form(schema: dict[str, Any], place: str) -> dict[str, Any]:
    """A string; a format, which is no demand, gives way to those."""
    lengths = schema.keys() & {"minLength", "maxLength"}
    if "pattern" in schema and lengths:
        raise GrammarError(
            f"the JSON schema has 'pattern' beside {min(lengths)!r} at {place}, which cannot be enforced",
            hint="say in the pattern how long it is: ^[a-z]{1,8}$",
        )
    if "pattern" in schema:
        schema["pattern"] = convertible(schema["pattern"])
    return {key: value for key, value in schema.items() if key != "format" or not lengths}


def _as_it_is(schema: dict[str, Any], place: str) -> dict[str, Any]:
    return schema


_FORMS = {"object": _object_form, "array": _array_form, "string": _string_form}


def _of(kind: type, schema: Mapping[str, Any], key: str, place: str, *, empty: bool = False) -> Any:
    value = schema[key]
    if not isinstance(value, kind) or not (value or empty):
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
    if "format" in schema:
        _of(str, schema, "format", place, empty=True)
    if "pattern" in schema:
        check_pattern(schema["pattern"], place)
    if "$ref" in schema and not str(schema["$ref"]).startswith("#/"):
        raise GrammarError(f"'$ref' of the JSON schema at {place} must begin with #/", hint="nothing is fetched")
    if not isinstance(schema.get("additionalProperties", False), bool | dict):
        _of(dict, schema, "additionalProperties", place)
    required = _of(list, schema, "required", place, empty=True) if "required" in schema else []
    properties = _of(dict, schema, "properties", place, empty=True) if "properties" in schema else {}
    for name in required:
        if not isinstance(name, str) or name not in properties:
            raise GrammarError(
                f"the JSON schema requires {str(name)[:40]!r} at {place}, which is no property",
                hint="name it among 'properties'",
            )


class _Naming:
    """Gives the definitions that are referred to names of their own, and makes one schema of the parts of `allOf`.

    The converter takes the name of a definition for that of a rule, and of `allOf` it sees properties alone.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema, self._parts = schema, 0
        self._definitions: dict[str, dict[str, Any]] = {
            f"#/{kind}/{name}": part for kind in _DEFINITIONS for name, part in schema.get(kind, {}).items()
        }
        self._names: dict[str, str] = {}
        self._exclusive = Exclusive(self._definition)

    def named(self) -> dict[str, Any]:
        """The whole schema; what nothing refers to is left out of its `$defs`."""
        result = self._visited(self._schema, "#", 0)
        made: dict[str, Any] = {}
        while len(made) < len(self._names):
            place, name = list(self._names.items())[len(made)]
            made[name] = self._visited(self._definitions[place], place, 0)
        return result | ({"$defs": made} if made else {})

    def _visited(self, schema: dict[str, Any], place: str, depth: int) -> dict[str, Any]:
        self._parts += 1
        if self._parts > 2 * _MAX_PARTS or depth > 2 * _MAX_DEPTH:  # what `allOf` takes up counts at each place
            raise GrammarError(f"the JSON schema becomes too large at {place}", hint="use 'allOf' less")
        made: dict[str, Any] = {}
        if "allOf" in schema:
            schema = self._merged(schema, place)
        if "oneOf" in schema:
            self._exclusive.check(schema, place)
        for key, each in schema.items():
            if key in _DEFINITIONS or key == UNTYPED:
                continue
            if key == "properties":
                made[key] = {
                    name: self._visited(part, f"{place}/{key}/{name}", depth + 1) for name, part in each.items()
                }
            elif key in _LISTS:
                made[key] = [self._visited(part, f"{place}/{key}", depth + 1) for part in each]
            elif key in _SINGLES or (key == "additionalProperties" and isinstance(each, dict)):
                made[key] = self._visited(each, f"{place}/{key}", depth + 1)
            else:
                made[key] = each
        if "$ref" in schema:
            self._definition(schema)
            name = self._names.setdefault(schema["$ref"], f"definition{len(self._names)}")
            made["$ref"] = f"#/$defs/{name}"
        return made

    def _definition(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        if schema["$ref"] not in self._definitions:
            raise GrammarError(
                f"'$ref' of the JSON schema names no definition: {schema['$ref']!r}",
                hint="references are #/$defs/NAME, with $defs at the top",
            )
        return self._definitions[schema["$ref"]]

    def _merged(self, schema: dict[str, Any], place: str) -> dict[str, Any]:
        """The parts of `allOf` as one object with the properties of all; a single part may be anything."""
        remarks = {key: value for key, value in schema.items() if key not in _ENFORCED}
        if len(schema["allOf"]) == 1 and "type" not in schema:
            return remarks | {"anyOf": schema["allOf"]}
        properties: dict[str, Any] = {}
        required: list[str] = []
        for part in self._flat(schema["allOf"], place):
            names = part.get("properties", {})
            if (
                part.get("type") != "object"
                or "additionalProperties" in part
                or not properties.keys().isdisjoint(names)
            ):
                raise GrammarError(
                    f"the parts of 'allOf' of the JSON schema at {place} cannot be made one",
                    hint="make all parts objects with properties of their own, without 'additionalProperties'",
                )
            properties |= names
            required += part.get("required", [])
        return remarks | _object_form({"type": "object", "properties": properties, "required": required}, place)

    def _flat(self, parts: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
        """The parts of `allOf`, and what they refer to in their stead."""
        waiting, found, looked = list(reversed(parts)), list[dict[str, Any]](), 0
        while waiting:
            part = waiting.pop()
            if (looked := looked + 1) > _MAX_COUNT:
                raise GrammarError(f"'allOf' of the JSON schema at {place} has no end", hint="write it out")
            if "$ref" in part:
                waiting.append(self._definition(part))
            elif "allOf" in part:
                waiting.extend(reversed(part["allOf"]))
            else:
                found.append(part)
        return found
