"""Calls that a request demands: the schema, the reading of what the grammar leaves; pure."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_schemas import messages as m
from inferbus_worker.engines import calls

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"$ref": "#/$defs/a"}}}
    for name in ("one", "two")
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    name=st.text(min_size=1),
    arguments=st.dictionaries(st.text(), JSON),
    cuts=st.lists(st.integers(0, 400)),
    indent=st.sampled_from([None, 2]),
    after=st.sampled_from(["", "\n", " \n\n"]),
)
def test_the_deltas_are_the_call_however_it_is_cut(
    name: str, arguments: dict[str, Any], cuts: list[int], indent: int | None, after: str
) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, indent=indent) + after
    reader = calls.CallReader("call_1")
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    assert deltas[0]["id"] == "call_1"
    assert deltas[0]["function"] == {"name": name, "arguments": ""}
    assert all(set(delta) == {"index", "function"} for delta in deltas[1:])
    assert all(set(delta["function"]) == {"arguments"} for delta in deltas[1:])
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == arguments


@pytest.mark.parametrize("arguments", ["null", "7", '"a}"', "[]"])
def test_arguments_that_are_no_object_end_with_the_call(arguments: str) -> None:
    reader = calls.CallReader("call_1")
    reader.feed(f'{{"name": "one", "arguments": {arguments}}}')
    assert reader.feed('{"more": 1}') == []


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, []),
        ("none", []),
        ("auto", []),
        ("required", ["one", "two"]),
        ({"type": "function", "function": {"name": "two"}}, ["two"]),
    ],
)
def test_what_a_request_demands(choice: Any, names: list[str]) -> None:
    said = m.Generation(tools=json.dumps(TOOLS))
    if choice is not None:
        said.tool_choice = json.dumps(choice)
    assert [one["name"] for one in calls.demanded(said)] == names
    assert calls.demanded(m.Generation(tool_choice='"required"')) == []
    free = choice in {None, "auto"} if not isinstance(choice, dict) else False
    assert calls.offered(said) == (["one", "two"] if free else [])
    assert calls.offered(m.Generation(tools=said.tools, json_schema="{}")) == []
    assert calls.offered(m.Generation()) == []


def test_references_of_a_function_hold_in_the_schema_of_its_call() -> None:
    made = calls.schema([tool["function"] for tool in TOOLS])
    assert [one["properties"]["name"]["const"] for one in made["anyOf"]] == ["one", "two"]
    assert made["$defs"]["f1"] == {"type": "object", "$ref": "#/$defs/f1/$defs/a"}
    alone = calls.schema([{"name": "three"}])
    assert alone["properties"]["arguments"] == {"$ref": "#/$defs/f0"}
    # A function that names no parameters takes none.
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    assert alone["$defs"] == {"f0": nothing}
