"""`/v1/responses`: OpenAI's newer shape of the same answers, without state on our side; pure.

In: a decoded body, then chunks and a prediction. Out: an `Ask` as `/v1/chat/completions` makes one,
and named events or the body of the answer. Nothing of a response is kept for a later one: a client
sends what was said before, as it does for chats.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot import dialects, prompts
from inferbus_kit.errors import InferbusError
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from inferbus_schemas.generation import GenerationSettings

Body = dict[str, Any]

_SAME = ("model", "temperature", "top_p", "stream", "user", "metadata", "store")
_KNOWN = frozenset(
    {
        *_SAME,
        *("input", "instructions", "max_output_tokens", "text", "truncation", "tool_choice"),
        *("parallel_tool_calls", "tools", "previous_response_id", "conversation", "background"),
    }
)
_STATEFUL = ("previous_response_id", "conversation", "background", "tools")
_PARTS = frozenset({"input_text", "output_text", "text"})


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
    chat: Body = {name: body[name] for name in _SAME if name in body}
    chat["messages"] = _messages(body)
    chat["max_tokens"] = body.get("max_output_tokens")
    if (form := _format(body.get("text"))) is not None:
        chat["response_format"] = form
    ask = prompts.chat(chat, settings)
    ask.generation.form = m.FORM_RESPONSES
    return ask


def _messages(body: Body) -> list[Any]:
    said = body.get("input")
    items = [{"role": "user", "content": said}] if isinstance(said, str) else said
    if not isinstance(items, list) or not items:
        raise ParameterError("input", "input is a text or a list of messages")
    instructions = body.get("instructions")
    out: list[Any] = []
    if instructions is not None:
        out.append({"role": "system", "content": instructions})
    for index, item in enumerate(items):
        if not isinstance(item, dict) or item.get("type", "message") != "message":
            raise ParameterError(f"input[{index}]", "each item of input is a message")
        out.append({"role": item.get("role"), "content": _content(item.get("content"), index)})
    return out


def _content(said: Any, index: int) -> Any:
    if not isinstance(said, list):
        return said
    parts = []
    for part in said:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _PARTS:
            raise ParameterError(f"input[{index}]", "a message holds text; this model sees no more")
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


class Responses:
    """How this route writes.

    Invariants: `sequence_number` counts the events of a stream from 0; a delta's place is that of
    its chunk; the last event is `response.completed`, or `response.incomplete` where it was cut at
    its length.
    """

    prefix = "resp_"

    def __init__(self, request_id: bytes) -> None:
        text = ids.text(request_id)
        self._id, self._item_id = f"{self.prefix}{text}", f"msg_{text}"
        self._created = ids.unix_ms(request_id) // 1000
        self._n_events = 0

    def _response(self, model: str, status: str, output: list[Body], usage: Body | None) -> Body:
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": None,
            "metadata": {},
            "model": model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": None,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": None,
            "truncation": "disabled",
            "usage": usage,
        }

    def _item(self, status: str, text: str | None) -> Body:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [_part(text)],
        }

    def _event(self, kind: str, place: str = "", **said: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._n_events, **said}
        self._n_events += 1
        head = f"id: {place}\n" if place else ""
        return b"%sevent: %s\ndata: %s\n\n" % (
            head.encode(),
            kind.encode(),
            msgspec.json.encode(body),
        )

    def answer(self, prediction: m.Prediction) -> Body:
        """Return the body of a whole answer."""
        (text,) = dialects.texts(prediction)
        (choice,) = prediction.generated.choices
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        usage = _usage(prediction.generated)
        return self._response(prediction.model, status, [self._item(status, text)], usage)

    def events(self, chunk: m.TokenChunk, place: str) -> bytes:
        """Return the events of a chunk; before the first one, that the answer begins."""
        where: Body = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        out = []
        if not self._n_events:
            begun = self._response(chunk.model, "in_progress", [], None)
            item = self._item("in_progress", None)
            out += [
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **where, part=_part("")),
            ]
        if chunk.text:
            kind = "response.output_text.delta"
            out.append(self._event(kind, place, **where, delta=chunk.text, logprobs=[]))
        return b"".join(out)

    def rest(self, chunk: m.TokenChunk) -> bytes:
        del chunk
        return b""

    def end(self, prediction: m.Prediction, *, include_usage: bool) -> bytes:
        """Return what follows the last chunk; usage is always told."""
        del include_usage
        where: Body = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        whole = self.answer(prediction)
        (item,) = whole["output"]
        text = item["content"][0]["text"]
        return b"".join(
            [
                self._event("response.output_text.done", **where, text=text, logprobs=[]),
                self._event("response.content_part.done", **where, part=_part(text)),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{whole['status']}", response=whole),
            ]
        )

    def error(self, error: InferbusError, code: str = "") -> Body:
        """Return an error, as a body and as an event's data."""
        return dialects.openai_error(error, code)


def _part(text: str) -> Body:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(generated: m.Generated) -> Body:
    return {
        "input_tokens": generated.prompt_tokens,
        "input_tokens_details": {"cached_tokens": generated.cached_tokens},
        "output_tokens": generated.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": generated.prompt_tokens + generated.completion_tokens,
    }
