"""How `/v1/responses` writes: items of an output, and the named events that make them; pure.

In: chunks and a prediction. Out: named events, or the body of the answer. What a client asked for
is not said again: whoever goes on with a stream knows of it only what its chunks say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from inferbus_gateway.hot import dialects
from inferbus_kit.errors import InferbusError
from inferbus_schemas import ids
from inferbus_schemas import messages as m

Body = dict[str, Any]
_Said = list[tuple[str, Body]]


@dataclass(slots=True)
class _Item:
    """An item of an output while it grows: a message, or the call of which `call` is the head."""

    id: str
    index: int
    call: Body | None
    text: str = ""

    def body(self, status: str) -> Body:
        """Return the item; one that has only begun holds nothing yet."""
        head = {"id": self.id, "status": status}
        if self.call is not None:
            return {**head, "type": "function_call", **self.call, "arguments": self.text}
        content = [] if status == "in_progress" else [_part(self.text)]
        return {**head, "type": "message", "role": "assistant", "content": content}

    def begun(self) -> _Said:
        """Return what says that it begins."""
        added = {"output_index": self.index, "item": self.body("in_progress")}
        said = [("response.output_item.added", added)]
        if self.call is None:
            said.append(("response.content_part.added", {**self._place, "part": _part("")}))
        return said

    def grown(self, text: str) -> _Said:
        """Return what says that it grows."""
        self.text += text
        if self.call is None:
            delta = {**self._place, "delta": text, "logprobs": []}
            return [("response.output_text.delta", delta)]
        return [("response.function_call_arguments.delta", {**self._place, "delta": text})]

    def done(self, status: str) -> _Said:
        """Return what says that it is whole."""
        item = self.body(status)
        ended = ("response.output_item.done", {"output_index": self.index, "item": item})
        if self.call is not None:
            whole = {**self._place, "name": self.call["name"], "arguments": self.text}
            return [("response.function_call_arguments.done", whole), ended]
        whole = {**self._place, "text": self.text, "logprobs": []}
        part = {**self._place, "part": _part(self.text)}
        return [
            ("response.output_text.done", whole),
            ("response.content_part.done", part),
            ended,
        ]

    @property
    def _place(self) -> Body:
        place: Body = {"item_id": self.id, "output_index": self.index}
        return place if self.call is not None else {**place, "content_index": 0}


class Responses:
    """How this route writes.

    Invariants: `sequence_number` counts the events of a stream from 0; a chunk's place stands on
    the last event that it brings; an item is done before the next one begins; the last event is
    `response.completed`, `response.incomplete` where it was cut at its length, or `error`.
    """

    prefix = "resp_"

    def __init__(self, request_id: bytes) -> None:
        self._text_id = ids.text(request_id)
        self._id = f"{self.prefix}{self._text_id}"
        self._created = ids.unix_ms(request_id) // 1000
        self._n_events = 0
        self._items: list[_Item] = []
        self._call_index = -1
        """Of the item that grows; -1 where that is a message."""

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
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": None,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "truncation": "disabled",
            "usage": usage,
        }

    def _message(self) -> _Item:
        """Return a message that begins."""
        at = len(self._items)
        return _Item(f"msg_{self._text_id}{f'_{at}' if at else ''}", at, None)

    def _call(self, delta: Body) -> _Item:
        """Return a call that begins with a delta."""
        at = len(self._items)
        head = {"call_id": delta.get("id", ""), "name": delta["function"].get("name", "")}
        return _Item(f"fc_{self._text_id}_{at}", at, head)

    def _event(self, kind: str, said: Body, place: str = "") -> bytes:
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
        calls = msgspec.json.decode(choice.tool_calls) if choice.tool_calls else []
        self._items, self._call_index = [], -1
        if text or not calls:
            self._grow_text(text)
        for index, call in enumerate(calls):
            self._grow_call({"index": index, **call})
        return self._whole(prediction)

    def _whole(self, prediction: m.Prediction) -> Body:
        """Return the body of the answer whose items are there."""
        (choice,) = prediction.generated.choices
        status = "incomplete" if choice.finish_reason == "length" else "completed"
        last = self._items[-1]
        output = [one.body(status if one is last else "completed") for one in self._items]
        return self._response(prediction.model, status, output, _usage(prediction.generated))

    def _grow_text(self, text: str) -> _Said:
        said: _Said = []
        if not self._items or self._call_index >= 0:
            said += self._begin(self._message(), -1)
        return said + (self._items[-1].grown(text) if text else [])

    def _grow_call(self, delta: Body) -> _Said:
        said: _Said = []
        if delta["index"] != self._call_index:
            said += self._begin(self._call(delta), delta["index"])
        text = delta["function"].get("arguments")
        return said + (self._items[-1].grown(text) if text else [])

    def _begin(self, item: _Item, call_index: int) -> _Said:
        said = self._items[-1].done("completed") if self._items else []
        self._items.append(item)
        self._call_index = call_index
        return said + item.begun()

    def events(self, chunk: m.TokenChunk, place: str) -> bytes:
        """Return the events of a chunk; before the first one, that the answer begins."""
        out = []
        if not self._n_events:
            begun = {"response": self._response(chunk.model, "in_progress", [], None)}
            out += [self._event(f"response.{kind}", begun) for kind in ("created", "in_progress")]
        said = self._grow_text(chunk.text) if chunk.text else []
        for delta in msgspec.json.decode(chunk.tool_calls) if chunk.tool_calls else ():
            said += self._grow_call(delta)
        last = len(said) - 1
        out += [
            self._event(kind, body, place if at == last else "")
            for at, (kind, body) in enumerate(said)
        ]
        return b"".join(out)

    def rest(self, chunk: m.TokenChunk) -> bytes:
        del chunk
        return b""

    def end(self, prediction: m.Prediction, *, include_usage: bool) -> bytes:
        """Return what follows the last chunk; usage is always told."""
        del include_usage
        said = [] if self._items else self._begin(self._message(), -1)
        whole = self._whole(prediction)
        said += self._items[-1].done(whole["status"])
        said.append((f"response.{whole['status']}", {"response": whole}))
        return b"".join(self._event(kind, body) for kind, body in said)

    def error(self, error: InferbusError, code: str = "") -> bytes:
        """Return the event of an error, which is the last one."""
        said = dialects.openai_error(error, code)["error"]
        return self._event("error", {name: said[name] for name in ("code", "message", "param")})


def _part(text: str) -> Body:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(generated: m.Generated) -> Body:
    return {
        "input_tokens": generated.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": generated.cached_tokens,
            "cache_write_tokens": 0,  # nobody pays for them here
        },
        "output_tokens": generated.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": generated.prompt_tokens + generated.completion_tokens,
    }
