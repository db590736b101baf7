"""Errors of the routes of jobs, as RFC 9457 problem documents.

In: an error of ours, on whatever way out of a route. Out: the document; an upload that was refused
is read out for a moment, since a connection closed on unread bytes takes the answer with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from inferbus_gateway import errors
from inferbus_gateway.retry_after import retry_after_s
from inferbus_kit.errors import InferbusError

_PROBLEM = "application/problem+json"
_CLIENT_LEFT = 499
_LINGER_S = 2.0


class Problem(BaseModel):
    """An error as RFC 9457 writes it; `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str


def problem(error: InferbusError, status: int | None = None) -> Response:
    """Return an error as a problem document."""
    code = status or error.http_status
    title = HTTPStatus(code).phrase
    body = Problem(type="about:blank", title=title, status=code, detail=str(error), code=error.code)
    head = {"x-inferbus-error-code": error.code}
    if code == HTTPStatus.UNAUTHORIZED:
        head["www-authenticate"] = "Bearer"
    if (wait_s := retry_after_s(error)) is not None:
        head["retry-after"] = str(wait_s)
    return JSONResponse(body.model_dump(), code, head, media_type=_PROBLEM)


class ProblemRoute(APIRoute):
    """A route whose errors are problem documents."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except InferbusError as error:
                answer = problem(error)
            except RequestValidationError:
                answer = problem(errors.InvalidRequestError("a parameter is wrong; see /docs"))
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)
            if request.method == "POST" and not await _read_out(request):
                # What is left of an upload must not go on arriving.
                answer.headers["connection"] = "close"
            return answer

        return handler


async def _read_out(request: Request) -> bool:
    """Drop what still arrives of a refused upload, for a moment; tell whether that was all of it.

    A connection that is closed on unread bytes takes the answer with it.
    """
    try:
        async with asyncio.timeout(_LINGER_S):
            async for _ in request.stream():
                pass
    except (TimeoutError, ClientDisconnect):
        return False
    except RuntimeError:
        return True  # it was read to its end before
    return True


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {_PROBLEM: {"schema": Problem.model_json_schema()}},
    }
    for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 501, 503)
}
