"""Headers of requests that change what a route does, as OpenAPI parameters.

In: nothing. Out: the descriptions that the routes' own ones take up.
"""

from __future__ import annotations

from typing import Any

from inferbus_gateway.api.job_bodies import MAX_CHARACTERS
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
