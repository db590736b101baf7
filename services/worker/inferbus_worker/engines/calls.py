"""Calls of tools that a request demands, by a grammar; pure.

In: tools and `tool_choice` as the gateway passed them, then the answer's text as it grows. Out: a
JSON schema that an answer must follow, and the call in the deltas of the OpenAI API. llama.cpp's
own way lets a model talk before it calls, which a small one does for ever; this one leaves it no
other word, whatever its template knows. Calls that are the model's own choice: `call_text`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from inferbus_schemas import messages as m

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_ANY = {"type": "object"}
_NONE = {"type": "object", "properties": {}, "additionalProperties": False}
"""What a function takes that names no parameters, as OpenAI has it."""


def demanded(said: m.Generation) -> list[dict[str, Any]]:
    """Return the functions of which a request demands one; empty where it demands none."""
    choice = _choice(said)
    if choice in ("none", "auto"):
        return []
    functions = _functions(said)
    if isinstance(choice, dict):
        wanted = choice["function"]["name"]
        functions = [one for one in functions if one["name"] == wanted]
    return functions


def offered(said: m.Generation) -> list[str]:
    """Return the names of the functions that a model may call or not; empty where it may none.

    With a schema for its answer there is nothing that it may say but that.
    """
    if _choice(said) != "auto" or said.json_schema:
        return []
    return [one["name"] for one in _functions(said)]


def _choice(said: m.Generation) -> Any:
    if not said.tools:
        return "none"
    return (msgspec.json.decode(said.tool_choice) if said.tool_choice else None) or "auto"


def _functions(said: m.Generation) -> list[dict[str, Any]]:
    return [tool["function"] for tool in msgspec.json.decode(said.tools)]


def schema(functions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a call of one of some functions."""
    calls = []
    parts = {}
    for number, one in enumerate(functions):
        parts[f"f{number}"] = _moved(_ANY | (one.get("parameters") or _NONE), f"#/$defs/f{number}")
        properties = {
            "name": {"const": one["name"]},
            "arguments": {"$ref": f"#/$defs/f{number}"},
        }
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    return (calls[0] if len(calls) == 1 else {"anyOf": calls}) | {"$defs": parts}


def _moved(node: Any, to: str) -> Any:
    """Return a schema whose references to its own parts hold where it stands now."""
    if isinstance(node, list):
        return [_moved(one, to) for one in node]
    if not isinstance(node, dict):
        return node
    return {
        key: f"{to}{value[1:]}" if key == "$ref" and isinstance(value, str) else _moved(value, to)
        for key, value in node.items()
    }


class CallReader:
    """The one call of an answer, from its text.

    Invariants: the first delta has id, type and name, later ones only arguments; all arguments
    together are one JSON object as the model wrote it, without what stands around it; nothing is
    held back but the head of the text.
    """

    def __init__(self, call_id: str) -> None:
        self._id = call_id
        self._head = ""
        self._begun = False
        self._depth = 0
        self._in_string = self._escaped = self._over = False

    def feed(self, text: str) -> list[dict[str, Any]]:
        """Take a piece of text; return the deltas that it brought."""
        if self._begun:
            return self._arguments(text)
        self._head += text
        found = _HEAD.match(self._head)
        if found is None:
            return []
        self._begun = True
        name = msgspec.json.decode(found[1])
        first = {"index": 0, "id": self._id, "type": "function"}
        delta = {**first, "function": {"name": name, "arguments": ""}}
        rest = self._head[found.end() :]
        return [delta, *self._arguments(rest)]

    def _arguments(self, text: str) -> list[dict[str, Any]]:
        if self._over:
            return []
        end = next((at + 1 for at, one in enumerate(text) if self._step(one)), len(text))
        part = text[:end]
        return [{"index": 0, "function": {"arguments": part}}] if part else []

    def _step(self, one: str) -> bool:
        """Take a character; tell whether the arguments end with it."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif one == "\\":
                self._escaped = True
            elif one == '"':
                self._in_string = False
        elif one == '"':
            self._in_string = True
        elif one == "{":
            self._depth += 1
        elif one == "}":
            self._depth -= 1
            # Arguments that begin with no object are none: the brace is that of the call.
            self._over = self._depth <= 0
        return self._over
