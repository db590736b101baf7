"""Errors of the routes of jobs, as RFC 9457 problem documents.

In: an error of ours, on whatever way out of a route. Out: the document; an upload that was refused
is read out for a moment, since a connection closed on unread bytes takes the answer with it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from inferbus_gateway import errors
from inferbus_gateway.api.refusing import RefusingRoute
from inferbus_gateway.retry_after import retry_after_s
from inferbus_kit.errors import InferbusError

_PROBLEM = "application/problem+json"


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


class ProblemRoute(RefusingRoute):
    """A route whose errors are problem documents."""

    @staticmethod
    def refused(error: InferbusError) -> Response:
        return problem(error)

    @staticmethod
    def wrong(_error: RequestValidationError) -> InferbusError:
        return errors.InvalidRequestError("a parameter is wrong; see /docs")


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {_PROBLEM: {"schema": Problem.model_json_schema()}},
    }
    for status in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 501, 503)
}
