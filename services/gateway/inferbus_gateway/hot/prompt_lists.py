"""Lists of prompts of `/v1/completions`: one request each, one answer of all of them; pure.

In: a body whose prompt is a list, then the answer to each. Out: a body for each prompt, and one
answer whose choices are numbered prompt by prompt, as the OpenAI API has them.
"""

from __future__ import annotations

from typing import Any

from inferbus_gateway.errors import ParameterError

Body = dict[str, Any]

MAX_PROMPTS = 16
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def split(body: Body) -> list[Body]:
    """Return a body for each prompt; one body where there is one prompt.

    Raises:
        ParameterError: there are too many, or they cannot be answered together.
    """
    said = body.get("prompt")
    if not isinstance(said, list) or len(said) < 2 or not all(isinstance(p, str) for p in said):  # noqa: PLR2004 -- several
        return [body]
    if len(said) > MAX_PROMPTS:
        raise ParameterError("prompt", f"prompt is a text or a list of 1 to {MAX_PROMPTS} texts")
    if body.get("stream"):
        raise ParameterError("prompt", "a stream answers one prompt; send a request for each")
    return [{**body, "prompt": one} for one in said]


def merged(answers: list[Body]) -> Body:
    """Return one answer of the answers to each prompt, which have as many choices each."""
    first = answers[0]
    choices = [choice for answer in answers for choice in answer["choices"]]
    usage = {name: sum(answer["usage"][name] for answer in answers) for name in _COUNTS}
    cached = sum(answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers)
    return {
        **first,
        "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
        "usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}},
    }
