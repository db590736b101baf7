"""Prompts that a model goes on with: texts or token ids, one or several; pure.

In: `prompt` of a body of `/v1/completions`, or one text. Out: an element of the request's prompt
tensor for each, which may fit the model's context.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferbus_gateway.errors import ContextExceededError, ParameterError
from inferbus_schemas import generation as limits
from inferbus_schemas import messages as m
from inferbus_schemas.generation import GenerationSettings

_BYTES_PER_TOKEN = 64
"""No token of any vocabulary that we know is longer: a longer prompt cannot fit."""
_MAX_TOKEN_ID = (1 << 31) - 1
_PARAM = "prompt"


def read(said: Any, settings: GenerationSettings) -> tuple[m.PromptKind, tuple[bytes, ...]]:
    """Return the prompts of a body, and of what kind they are.

    Raises:
        ParameterError, ContextExceededError: they are none, too many, or cannot fit.
    """
    if isinstance(said, str):
        return m.PROMPT_KIND_TEXT, (text(said, settings, _PARAM),)
    listed = said if isinstance(said, list) else []
    if listed and not isinstance(listed[0], str | list):
        listed = [listed]
    if not 0 < len(listed) <= limits.MAX_PROMPTS:
        raise ParameterError(
            _PARAM,
            "prompt is a text, a list of token ids, "
            f"or a list of 1 to {limits.MAX_PROMPTS} of either",
        )
    if all(isinstance(one, str) for one in listed):
        return m.PROMPT_KIND_TEXT, tuple(text(one, settings, _PARAM) for one in listed)
    return m.PROMPT_KIND_TOKENS, tuple(_tokens(one, settings) for one in listed)


def text(said: str, settings: GenerationSettings, param: str) -> bytes:
    """Return a text as an element.

    Raises:
        ParameterError, ContextExceededError: it is empty, no UTF-8, or cannot fit.
    """
    try:
        raw = said.encode()
    except UnicodeEncodeError:
        raise ParameterError(param, f"{param} holds half of a surrogate pair") from None
    if not raw:
        raise ParameterError(param, f"{param} must not be empty")
    check_fits(raw, settings, param)
    return raw


def check_fits(raw: bytes, settings: GenerationSettings, param: str) -> None:
    """Check that a text may fit the context.

    Raises:
        ContextExceededError: it cannot.
    """
    if len(raw) > settings.context_tokens * _BYTES_PER_TOKEN:
        raise _too_long(settings, param)


def _tokens(said: Any, settings: GenerationSettings) -> bytes:
    if not isinstance(said, list) or not said:
        raise ParameterError(_PARAM, "prompt holds texts, or lists of token ids, not both")
    if len(said) > settings.context_tokens:
        raise _too_long(settings, _PARAM)
    for one in said:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= _MAX_TOKEN_ID:
            raise ParameterError(_PARAM, "a token id is a whole number of the vocabulary")
    return msgspec.json.encode(said)


def _too_long(settings: GenerationSettings, param: str) -> ContextExceededError:
    return ContextExceededError(
        f"{param} cannot fit the model's context of {settings.context_tokens} tokens"
    )
