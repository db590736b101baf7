"""Bodies of `/v1/responses`: OpenAI's newer shape of a chat, without state on our side; pure.

In: a decoded body. Out: an `Ask` as `/v1/chat/completions` makes one. Nothing of a response is kept
for a later one: a client sends what was said before, calls and their results too.
"""

from __future__ import annotations

from typing import Any

from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot import prompts
from inferbus_schemas import messages as m
from inferbus_schemas.generation import GenerationSettings

Body = dict[str, Any]

_SAME = (
    *("model", "temperature", "top_p", "stream", "stream_options", "parallel_tool_calls"),
    *sorted(prompts.IGNORED),
)
_KNOWN = frozenset(
    {
        *_SAME,
        *("input", "instructions", "max_output_tokens", "text", "truncation", "tool_choice"),
        *("tools", "previous_response_id", "conversation", "background", "include", "reasoning"),
    }
)
_NEVER_INCLUDED = frozenset(
    {
        *("reasoning.encrypted_content", "code_interpreter_call.outputs"),
        *("file_search_call.results", "web_search_call.results"),
        *("web_search_call.action.sources", "computer_call_output.output.image_url"),
        "message.input_image.image_url",
    }
)
"""What may be asked for with items that no answer of ours has: there it changes nothing."""
_STATEFUL = ("previous_response_id", "conversation", "background")
_PARTS = frozenset({"input_text", "output_text", "text"})
_OF_A_FUNCTION = ("name", "description", "parameters", "strict")


def read(body: Body, settings: GenerationSettings) -> prompts.Ask:
    """Read a body.

    Raises:
        ParameterError, ContextExceededError: it is refused.
    """
    for name in body:
        if name not in _KNOWN:
            raise ParameterError(name[:64], f"unknown parameter: {name[:64]}")
    for name in _STATEFUL:
        if body.get(name):
            raise ParameterError(name, f"{name} is not supported here; send what was said before")
    if body.get("truncation") not in (None, "disabled"):
        raise ParameterError("truncation", "truncation is disabled")
    _check_include(body.get("include"))
    _check_reasoning(body.get("reasoning"))
    chat: Body = {name: body[name] for name in _SAME if name in body}
    chat["messages"] = _messages(body)
    chat["max_tokens"] = body.get("max_output_tokens")
    chat["tools"] = _tools(body.get("tools"))
    chat["tool_choice"] = _tool_choice(body.get("tool_choice"))
    if (form := _format(body.get("text"))) is not None:
        chat["response_format"] = form
    ask = prompts.chat(chat, settings)
    ask.generation.form = m.FORM_RESPONSES
    return ask


def _check_include(said: Any) -> None:
    """Check that no more is to be included than there is."""
    wanted = [] if said is None else said
    if not isinstance(wanted, list):
        raise ParameterError("include", "include is a list")
    for one in wanted:
        if not isinstance(one, str) or one not in _NEVER_INCLUDED:
            raise ParameterError("include", "include names something that no answer here has")


def _check_reasoning(said: Any) -> None:
    """Check that no reasoning is asked for: no model here reasons apart from its answer."""
    given = {} if said is None else said
    if not isinstance(given, dict):
        raise ParameterError("reasoning", "reasoning is an object")
    for name, value in given.items():
        if value is not None and (name, value) != ("effort", "none"):
            raise ParameterError(
                "reasoning", "no model here reasons apart from its answer; leave reasoning out"
            )


def _tools(said: Any) -> Any:
    """Return tools as chats have them, with an object of its own for the function."""
    if not isinstance(said, list):
        return said
    out = []
    for tool in said:
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise ParameterError("tools", "a tool is an object of type function")
        function = {name: tool[name] for name in _OF_A_FUNCTION if tool.get(name) is not None}
        out.append({"type": "function", "function": function})
    return out


def _tool_choice(said: Any) -> Any:
    if isinstance(said, dict) and said.get("type") == "function":
        return {"type": "function", "function": {"name": said.get("name")}}
    return said


def _messages(body: Body) -> list[Body]:
    said = body.get("input")
    items = [{"role": "user", "content": said}] if isinstance(said, str) else said
    if not isinstance(items, list) or not items:
        raise ParameterError("input", "input is a text or a list of items")
    instructions = body.get("instructions")
    out: list[Body] = []
    if instructions is not None:
        out.append({"role": "system", "content": instructions})
    for index, item in enumerate(items):
        _add(out, item, f"input[{index}]")
    return out


def _add(out: list[Body], item: Any, where: str) -> None:
    """Add what an item of the input says to the messages before it."""
    kind = (item.get("type") or "message") if isinstance(item, dict) else None
    if kind == "message":
        out.append({"role": item.get("role"), "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        call = _call(item, where)
        if out and out[-1]["role"] == "assistant":
            out[-1].setdefault("tool_calls", []).append(call)
        else:
            out.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise ParameterError(where, f"{where} names no call_id")
        content = _content(item.get("output"), where)
        out.append({"role": "tool", "tool_call_id": call_id, "content": content})
    else:
        raise ParameterError(
            where, "an item of input is a message, a function_call or a function_call_output"
        )


def _call(item: Body, where: str) -> Body:
    call_id, name, arguments = (item.get(key) for key in ("call_id", "name", "arguments"))
    if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(arguments, str)):
        raise ParameterError(where, f"{where} lacks call_id, name or arguments")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _content(said: Any, where: str) -> Any:
    if not isinstance(said, list):
        return said
    parts = []
    for part in said:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _PARTS:
            raise ParameterError(where, "a message holds text; this model sees no more")
        parts.append({"type": "text", "text": part.get("text")})
    return parts


def _format(said: Any) -> Body | None:
    form = said.get("format") if isinstance(said, dict) else said
    if form is None:
        return None
    if not isinstance(form, dict):
        raise ParameterError("text", "text.format is an object")
    if form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
    return form
