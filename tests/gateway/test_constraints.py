"""Schemas that an engine keeps to: what is taken, what is refused and in which words; pure."""

from __future__ import annotations

import contextlib
import enum
import json
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferbus_gateway import errors
from inferbus_gateway.hot import constraints, schemas

S: dict[str, Any] = {"type": "string"}
A: dict[str, Any] = {"$ref": "#/$defs/a"}
OBJECT: dict[str, Any] = {"type": "object"}


def refused(schema: Any) -> str:
    with pytest.raises(errors.ParameterError) as caught:
        constraints.check(schema, "response_format")
    assert caught.value.param == "response_format"
    return str(caught.value)


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Wheel(pydantic.BaseModel):
    inches: Annotated[int, pydantic.Field(ge=10, le=30, description="its size")]
    spokes: Annotated[int, pydantic.Field(gt=0, lt=40)] | None = None
    pressure: float = 2.5


class Car(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: Annotated[str, pydantic.Field(min_length=1, max_length=30)]
    colour: Colour = Colour.RED
    kind: Literal["car"] = "car"
    wheels: Annotated[list[Wheel], pydantic.Field(min_length=4, max_length=4)]
    spare: Wheel | None = None
    place: tuple[int, str]
    tags: dict[str, list[str]] = {}
    anything: Any = None
    trailer: Car | None = None


@pytest.mark.parametrize(
    "schema",
    [
        Car.model_json_schema(),
        {"type": "array", "items": Wheel.model_json_schema()},
        {},
        {"type": "object"},
        {"type": ["string", "null"], "enum": ["a", None]},
        {"enum": ["a", 1, 2.5, True, None]},
        {"type": "number", "const": 3},
        {"properties": {"pattern": S, "items": S, "type": S, "required": {"type": "boolean"}}},
        {"type": "object", "properties": {"a": S, "d": {"$ref": "#/properties/a"}}},
        {"type": "array", "prefixItems": [S], "minItems": 1},
        {"$defs": {"a": S}, "allOf": [{"$ref": "#/$defs/a"}], "description": "as pydantic did"},
        {"definitions": {"a": S}, "$ref": "#/definitions/a"},
        {"type": "object", "default": {"oneOf": 1}, "examples": [{"not": 1}], "deprecated": True},
        {"type": "object", "title": "t", "$comment": "c", "readOnly": True, "writeOnly": False},
        {"type": "integer", "exclusiveMinimum": 0, "maximum": constraints.MAX_NUMBER},
        {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
    ],
)
def test_what_sdks_send_is_taken(schema: dict[str, Any]) -> None:
    before = json.loads(json.dumps(schema).replace("allOf", "anyOf"))
    constraints.check(schema, "response_format")
    assert schema == before


def test_what_says_how_to_read_a_schema_reaches_no_engine() -> None:
    said = {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://a/b", **S}
    constraints.check(said, "response_format")
    assert said == S
    named = {"type": "object", "properties": {"$id": S}}
    constraints.check(named, "response_format")
    assert "$id" in named["properties"]


@pytest.mark.parametrize(
    "name",
    [
        *("oneOf", "not", "if", "then", "else", "contains", "minContains", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems"),
        *("uniqueItems", "multipleOf", "pattern", "format", "patternProperties", "minProperties"),
        *(
            "maxProperties",
            "$anchor",
            "$dynamicRef",
            "$recursiveRef",
            "additionalItems",
            "nullable",
        ),
        *("discriminator", "contentEncoding", "x-guidance", "strict", "id", "typo"),
    ],
)
def test_a_keyword_that_is_not_offered_is_refused_by_its_name(name: str) -> None:
    values: tuple[Any, ...] = ({}, True, 1, "x", [S], None)
    for value in values:
        for schema in (
            {"type": "object", name: value},
            {"type": "array", "items": {"anyOf": [{"type": "null"}, {**S, name: value}]}},
        ):
            said = refused(schema)
            assert f"{name} is not supported" in said
            assert constraints.OFFERED in said


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nonsense"}, "type must be"),
        ({"properties": {"additionalProperties": True}}, "must be an object"),
        ({"$defs": {"additionalProperties": False}}, "must be an object"),
        ({"type": []}, "type must be"),
        ({"type": ["string", "string"]}, "type must be"),
        ({"type": None}, "type must be"),
        ({"$ref": "#/$defs/a"}, "$ref must lead"),
        ({"$ref": "https://example.org/schema"}, "$ref must lead"),
        ({"$ref": "#/$defs", "$defs": {"type": S}}, "$ref must lead"),
        ({"$ref": "#/$defs/%61", "$defs": {"a": S, "%61": S}}, "$ref must lead"),
        ({"$ref": 1}, "$ref must lead"),
        ({"$ref": "#"}, "$ref must lead"),
        ({"properties": {"a~b": S, "c": {"$ref": "#/properties/a~0b"}}}, "$ref must lead"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "$ref leads back"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, S]}}}, "$ref leads back"),
        ({"type": "number", "minimum": 1}, "for integers only"),
        ({"type": ["integer", "null"], "minimum": 1}, "for integers only"),
        ({"maximum": 1}, "for integers only"),
        ({"properties": {"a": True}}, "must be an object"),
        ({"$ref": "#/$defs/a", "type": "object", "$defs": {"a": {}}}, "type beside $ref"),
        ({"$ref": "#/$defs/a", "minLength": 1, "$defs": {"a": S}}, "minLength beside $ref"),
        ({"anyOf": [S], "enum": ["a"]}, "enum beside anyOf"),
        ({"anyOf": []}, "anyOf must be"),
        ({"anyOf": S}, "anyOf must be"),
        ({"anyOf": [False]}, "must be an object"),
        ({"allOf": [S, S]}, "allOf is not supported"),
        ({"allOf": [S], "anyOf": [S]}, "allOf is not supported"),
        ({"enum": []}, "enum must be"),
        ({"enum": "a"}, "enum must be"),
        ({"enum": [["a"]]}, "values of enum"),
        ({"const": {"a": 1}}, "values of const"),
        ({"type": "string", "enum": ["a", 1]}, "not of the type"),
        ({"type": "integer", "const": 1.5}, "not of the type"),
        ({"const": 1 << 53}, "const must be a number"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "leave no value"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "leave no value"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "leave no value"),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 1}, "leave no value"),
        ({"type": "integer", "minimum": 1e300}, "minimum must be a number"),
        ({"type": "integer", "maximum": 1e-300}, "decimal places"),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, "exclusiveMinimum must be"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems is more"),
        ({"type": "array", "maxItems": 10**9}, "maxItems must be"),
        ({"type": "array", "minItems": -1}, "minItems must be"),
        ({"type": "array", "minItems": 1.5}, "minItems must be"),
        ({"type": "array", "items": False}, "must be an object"),
        ({"type": "array", "prefixItems": []}, "prefixItems must be"),
        ({"type": "array", "prefixItems": [S, S], "maxItems": 1}, "say its length"),
        ({"type": "array", "prefixItems": [S], "minItems": 2}, "say its length"),
        ({"type": "array", "prefixItems": [S], "items": S}, "stands without items"),
        ({"type": "array", "items": [S]}, "must be an object"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "minLength is more"),
        ({"type": "string", "maxLength": 257}, "maxLength must be"),
        ({"type": "object", "properties": [S]}, "properties must be"),
        ({"type": "object", "properties": {"a": "string"}}, "must be an object"),
        ({"type": "object", "required": "a"}, "required must be"),
        ({"type": "object", "required": ["a"]}, "not among the properties"),
        ({"$defs": {"a": {"properties": {"b": A}, "required": ["b"], **OBJECT}}}, "no finite"),
        ({"$defs": {"a": {"type": "array", "items": A, "minItems": 1}}}, "no finite"),
    ],
)
def test_what_no_engine_keeps_to_is_refused_in_words(schema: Any, words: str) -> None:
    assert words in refused(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [str(number) * 50 for number in range(2000)]},
        {"properties": {str(number): S for number in range(300)}},
        {"anyOf": [S] * 97},
        {"properties": {str(number): {**S, "maxLength": 9} for number in range(49)}},
        {"items": {"items": {"items": {"items": {"items": {"items": {"items": {}}}}}}}},
    ],
)
def test_a_schema_is_only_so_large(schema: Any) -> None:
    nested: Any = schema
    for _ in range(6):
        nested = {"type": "array", "items": nested}
    refused(nested)


def test_all_tools_together_are_only_so_large() -> None:
    properties = {str(number): {**S, "maxLength": 9} for number in range(40)}

    def tools(n_tools: int) -> list[Any]:
        function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
        return [{"type": "function", "function": function}] * n_tools

    assert len(schemas.tools(tools(5))) == 5
    with pytest.raises(errors.ParameterError, match="all tools"):
        schemas.tools(tools(6))


KEYWORDS = (*constraints._KNOWN, "$defs", "oneOf", "$id", "allOf", "a")
SCHEMAS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from("a#"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4)
    ),
    max_leaves=16,
)


@settings(max_examples=300, deadline=None)
@given(schema=st.dictionaries(st.sampled_from(KEYWORDS), SCHEMAS, max_size=5))
def test_no_schema_raises_anything_but_our_error(schema: dict[str, Any]) -> None:
    with contextlib.suppress(errors.ParameterError):
        constraints.check(msgspec.json.decode(msgspec.json.encode(schema)), "response_format")
