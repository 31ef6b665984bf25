"""JSON schemas: what can be enforced passes, what would be ignored is refused with its place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.json_schema import checked_schema
from edge_sdk.errors import GrammarError


def test_a_schema_is_returned_as_the_converter_can_enforce_it() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Person",
        "type": "object",
        "properties": {
            "minimum": {"type": "string", "description": "a name, not a keyword"},
            "age": {"type": ["integer", "null"]},
            "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "pet": {"$ref": "#/$defs/pet"},
        },
        "required": ["age"],
        "additionalProperties": False,
        "$defs": {"pet": {"anyOf": [{"type": "null"}, {"const": "cat"}]}},
    }
    checked = checked_schema(json.dumps(schema))
    assert checked["properties"]["age"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert checked["properties"]["zip"]["pattern"] == "^([0-9]{5}(-[0-9]{4})?)$"
    checked["properties"]["zip"] = schema["properties"]["zip"]  # type: ignore[index]
    checked["properties"]["age"] = schema["properties"]["age"]  # type: ignore[index]
    assert checked.pop("$defs") == {"definition0": schema.pop("$defs")["pet"]}  # type: ignore[attr-defined]
    checked["properties"]["pet"] = schema["properties"]["pet"]  # type: ignore[index]
    assert checked == schema


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ("{", "is not JSON"),
        ("[" * 5_000, "is not JSON"),
        ("[]", r"\[\] at # and not an object"),
        ("true", "true at #"),
        ('{"type": "integer", "minimum": 3}', "'minimum' at #, which cannot be enforced"),
        ('{"properties": {"a": {"uniqueItems": true}}}', "'uniqueItems' at #/properties/a"),
        ('{"items": {"not": {}}}', "'not' at #/items"),
        ('{"anyOf": [{"type": "string"}], "maxLength": 3}', "'anyOf' beside other demands"),
        ('{"$ref": "#/$defs/a", "type": "string"}', "beside other demands"),
        ('{"$ref": "https://example.org/schema.json"}', "nothing is fetched"),
        ('{"$ref": "other.json#/a"}', "nothing is fetched"),
        ('{"type": "string", "pattern": "abc"}', "'pattern' .* cannot be enforced"),
        ('{"type": "string", "pattern": "^.*$"}', "'pattern' .* cannot be enforced"),  # would match a quote
        ('{"type": "string", "pattern": "^[^a]$"}', "'pattern' .* cannot be enforced"),
        ('{"type": "string", "pattern": "^[!-z]$"}', "'pattern' .* cannot be enforced"),
        ('{"type": "string", "pattern": "^\\\\d$"}', "'pattern' .* cannot be enforced"),
        ('{"type": "string", "pattern": "^(?:a)$"}', "'pattern' .* cannot be enforced"),
        ('{"type": "string", "pattern": "^(a$"}', "no regular expression"),
        ('{"type": "string", "pattern": 3}', "'pattern' .* cannot be enforced"),
        ('{"type": "string", "maxLength": 100000}', "not 0 to 400"),
        ('{"type": "string", "maxLength": true}', "is True"),
        ('{"type": "array", "items": {}, "minItems": 3, "maxItems": 2}', "more than 'maxItems'"),
        ('{"type": "object", "properties": {"a": {}}, "required": ["b"]}', "requires 'b' at #"),
        ('{"required": 3}', "'required' .* is 3"),
        ('{"enum": []}', r"'enum' .* is \[\]"),
        ('{"properties": []}', "'properties'"),
        ('{"anyOf": {}}', "'anyOf'"),
        ('{"type": "text"}', "'type' .* is \"text\""),
        ('{"type": ["string", "text"]}', "'type' .* is \"text\""),
        ('{"type": {"type": null, "items": null, "properties": null}}', "'type' .* is {"),
        (json.dumps({"description": "x" * 70_000}), "more than 65536"),
        ('{"items": ' * 40 + "{}" + "}" * 40, "more than 32 deep"),
    ],
)
def test_schemas_that_cannot_be_honoured_are_refused(schema: str, match: str) -> None:
    with pytest.raises(GrammarError, match=match):
        checked_schema(schema)


KEYWORDS = st.sampled_from("type items properties anyOf enum required $ref maxItems pattern".split())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda part: st.lists(part, max_size=3) | st.dictionaries(KEYWORDS, part, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_passes_or_is_a_grammar_error(schema: object) -> None:
    with contextlib.suppress(GrammarError):
        assert isinstance(checked_schema(json.dumps(schema)), dict)


def test_each_type_of_a_list_keeps_what_is_about_its_values() -> None:
    schema = {
        "type": ["object", "null", "object", "string"],
        "description": "a remark",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "maxLength": 3,
    }
    assert checked_schema(json.dumps(schema)) == {
        "description": "a remark",
        "anyOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"type": "null"},
            {"type": "string", "maxLength": 3},
        ],
    }


def test_references_name_definitions() -> None:
    schema = {"type": "object", "properties": {"$ref": {"$ref": "#/definitions/a_b"}}, "definitions": {"a_b": {}}}
    assert checked_schema(json.dumps(schema))["properties"]["$ref"] == {"$ref": "#/definitions/definition-0"}
    for wrong in ("#/properties/a", "#/$defs/missing", "#/$defs"):
        with pytest.raises(GrammarError, match="names no definition"):
            checked_schema(json.dumps({"$ref": wrong, "$defs": {"a": {"type": "null"}}}))


def test_properties_may_be_called_like_keywords_and_values_may_look_like_references() -> None:
    schema = {
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/a"} for name in ("enum", "const", "required", "default")},
        "$defs": {"a": {"const": {"$ref": "no reference"}}},
    }
    checked = checked_schema(json.dumps(schema))
    assert set(map(str, checked["properties"].values())) == {"{'$ref': '#/$defs/definition0'}"}
    assert checked["$defs"] == {"definition0": {"const": {"$ref": "no reference"}}}


@pytest.mark.parametrize("levels", [8, 14])
def test_schemas_that_unfold_without_end_are_quick_or_refused(levels: int) -> None:
    pytest.importorskip("llama_cpp")
    from edge_sdk.engines.llama_sampler import json_schema_to_gbnf

    nested: dict[str, object] = {"type": "string"}
    many: dict[str, object] = {"type": "string"}
    for _ in range(levels):
        nested = {"type": ["object", "null", "array"], "properties": {"a": nested}, "required": ["a"]}
        many = {"anyOf": [many, many, many]}
    definitions: dict[str, object] = {
        f"d {level}": {"anyOf": [{"$ref": f"#/$defs/d {level + 1}"}] * 2} for level in range(levels)
    }
    definitions[f"d {levels}"] = {"type": "string"}
    refs = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d 0"}}, "$defs": definitions}
    assert len(json_schema_to_gbnf(json.dumps(nested))) < 1000 * levels
    assert len(json_schema_to_gbnf(json.dumps(refs))) < 1000 * levels
    if levels == 8:
        with pytest.raises(GrammarError, match=r"2000 parts|characters"):
            checked_schema(json.dumps(many))
