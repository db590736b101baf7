"""How each route of text is read and how it writes; requests and lines of batches share this table.

In: a path of the OpenAI API, or the form that a stream's pieces name. Out: what makes an `Ask` of a
body, and the dialect of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from inferbus_gateway.errors import WrongTaskError
from inferbus_gateway.hot import dialects, prompts, response_input, responses
from inferbus_gateway.hot.route import Target
from inferbus_schemas import generation
from inferbus_schemas import messages as m

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"


class Kind(NamedTuple):
    """A route of text; `dialect` takes the id of a request."""

    read: Callable[[prompts.Body, generation.GenerationSettings], prompts.Ask]
    dialect: Callable[[bytes], dialects.Dialect]


KINDS = {
    CHAT: Kind(prompts.chat, dialects.Chat),
    TEXT: Kind(prompts.text, dialects.Text),
    RESPONSES: Kind(response_input.read, responses.Responses),
}


def settings_of(target: Target) -> generation.GenerationSettings:
    """Return how a version generates.

    Raises:
        WrongTaskError: it does not.
    """
    if target.manifest.task != generation.TASK:
        raise WrongTaskError(f"model {target.model} does not generate text")
    return generation.settings(target.manifest)


def dialect_of(form: m.Form, request_id: bytes, client_request_id: str) -> dialects.Dialect:
    """Return how the route of this form writes the stream of a request."""
    if form == m.FORM_GENERATE:
        return dialects.Triton(client_request_id)
    if form == m.FORM_RESPONSES:
        return responses.Responses(request_id)
    return (dialects.Text if form == m.FORM_TEXT else dialects.Chat)(request_id)


def bare_id(name: str) -> str:
    """Return the id of a request from what an answer of any route names it."""
    for kind in (dialects.Chat, dialects.Text, responses.Responses):
        name = name.removeprefix(kind.prefix)
    return name
