"""Generated text as clients read it: OpenAI's chats and completions, Triton's generate; pure.

In: token chunks, predictions, errors. Out: JSON bodies and server-sent events. An event's `id:` is
the place of its chunk, `partition:offset`, and everything in it follows from chunk and request id,
so that any gateway emits the same bytes.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from inferbus_kit.errors import InferbusError
from inferbus_schemas import ids, tensors
from inferbus_schemas import messages as m

Body = dict[str, Any]

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_encode = msgspec.json.encode
_INTERNAL, _LIMIT = 500, 429


class Dialect(Protocol):
    """How one route writes."""

    def answer(self, prediction: m.Prediction) -> Body:
        """Return the body of a whole answer."""
        ...

    def events(self, chunk: m.TokenChunk, place: str) -> bytes:
        """Return the events of a chunk."""
        ...

    def rest(self, chunk: m.TokenChunk) -> bytes:
        """Return those events of a chunk that follow the one with its place."""
        ...

    def end(self, prediction: m.Prediction, *, include_usage: bool) -> bytes:
        """Return what follows the last chunk."""
        ...

    def error(self, error: InferbusError, code: str = "") -> bytes:
        """Return the event of an error; `code` tells more than its kind."""
        ...


def event(body: Body, place: str = "") -> bytes:
    """Return one server-sent event."""
    head = f"id: {place}\n".encode() if place else b""
    return b"%sdata: %s\n\n" % (head, _encode(body))


def openai_error(error: InferbusError, code: str = "") -> Body:
    """Return an error in the shape of the OpenAI API."""
    if error.http_status == _LIMIT:
        kind = "rate_limit_error"
    elif error.http_status < _INTERNAL:
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": getattr(error, "param", None) or None,
            "code": code or error.code,
        }
    }


def texts(prediction: m.Prediction) -> list[str]:
    """Return the texts of a generation, one per choice.

    Raises:
        ValueError: its outputs are no generation's.
    """
    (tensor,) = m.TensorSet.FromString(prediction.outputs).tensors
    return [each.decode() for each in tensors.split_bytes(tensor.data)]


def usage(generated: m.Generated) -> Body:
    """Return the token counts of a generation."""
    return {
        "prompt_tokens": generated.prompt_tokens,
        "completion_tokens": generated.completion_tokens,
        "total_tokens": generated.prompt_tokens + generated.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generated.cached_tokens},
    }


class Chat:
    """`/v1/chat/completions`.

    Invariants: the first event of each choice tells its role, and no other does; choices begin in
    their order; a call's id and name stand only in its first delta.
    """

    prefix = "chatcmpl-"

    def __init__(self, request_id: bytes) -> None:
        self._id = self.prefix + ids.text(request_id)
        self._created = ids.unix_ms(request_id) // 1000
        self._n_begun = 0

    def _head(self, kind: str, model: str) -> Body:
        return {"id": self._id, "object": kind, "created": self._created, "model": model}

    def answer(self, prediction: m.Prediction) -> Body:
        generated = prediction.generated
        choices = []
        for index, (text, choice) in enumerate(
            zip(texts(prediction), generated.choices, strict=True)
        ):
            message: Body = {"role": "assistant", "content": text, "refusal": None}
            if choice.tool_calls:
                message["tool_calls"] = msgspec.json.decode(choice.tool_calls)
                message["content"] = text or None
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": _chat_logprobs(choice.logprobs),
                    "finish_reason": choice.finish_reason,
                }
            )
        head = self._head("chat.completion", prediction.model)
        return {**head, "choices": choices, "usage": usage(generated)}

    def events(self, chunk: m.TokenChunk, place: str) -> bytes:
        out = []
        # The SDK of OpenAI appends each choice that it first hears of to a list.
        while self._n_begun <= chunk.choice:
            begins = self._chunk(chunk, {"role": "assistant", "content": ""}, None)
            begins["choices"][0]["index"] = self._n_begun
            self._n_begun += 1
            # Without a place of its own: who comes back after it must hear it again.
            out.append(event(begins))
        delta: Body = {}
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.tool_calls:
            delta["tool_calls"] = msgspec.json.decode(chunk.tool_calls)
        rest = self.rest(chunk)
        finish_reason = None if rest else chunk.finish_reason or None
        out.append(event(self._chunk(chunk, delta, finish_reason, chunk.logprobs), place))
        return b"".join(out) + rest

    def rest(self, chunk: m.TokenChunk) -> bytes:
        # Told again to who comes back after the text: an end may be heard twice, text may not.
        if not chunk.finish_reason or not (chunk.text or chunk.tool_calls):
            return b""
        return event(self._chunk(chunk, {}, chunk.finish_reason))

    def _chunk(
        self, chunk: m.TokenChunk, delta: Body, finish_reason: str | None, logprobs: str = ""
    ) -> Body:
        choice = {
            "index": chunk.choice,
            "delta": delta,
            "logprobs": _chat_logprobs(logprobs),
            "finish_reason": finish_reason,
        }
        body = {**self._head("chat.completion.chunk", chunk.model), "choices": [choice]}
        return body | {"usage": None} if chunk.include_usage else body

    def end(self, prediction: m.Prediction, *, include_usage: bool) -> bytes:
        if not include_usage:
            return DONE
        head = self._head("chat.completion.chunk", prediction.model)
        return event({**head, "choices": [], "usage": usage(prediction.generated)}) + DONE

    def error(self, error: InferbusError, code: str = "") -> bytes:
        return event(openai_error(error, code))


class Text:
    """`/v1/completions`."""

    prefix = "cmpl-"

    def __init__(self, request_id: bytes) -> None:
        self._id = self.prefix + ids.text(request_id)
        self._created = ids.unix_ms(request_id) // 1000
        self._lengths: dict[int, int] = {}
        """Characters of each text that were told with log probabilities."""

    def _head(self, model: str) -> Body:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": model,
        }

    def answer(self, prediction: m.Prediction) -> Body:
        generated = prediction.generated
        choices = [
            {
                "index": index,
                "text": text,
                "logprobs": _text_logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, (text, choice) in enumerate(
                zip(texts(prediction), generated.choices, strict=True)
            )
        ]
        return {**self._head(prediction.model), "choices": choices, "usage": usage(generated)}

    def events(self, chunk: m.TokenChunk, place: str) -> bytes:
        at = self._lengths.get(chunk.choice, 0)
        logprobs = _text_logprobs(chunk.logprobs, at)
        if logprobs is not None:
            self._lengths[chunk.choice] = at + sum(map(len, logprobs["tokens"]))
        choice = {
            "index": chunk.choice,
            "text": chunk.text,
            "logprobs": logprobs,
            "finish_reason": chunk.finish_reason or None,
        }
        body: Body = {**self._head(chunk.model), "choices": [choice]}
        return event(body | {"usage": None} if chunk.include_usage else body, place)

    def rest(self, chunk: m.TokenChunk) -> bytes:
        del chunk
        return b""

    def end(self, prediction: m.Prediction, *, include_usage: bool) -> bytes:
        if not include_usage:
            return DONE
        body = {**self._head(prediction.model), "choices": []}
        return event(body | {"usage": usage(prediction.generated)}) + DONE

    def error(self, error: InferbusError, code: str = "") -> bytes:
        return event(openai_error(error, code))


class Triton:
    """`/v2/models/{m}/generate` and `generate_stream`; `done` is the Open Inference Protocol's."""

    def __init__(self, client_request_id: str) -> None:
        self._client_request_id = client_request_id

    def _head(self, model: str, version: int) -> Body:
        head = {"model_name": model, "model_version": str(version)}
        return {"id": self._client_request_id, **head} if self._client_request_id else head

    def answer(self, prediction: m.Prediction) -> Body:
        said = texts(prediction)
        head = self._head(prediction.model, prediction.version)
        return {**head, "text_output": said[0] if len(said) == 1 else said}

    def events(self, chunk: m.TokenChunk, place: str) -> bytes:
        done = bool(chunk.finish_reason)
        if not (chunk.text or done):
            return b""
        head = self._head(chunk.model, chunk.version)
        return event({**head, "text_output": chunk.text, "done": done}, place)

    def rest(self, chunk: m.TokenChunk) -> bytes:
        del chunk
        return b""

    def end(self, prediction: m.Prediction, *, include_usage: bool) -> bytes:
        del prediction, include_usage
        return b""

    def error(self, error: InferbusError, code: str = "") -> bytes:
        del code
        return event({"error": str(error)})


def _chat_logprobs(raw: str) -> Body | None:
    return {"content": msgspec.json.decode(raw), "refusal": None} if raw else None


def _text_logprobs(raw: str, at: int = 0) -> Body | None:
    """Return log probabilities as `/v1/completions` has them; the first token begins at `at`."""
    if not raw:
        return None
    offsets = []
    entries = msgspec.json.decode(raw)
    for entry in entries:
        offsets.append(at)
        at += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries
        ],
        "text_offset": offsets,
    }
