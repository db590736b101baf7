"""What a model is told of tools whose own template knows none; pure.

In: the messages of a chat, the functions of a request. Out: messages of system, user and assistant
alone, which every template takes: the system message names the functions, calls that were made
before are texts in the form that SmolLM2 was trained on, and what came of them is said by the user.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferbus_schemas import messages as m
from inferbus_worker.engines.call_text import CLOSE, OPEN

Message = dict[str, Any]

_RESULTS = frozenset({"tool", "function"})
_DEMAND = (
    "Answer with one call of a function, as a JSON object with the keys name and arguments. "
    "The functions, one a line:"
)
_EXAMPLE = '{"name": "function_name", "arguments": {"argument_name": "value"}}'
_MORE = ",\n... (more calls, where more are needed)"


def of_demand(messages: list[Message], functions: list[dict[str, Any]]) -> list[Message]:
    """Return a chat whose model must call one of some functions."""
    lines = [msgspec.json.encode(one).decode() for one in functions]
    return _told(messages, "\n".join([_DEMAND, *lines]))


def of_offer(messages: list[Message], said: m.Generation) -> list[Message]:
    """Return a chat whose model may call the functions of a request, or answer with text."""
    form = f"{OPEN}[\n{_EXAMPLE}{'' if said.one_call else _MORE}\n]{CLOSE}"
    about = (
        f"You have these functions:\n<tools>{said.tools}</tools>\n"
        f"If one of them helps to answer, write only a call of it, in this form:\n{form}\n"
        "Otherwise answer in plain text."
    )
    return _told(messages, about)


def _told(messages: list[Message], about: str) -> list[Message]:
    first, *rest = messages
    if first.get("role") != "system":
        return [{"role": "system", "content": about}, *messages]
    return [{**first, "content": f"{first['content']}\n\n{about}"}, *rest]


def plain(messages: list[Message]) -> list[Message]:
    """Return a chat whose calls and results are texts; results that follow each other are one."""
    names: dict[str, str] = {}
    out: list[Message] = []
    in_results = False
    for one in messages:
        is_result = one["role"] in _RESULTS
        if is_result:
            text = _result(one, names)
            if in_results:
                out[-1]["content"] += f"\n{text}"
            else:
                out.append({"role": "user", "content": text})
        elif made := one.get("tool_calls"):
            names |= {call["id"]: call["function"]["name"] for call in made}
            out.append({"role": one["role"], "content": one["content"] + _calls(made)})
        else:
            out.append(one)
        in_results = is_result
    return out


def _calls(made: list[dict[str, Any]]) -> str:
    lines = [
        f'{{"name": {msgspec.json.encode(call["function"]["name"]).decode()}, '
        f'"arguments": {call["function"]["arguments"]}}}'
        for call in made
    ]
    listed = ",\n".join(lines)
    return f"{OPEN}[\n{listed}\n]{CLOSE}"


def _result(one: Message, names: dict[str, str]) -> str:
    # Seen with a small model: a tag or JSON around a result is repeated, a sentence understood.
    name = names.get(one.get("tool_call_id", "")) or one.get("name")
    return f"Result of {name}: {one['content']}" if name else f"Result: {one['content']}"
