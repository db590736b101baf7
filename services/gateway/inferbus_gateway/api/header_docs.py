"""Headers of requests that change what a route does, as OpenAPI parameters.

In: nothing. Out: the descriptions that the routes' own ones take up.
"""

from __future__ import annotations

from typing import Any

from inferbus_gateway.api.job_bodies import MAX_CHARACTERS
from inferbus_gateway.hot.generations import DEFAULT_TIMEOUT_US
from inferbus_gateway.hot.incoming import DEFAULT_TIMEOUT_S, MAX_TIMEOUT_S
from inferbus_gateway.hot.keyed import MAX_KEY_CHARACTERS

Parameter = dict[str, Any]


def _header(name: str, description: str, **schema: object) -> Parameter:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
    }


def _timeout(default_s: float) -> Parameter:
    said = f"{default_s:g} s unless given, {MAX_TIMEOUT_S:g} s at most."
    return _header(
        "x-inferbus-timeout-ms", f"How long the request may take: {said}", type="integer", minimum=1
    )


TIMEOUT = _timeout(DEFAULT_TIMEOUT_S)
GENERATION_TIMEOUT = _timeout(DEFAULT_TIMEOUT_US / 1e6)
ON_DISCONNECT = _header(
    "x-inferbus-on-disconnect",
    "What becomes of the request when its client leaves; `keep`: it goes on, and its stream can be "
    "taken up again.",
    enum=["cancel", "keep"],
    default="cancel",
)
LAST_EVENT_ID = _header(
    "Last-Event-ID",
    "The `id` of the last event that was seen; without it the stream comes from its beginning.",
    pattern="^[0-9]{1,6}:[0-9]{1,18}$",
)
JSON_LENGTH = _header(
    "Inference-Header-Content-Length",
    "Length of the JSON in bytes, where tensors follow it as bytes; 0: the body is one raw input.",
    type="integer",
    minimum=0,
)
PREFER = _header(
    "Prefer",
    "`respond-async`: the request is taken as a job of one row; the answer, 202, names the job.",
)
IDEMPOTENCY_KEY = _header(
    "Idempotency-Key",
    "Names this request, for a day: sent again with its key it runs once, and is answered alike.",
    pattern=f"^[!-~]{{1,{MAX_KEY_CHARACTERS}}}$",
)
JOB_KEY = _header(
    "Idempotency-Key",
    "Names this job, as long as it is kept: sending it again with the same key gives the same job.",
    maxLength=MAX_CHARACTERS,
)
