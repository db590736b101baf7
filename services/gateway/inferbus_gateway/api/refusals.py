"""An error as its route writes errors, where the path alone says which route that is.

In: an error of the door or of the listener. Out: `{"error": ...}`, an error of the OpenAI API, or a
problem document; what the listener refuses has a request id as every other answer.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from fastapi import Response
from fastapi.responses import JSONResponse

from inferbus_gateway import errors
from inferbus_gateway.api import jobs, openai_routes, problems
from inferbus_gateway.retry_after import retry_after_s
from inferbus_guard.refusals import Headers, Refusal, Refuse
from inferbus_kit.errors import InferbusError
from inferbus_schemas import ids

CODE = b"x-inferbus-error-code"


def head(error: InferbusError | type[InferbusError], status: int) -> dict[str, str]:
    """Return the headers that an error has beside its body."""
    said = {CODE.decode(): error.code}
    if status == 401:  # noqa: PLR2004 -- RFC 9110 asks to say how
        said["www-authenticate"] = "Bearer"
    if (wait_s := retry_after_s(error)) is not None:
        said["retry-after"] = str(wait_s)
    return said


def plain(error: InferbusError) -> Response:
    """Return an error as the Open Inference Protocol writes it."""
    status = error.http_status
    return JSONResponse({"error": str(error)}, status, head(error, status))


def by_path(path: str, error: InferbusError) -> Response:
    """Return an error as the routes under a path write it."""
    if openai_routes.under(path, jobs.PATH):
        return problems.problem(error)
    if any(openai_routes.under(path, prefix) for prefix in openai_routes.PREFIXES):
        return openai_routes.refusal(error)
    return plain(error)


def of_listener(new_id: Callable[[], bytes], count: Callable[[str], object]) -> Refuse:
    """Return what writes the refusals of the listener; `count` hears their codes."""

    def refuse(target: bytes, why: Refusal) -> tuple[Headers, bytes]:
        count(why.code)
        path = unquote(target.partition(b"?")[0].decode("latin-1"))
        answer = by_path(path, errors.of_connection(why))
        answer.headers["x-request-id"] = ids.text(new_id())
        return answer.raw_headers, bytes(answer.body)

    return refuse
