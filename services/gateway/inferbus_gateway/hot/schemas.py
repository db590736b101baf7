"""Schemas and tools of a client, read before an engine makes grammars of them; pure.

In: `response_format`, `tools` and `tool_choice` as they arrive. Out: the same, whose schemas an
engine can keep to (`constraints`).
"""

from __future__ import annotations

from typing import Any

from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot import constraints

MAX_TOOLS = 32
MAX_COST = 1024
"""Of the schemas of all tools together."""
_MAX_HOPS = 8
_NO_OBJECT = ("anyOf", "oneOf", "allOf", "const", "enum")
"""What a grammar is made of before it looks at `type`: with one of them no object is sure."""
_CHOICES = frozenset({"none", "auto", "required"})


def response_format(said: Any) -> Any:
    """Return the JSON schema that an answer must follow, {} for any object, None for any text.

    Raises:
        ParameterError: it is refused.
    """
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ParameterError("response_format", "response_format must be an object")
    kind = said.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema" or not isinstance(said.get("json_schema"), dict):
        raise ParameterError(
            "response_format", "response_format.type is text, json_object or json_schema"
        )
    schema = said["json_schema"].get("schema")
    if not isinstance(schema, dict):
        raise ParameterError("response_format", "response_format.json_schema.schema is missing")
    constraints.check(schema, "response_format")
    return schema


def tools(said: Any) -> list[dict[str, Any]]:
    """Return the tools; an empty list where there are none.

    Raises:
        ParameterError: they are refused.
    """
    if said is None:
        return []
    if not isinstance(said, list) or len(said) > MAX_TOOLS:
        raise ParameterError("tools", f"tools is a list of at most {MAX_TOOLS}")
    cost = 0
    for tool in said:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise ParameterError("tools", "a tool is an object of type function")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise ParameterError("tools", "a tool's function has a name")
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
            raise ParameterError("tools", "the parameters of a function are an object")
        cost += constraints.check(parameters, "tools")
        if cost > MAX_COST:
            raise ParameterError("tools", "the schemas of all tools together are too large")
        _check_object(parameters)
    return said


def _check_object(parameters: dict[str, Any]) -> None:
    """Check that what follows a schema is an object: arguments of a call are read as one."""
    node: Any = parameters
    for _ in range(_MAX_HOPS):
        if any(name in node for name in _NO_OBJECT):
            raise ParameterError(
                "tools", f"the parameters of a function have no {', '.join(_NO_OBJECT)} at the top"
            )
        if "$ref" not in node:
            return
        node = _part(parameters, node["$ref"])
        if not isinstance(node, dict) or ("$ref" not in node and node.get("type") != "object"):
            break
    raise ParameterError("tools", "$ref of the parameters of a function must lead to an object")


def _part(schema: Any, reference: Any) -> Any:
    """Return the part of a schema that a reference names; None where there is none."""
    node = schema
    for name in str(reference).split("/")[1:]:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def tool_choice(said: Any, given: list[dict[str, Any]]) -> Any:
    """Return which tool must be called, as it was said; None where nothing was.

    Raises:
        ParameterError: there is no such tool.
    """
    if said is None or (isinstance(said, str) and said in _CHOICES):
        return said
    function = said.get("function") if isinstance(said, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in {tool["function"]["name"] for tool in given}:
        raise ParameterError("tool_choice", "tool_choice names none of the tools")
    return {"type": "function", "function": {"name": name}}


def past_calls(said: Any, where: str) -> list[dict[str, Any]]:
    """Return the tool calls of an earlier message.

    Raises:
        ParameterError: they are not what we once answered with.
    """
    if said is None:
        return []
    if not isinstance(said, list) or len(said) > MAX_TOOLS:
        raise ParameterError(where, f"{where} has at most {MAX_TOOLS} tool calls")
    out = []
    for call in said:
        function = call.get("function") if isinstance(call, dict) else None
        texts = [
            call.get("id") if isinstance(call, dict) else None,
            function.get("name") if isinstance(function, dict) else None,
            function.get("arguments") if isinstance(function, dict) else None,
        ]
        if not all(isinstance(one, str) for one in texts):
            raise ParameterError(where, f"a tool call of {where} lacks id, name or arguments")
        out.append(
            {
                "id": texts[0],
                "type": "function",
                "function": {"name": texts[1], "arguments": texts[2]},
            }
        )
    return out
