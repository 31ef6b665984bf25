"""JSON schemas: what can be enforced passes, what would be ignored is refused with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engines.gbnf import check_grammar
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
        ('{"const": ' + "[" * 300 + "]" * 300 + "}", "more than 200 deep"),
        ('{"const": NaN}', "is not JSON: NaN"),
        ('{"enum": [1e999]}', "is not JSON: 1e999"),
        ('{"type": "object", "required": null}', "'required' .* is null"),
        ('{"properties": {"5": {}}, "required": [5]}', "requires '5' at #"),
        ('{"additionalProperties": 1}', "'additionalProperties' .* is 1"),
        ('{"properties": {"a": {}}, "additionalProperties": {"type": "null"}}', "into a property of their own"),
        ('{"properties": {"*": {}}}', r"a property '\*' at #"),
        ('{"type": "string", "enum": [1, true]}', "no value of 'enum' .* of type string"),
        ('{"type": "integer", "const": "5"}', "no value of 'const' .* of type integer"),
        ('{"type": ["string", "null"], "enum": [5, {}]}', "of type string or null"),
        ('{"const": 1, "enum": [true]}', "not in its 'enum'"),
        ('{"enum": ["abcdef"], "maxLength": 2}', "'enum' beside other demands .* remove 'maxLength'"),
        ('{"const": "a", "anyOf": [{}]}', "beside other demands"),
        ('{"type": "string", "pattern": "^a$", "maxLength": 2}', "'pattern' beside 'maxLength'"),
        ('{"type": "string", "pattern": "^a+?$"}', "'pattern' .* cannot be enforced"),
        ('{"type": "string", "format": 5}', "'format' .* is 5"),
        ('{"items": {"type": "null"}, "prefixItems": [{}]}', "'prefixItems' .* there will be 1 items"),
        ('{"prefixItems": [{}], "minItems": 2}', "'prefixItems'"),
        ('{"type": []}', r"'type' .* is \[\]"),
        ('{"allOf": [{"type": "string"}, {"type": "null"}]}', "'allOf' .* at # cannot be made one"),
        ('{"allOf": [{"properties": {"a": {}}}, {"properties": {"a": {}}}]}', "properties of their own"),
        ('{"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}}', "has no end"),
        (json.dumps({"properties": {str(number): {} for number in range(401)}}), "401 optional properties"),
    ],
)
def test_schemas_that_cannot_be_honoured_are_refused(schema: str, match: str) -> None:
    with pytest.raises(GrammarError, match=match):
        checked_schema(schema)


KEYWORDS = st.sampled_from(
    "type items properties anyOf allOf enum const required $ref $defs maxItems minLength pattern format prefixItems"
    " additionalProperties title *".split()
)
VALUES = st.sampled_from([*"object array string integer null ^a$ a #/$defs/type date".split(), ""])


@settings(deadline=None)  # the converter is imported by the first that passes
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-1, 500) | st.floats() | VALUES | st.text(max_size=5),
        lambda part: st.lists(part, max_size=3) | st.dictionaries(KEYWORDS, part, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_passes_or_is_a_grammar_error(schema: object) -> None:
    """And the converter takes what passes."""
    try:
        assert isinstance(checked_schema(json.dumps(schema)), dict)
    except GrammarError:
        return
    pytest.importorskip("llama_cpp")
    from edge_sdk.engines.llama_sampler import json_schema_to_gbnf

    json_schema_to_gbnf(json.dumps(schema))


ANYTHING = {"anyOf": [{"type": kind} for kind in ("array", "boolean", "null", "number", "object", "string")]}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "object", "properties": {}, "required": [], "additionalProperties": False, "$defs": {}}, None),
        ({"title": "A"}, {"title": "A"} | ANYTHING),
        ({"type": "array", "items": {}}, {"type": "array", "items": ANYTHING}),
        ({"minItems": 1}, {"type": "array", "items": ANYTHING, "minItems": 1}),
        ({"required": []}, {"type": "object", "required": []}),
        ({"additionalProperties": True}, {"type": "object"}),
        (
            {"properties": {"a": {"const": 1}}, "additionalProperties": {}},
            {"type": "object", "properties": {"a": {"const": 1}}},
        ),
        (
            {"oneOf": [{"const": 1}, {"const": 2}], "discriminator": {"propertyName": "kind"}},
            {"oneOf": [{"const": 1}, {"const": 2}], "discriminator": {"propertyName": "kind"}},
        ),
        ({"type": "string", "enum": [1, "a"]}, {"enum": ["a"]}),
        ({"type": ["integer", "null"], "enum": [1.0, 1.5, True, None]}, {"enum": [1.0, None]}),
        ({"type": "string", "enum": ["a"], "const": "a"}, {"const": "a"}),
        (
            {"type": "string", "minLength": 1, "format": "date", "items": {}},
            {"type": "string", "minLength": 1},
        ),
        ({"allOf": [{"type": "null"}], "default": None}, {"anyOf": [{"type": "null"}], "default": None}),
    ],
)
def test_a_schema_is_put_so_that_the_converter_loses_nothing(
    schema: dict[str, object], wanted: dict[str, object] | None
) -> None:
    expected = wanted or {key: value for key, value in schema.items() if key != "$defs"}
    assert checked_schema(json.dumps(schema)) == expected


def test_parts_that_all_hold_are_one_object() -> None:
    schema = {
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"$ref": "#/$defs/b"}}, "required": ["y"]}],
        "$defs": {"a": {"allOf": [{"properties": {"x": {"const": 1}}}]}, "b": {"const": 2}, "unused": {}},
    }
    assert checked_schema(json.dumps(schema)) == {
        "type": "object",
        "properties": {"x": {"const": 1}, "y": {"$ref": "#/$defs/definition0"}},
        "required": ["y"],
        "$defs": {"definition0": {"const": 2}},
    }


def kind(name: str, **more: object) -> dict[str, object]:
    return {"type": "object", "properties": {"kind": {"const": name}, **more}, "required": ["kind"]}


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "string"}, {"type": "number"}, {"type": "null"}],
        [{"enum": [1, "a"]}, {"const": True}, {"enum": [2, "b"]}],
        [{"enum": ["a", None]}, {"type": "integer"}],
        [kind("a", x={}), kind("b", x={}), {"$ref": "#/$defs/c"}],
        [{"type": "object", "properties": {name: {}}, "required": [name]} for name in "xy"],
        [{"anyOf": [kind("a"), {"type": "null"}]}, kind("b")],
        [kind("a"), {"type": "object", "properties": {"x": {}}, "additionalProperties": False}],
    ],
)
def test_parts_of_which_one_holds_exclude_each_other(parts: list[object]) -> None:
    schema = {"oneOf": parts, "discriminator": {"propertyName": "kind"}, "$defs": {"c": kind("c")}}
    assert len(checked_schema(json.dumps(schema))["oneOf"]) == len(parts)


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"type": "string"}, {"const": "a"}],
        [{"const": 1}, {"enum": [1.0, 2]}],
        [kind("a"), {"type": "object", "properties": {"kind": {"type": "string"}}}],
        [kind("a"), {"type": "object", "properties": {"x": {}}, "additionalProperties": True}],
        [{"type": "object", "properties": {"kind": {"const": name}}} for name in "ab"],
        [{"type": "string"}, {"minItems": 1}],  # which says nothing of strings
        [{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/c"}],
        [{"const": number} for number in range(100)],
    ],
)
def test_parts_that_may_hold_at_once_are_refused_where_one_shall(parts: list[object]) -> None:
    with pytest.raises(GrammarError, match="at # may hold at once; use 'anyOf'"):
        checked_schema(json.dumps({"oneOf": parts, "$defs": {"c": kind("c")}}))


def test_a_schema_that_is_no_text_is_refused() -> None:
    with pytest.raises(GrammarError, match="is a dict and no text; give the schema as text"):
        checked_schema({"type": "object"})  # type: ignore[arg-type]


def grammar(schema: object) -> dict[str, str]:
    """Its rules by their names; llama.cpp would take it."""
    pytest.importorskip("llama_cpp")
    from edge_sdk.engines.llama_sampler import json_schema_to_gbnf

    text = json_schema_to_gbnf(json.dumps(schema))
    check_grammar(text)
    return dict(line.split(" ::= ", 1) for line in text.splitlines())


def test_a_reference_at_the_top_may_refer_on_and_to_itself() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}}}
    rules = grammar({"$ref": "#/$defs/N", "$defs": {"N": node}})
    assert rules["answer"] == "definition0"
    assert rules["definition0-next"] == "definition0-next-0 | null"
    assert rules["definition0-next-0"] == "definition0"
    chain = {f"D{at}": {"items": {"$ref": f"#/$defs/D{at + 1}"}} for at in range(900)}
    assert grammar({"$ref": "#/$defs/D0", "$defs": {**chain, "D900": {"type": "null"}}})["definition900"] == "null"


def test_no_name_of_a_property_is_taken_for_a_rule() -> None:
    names = ["", "root", "answer", "definition0", "$ref", "space", "string", "a-b"]
    properties: dict[str, object] = {name: {"const": name} for name in names}
    properties["definition"] = {"anyOf": [{"const": "no"}, {"const": "no definition"}]}
    properties["x"] = {"$ref": "#/$defs/x"}
    schema = {"properties": properties, "required": list(properties), "$defs": {"x": {"const": {"$ref": "y"}}}}
    rules = grammar(schema)
    assert rules["root"] == "answer"
    assert rules["definition0"] == r'"{\"$ref\": \"y\"}"'
    for name in names:
        assert f'"\\"{name}\\""' in rules.values()


def test_escaped_characters_are_repeated_alone() -> None:
    rules = grammar({"type": "string", "pattern": r"^a\.\/\^b\+*$"})
    assert rules["answer"] == r'"\"" ("a" [.] [/] [\x5E] "b" [+]*) "\"" space'


def test_a_text_of_a_certain_length_has_no_halves_of_characters() -> None:
    rules = grammar({"type": "string", "minLength": 2})
    assert "[dD] [0-7] [0-9a-fA-F] [0-9a-fA-F]" in rules["char"]


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
    assert checked_schema(json.dumps(schema))["properties"]["$ref"] == {"$ref": "#/$defs/definition0"}
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
