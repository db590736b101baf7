"""Bodies of the OpenAI and generate routes: JSON in, a prompt and how to go on from it out; pure.

In: bytes of a client and the settings of the model that they name. Out: an `Ask` whose every number
is within bounds, or the error that names the field. Nothing of a body reaches an engine unchecked:
no template, no grammar, no expression of the client's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot import fit, prompt_lists, schemas
from inferbus_schemas import generation as limits
from inferbus_schemas import json_bounds, tensors
from inferbus_schemas import messages as m

Body = dict[str, Any]

MAX_MESSAGES = 1024
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal"})
_SAYS_NOTHING: tuple[Any, ...] = (None, [])
"""Values with which a field that we do not know, of a message that we answered, may come back."""
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
"""Fields of OpenAI's own accounts: they change nothing in an answer."""
_COMMON = frozenset(
    {
        *("model", "stream", "stream_options", "n", "temperature", "top_p", "top_k", "min_p"),
        *("frequency_penalty", "presence_penalty", "seed", "stop", "logprobs", "logit_bias"),
        "max_tokens",
    }
)
_CHAT = _COMMON | {
    *("messages", "max_completion_tokens", "top_logprobs", "response_format"),
    *("tools", "tool_choice", "parallel_tool_calls", "modalities"),
}
_TEXT = _COMMON | {"prompt", "echo", "suffix", "best_of"}
_TRITON = frozenset(
    {
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_words"),
        *("frequency_penalty", "presence_penalty", "stream"),
    }
)


@dataclass(frozen=True, slots=True)
class Ask:
    """Prompts, ready for the bus. `top_logprobs` None: the client wants none."""

    prompts: tuple[bytes, ...]
    generation: m.Generation

    @property
    def n_choices(self) -> int:
        """How many texts the answer has."""
        return len(self.prompts) * self.generation.n

    def tensors(self) -> bytes:
        """Return the serialised TensorSet of the request."""
        data = tensors.join_bytes(self.prompts)
        shape = [len(self.prompts)]
        tensor = m.Tensor(name=limits.PROMPT, datatype="BYTES", shape=shape, data=data)
        return m.TensorSet(tensors=[tensor]).SerializeToString()


def decode(raw: bytes) -> Body:
    """Return a body as an object.

    Raises:
        ParameterError: it is none, or would become too much.
    """
    try:
        json_bounds.check(raw)
        body = msgspec.json.decode(raw)
    except json_bounds.TooManyPartsError as error:
        raise ParameterError("", str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ParameterError("", "the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise ParameterError("", "the body must be a JSON object")
    return body


def model_of(body: Body) -> tuple[str, str]:
    """Return model and version of `model`: a name, or `name:version`.

    Raises:
        ParameterError: it is missing.
    """
    said = body.get("model")
    if not isinstance(said, str) or not said:
        raise ParameterError("model", "model must name a model")
    name, _, version = said.partition(":")
    return name, version


def own_id(body: Body) -> str:
    """Return the client's own id of a request; empty where it gives none.

    Raises:
        InvalidRequestError: it is too long, or no text that can be passed on.
    """
    said = body.get("id")
    if not isinstance(said, str):
        return ""
    _encodable(said, "id")
    return fit.check_id(said)


def chat(body: Body, settings: limits.GenerationSettings) -> Ask:
    """Read a body of `/v1/chat/completions`; unbounded, an answer goes on as far as the context.

    Raises:
        ParameterError, ContextExceededError: it is refused.
    """
    _known(body, _CHAT)
    if not settings.chat:
        raise ParameterError("model", "this model has no template for chats; use /v1/completions")
    if body.get("modalities") not in (None, ["text"]):
        raise ParameterError("modalities", "answers are text; leave modalities out")
    said = _common(body, settings)
    said.prompt_kind, said.form = m.PROMPT_KIND_CHAT, m.FORM_CHAT
    said.max_tokens = said.max_tokens or settings.context_tokens
    prompt = msgspec.json.encode(_messages(body.get("messages")))
    prompt_lists.check_fits(prompt, settings, "messages")
    if _boolean(body, "logprobs"):
        n_wanted = _whole(body, "top_logprobs", 0, limits.MAX_LOGPROBS)
        said.top_logprobs = 0 if n_wanted is None else n_wanted
    elif body.get("top_logprobs"):
        raise ParameterError("top_logprobs", "top_logprobs needs logprobs to be true")
    schema = schemas.response_format(body.get("response_format"))
    said.json_schema = "" if schema is None else msgspec.json.encode(schema).decode()
    if tools := schemas.tools(body.get("tools")):
        if not (settings.tools or settings.forced_calls):
            raise ParameterError("tools", "this model knows no tools")
        raw_tools = msgspec.json.encode(tools)
        prompt_lists.check_fits(raw_tools, settings, "tools")
        said.tools = raw_tools.decode()
        if (choice := schemas.tool_choice(body.get("tool_choice"), tools)) is not None:
            said.tool_choice = msgspec.json.encode(choice).decode()
        said.one_call = not _boolean(body, "parallel_tool_calls", default=True)
    elif body.get("tool_choice") not in (None, "none", "auto"):
        raise ParameterError("tool_choice", "tool_choice needs tools")
    return Ask((prompt,), said)


def text(body: Body, settings: limits.GenerationSettings) -> Ask:
    """Read a body of `/v1/completions`.

    Raises:
        ParameterError, ContextExceededError: it is refused.
    """
    _known(body, _TEXT)
    said = _common(body, settings)
    said.form = m.FORM_TEXT
    for name in ("echo", "suffix"):
        if body.get(name):
            raise ParameterError(name, f"{name} is not supported")
    if body.get("best_of") not in (None, body.get("n"), 1):
        raise ParameterError("best_of", "best_of is not supported")
    n_wanted = _whole(body, "logprobs", 0, limits.MAX_LOGPROBS)
    if n_wanted is not None:
        said.top_logprobs = n_wanted
    said.prompt_kind, prompts = prompt_lists.read(body.get("prompt"), settings)
    ask = Ask(prompts, said)
    if len(prompts) > 1 and ask.n_choices > limits.MAX_LIST_CHOICES:
        raise ParameterError(
            "n", f"all prompts of a list have at most {limits.MAX_LIST_CHOICES} choices together"
        )
    return ask


def triton(body: Body, settings: limits.GenerationSettings, *, stream: bool) -> Ask:
    """Read a body of Triton's `generate` or `generate_stream`.

    Raises:
        ParameterError, ContextExceededError: it is refused.
    """
    given = body.get("parameters") or {}
    if not isinstance(given, dict):
        raise ParameterError("parameters", "parameters must be an object")
    merged = {key: value for key, value in body.items() if key not in {"id", "parameters"}} | given
    prompt = merged.pop(limits.PROMPT, None)
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise ParameterError(limits.PROMPT, f"{limits.PROMPT} must be a text")
    _known(merged, _TRITON)
    if "stop_words" in merged:
        merged["stop"] = merged.pop("stop_words")
    if merged.pop("stream", stream) is not stream:
        raise ParameterError("stream", "use generate_stream for a stream, generate for one answer")
    said = _common(merged, settings)
    said.prompt_kind, said.form = m.PROMPT_KIND_TEXT, m.FORM_GENERATE
    said.stream = stream
    return Ask((prompt_lists.text(prompt, settings, limits.PROMPT),), said)


def _known(body: Body, known: frozenset[str]) -> None:
    for name, value in body.items():
        if name not in known and name not in IGNORED and value is not None:
            shown = name if name.isprintable() and len(name) < 64 else "a field"  # noqa: PLR2004 -- a name that is worth showing
            raise ParameterError(shown, f"unknown parameter: {shown}")


def _common(body: Body, settings: limits.GenerationSettings) -> m.Generation:
    """Read what all routes share."""
    context = settings.context_tokens
    max_tokens = _whole(body, "max_completion_tokens", 1, context)
    if max_tokens is None:
        max_tokens = _whole(body, "max_tokens", 1, context)
    said = m.Generation(
        max_tokens=max_tokens or 0,
        n=_whole(body, "n", 1, limits.MAX_CHOICES) or 1,
        temperature=_number(body, "temperature", 0.0, 2.0),
        top_p=_number(body, "top_p", 0.0, 1.0),
        top_k=_whole(body, "top_k", 0, 1 << 20),
        min_p=_number(body, "min_p", 0.0, 1.0),
        frequency_penalty=_number(body, "frequency_penalty", -2.0, 2.0),
        presence_penalty=_number(body, "presence_penalty", -2.0, 2.0),
        stop=_stops(body.get("stop")),
        logit_bias=_biases(body.get("logit_bias")),
        stream=_boolean(body, "stream"),
    )
    seed = _whole(body, "seed", -(1 << 63), (1 << 64) - 1)
    if seed is not None:
        said.seed = seed & 0xFFFFFFFF
    options = body.get("stream_options")
    if options is not None:
        if not isinstance(options, dict) or not said.stream:
            raise ParameterError("stream_options", "stream_options is an object, for streams only")
        said.include_usage = _boolean(options, "include_usage")
    return said


def _whole(body: Body, name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ParameterError(name, f"{name} must be a whole number from {least} to {most}")
    return value


def _number(body: Body, name: str, least: float, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ParameterError(name, f"{name} must be a number from {least:g} to {most:g}")
    return float(value)


def _boolean(body: Body, name: str, *, default: bool = False) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ParameterError(name, f"{name} must be true or false")
    return default if value is None else value


def _stops(said: Any) -> list[str]:
    stops = [said] if isinstance(said, str) else said or []
    if not isinstance(stops, list) or len(stops) > limits.MAX_STOPS:
        raise ParameterError("stop", f"stop is a text or a list of at most {limits.MAX_STOPS}")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= limits.MAX_STOP_CHARS:
            raise ParameterError("stop", f"a stop has 1 to {limits.MAX_STOP_CHARS} characters")
        _encodable(stop, "stop")
    return stops


def _biases(said: Any) -> dict[int, float]:
    if said is None:
        return {}
    if not isinstance(said, dict) or len(said) > limits.MAX_LOGIT_BIASES:
        raise ParameterError(
            "logit_bias", f"logit_bias is an object of at most {limits.MAX_LOGIT_BIASES} tokens"
        )
    out = {}
    for key in said:
        if not (key.isascii() and key.isdigit() and len(key) < 8):  # noqa: PLR2004 -- no vocabulary has more
            raise ParameterError("logit_bias", "logit_bias names tokens by their ids")
        out[int(key)] = _number(said, key, -100.0, 100.0) or 0.0
    return out


def _encodable(value: str, param: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ParameterError(param, f"{param} holds half of a surrogate pair") from None


def _messages(said: Any) -> list[Body]:
    if not isinstance(said, list) or not 0 < len(said) <= MAX_MESSAGES:
        raise ParameterError("messages", f"messages must be a list of 1 to {MAX_MESSAGES}")
    return [_message(one, index) for index, one in enumerate(said)]


def _message(said: Any, index: int) -> Body:
    where = f"messages[{index}]"
    role = said.get("role") if isinstance(said, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ParameterError(where, f"{where} must be an object with a role that we know")
    for name, value in said.items():
        if name not in _MESSAGE_FIELDS and value not in _SAYS_NOTHING:
            raise ParameterError(where, f"{where} has a field that we do not know")
    said_role = "system" if role == "developer" else role
    out: Body = {"role": said_role, "content": _content(said.get("content"), where)}
    if calls := schemas.past_calls(said.get("tool_calls"), where):
        out["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        value = said.get(name)
        if value is not None:
            if not isinstance(value, str):
                raise ParameterError(where, f"{name} of {where} must be a text")
            _encodable(value, where)
            out[name] = value
    return out


def _content(said: Any, where: str) -> str:
    if said is None:
        return ""
    if isinstance(said, str):
        _encodable(said, where)
        return said
    parts = []
    for part in said if isinstance(said, list) else [None]:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ParameterError(
                where, f"the content of {where} must be text; this model sees no more"
            )
        if not isinstance(part.get("text"), str):
            raise ParameterError(where, f"a part of {where} has no text")
        _encodable(part["text"], where)
        parts.append(part["text"])
    return "".join(parts)
