"""Errors as RFC 9457 problem documents, request ids and headers of caution, for every answer.

In: whatever an endpoint raised. Out: `application/problem+json` with a stable `code` and the
request's id; never a stack, a path or an address.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferbus_guard.refusals import Headers, Refusal
from inferbus_kit import docs
from inferbus_kit.errors import InferbusError

_log = structlog.get_logger("http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RETRY_AFTER_S = "2"

_BODY_HEADERS = {b"content-length", b"transfer-encoding"}
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_NO_PAGE = b"default-src 'none'; frame-ancestors 'none'"
_MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error; `code` is for programs, and some errors have further members."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Refused or failed",
        "content": {_MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
}
"""What OpenAPI says of every answer that is none of success."""


class Outermost:
    """Wraps the app: request id in, request id and headers of caution out.

    Invariants: an exception that no handler took is logged here and ends here; a client that
    left is no error; an answer before the body's end closes the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        policy = docs.POLICY if scope["path"].startswith(docs.PATH) else _NO_PAGE
        extra = [
            *_HEADERS,
            (b"content-security-policy", policy),
            (b"x-request-id", request_id.encode()),
        ]
        unread = any(name in _BODY_HEADERS for name, _ in scope["headers"])

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body", False))
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A body that nobody will read must not go on arriving.
                closing = [(b"connection", b"close")] if unread else []
                message["headers"] = [*message.get("headers", ()), *extra, *closing]
            await send(message)

        try:
            await self._app(scope, watched_receive, send_with_headers)
        except ClientDisconnect:
            _log.info("client_left", request_id=request_id)
        except Exception:  # noqa: BLE001 -- its answer is sent; what is left is for our log
            _log.exception("unexpected", request_id=request_id)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        text = str(value, "latin-1")
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(text):
            return text
    return uuid.uuid4().hex


def problem(
    request: Request,
    status: int,
    code: str,
    *,
    title: str,
    detail: str,
    members: Mapping[str, object] | None = None,
) -> Response:
    """Return a problem document."""
    body = {
        **(members or {}),
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request.state.request_id,
    }
    headers = {"retry-after": _RETRY_AFTER_S} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return JSONResponse(body, status, headers, media_type=_MEDIA_TYPE)


def of_listener(_target: bytes, why: Refusal) -> tuple[Headers, bytes]:
    """Return what the listener itself refuses, as a problem document."""
    request_id = uuid.uuid4().hex
    body = {
        "type": "about:blank",
        "title": HTTPStatus(why.status).phrase,
        "status": why.status,
        "detail": why.error,
        "code": why.code,
        "request_id": request_id,
    }
    extra = {"x-inferbus-error-code": why.code, "x-request-id": request_id}
    answer = JSONResponse(body, why.status, extra, media_type=_MEDIA_TYPE)
    return [*answer.raw_headers, *_HEADERS], bytes(answer.body)


async def ours(request: Request, error: Exception) -> Response:
    """Answer an error of our own."""
    assert isinstance(error, InferbusError)  # noqa: S101 -- registered for it alone
    title = str(getattr(error, "title", "Error"))
    members = getattr(error, "members", {})
    response = problem(
        request, error.http_status, error.code, title=title, detail=str(error), members=members
    )
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        response.headers["www-authenticate"] = "Bearer"
    return response


def nothing_here(allowed: Sequence[str] = ()) -> HTTPException:
    """Return the error of an address that is not there, or not for this method."""
    if allowed:
        return HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"allow": ", ".join(allowed)})
    return HTTPException(HTTPStatus.NOT_FOUND)


async def http(request: Request, error: Exception) -> Response:
    """Answer an error of HTTP itself."""
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for it alone
    status = HTTPStatus(error.status_code)
    response = problem(
        request,
        status,
        status.name.lower(),
        title=status.phrase,
        detail=_DETAILS.get(status, status.phrase),
    )
    if status == HTTPStatus.METHOD_NOT_ALLOWED and error.headers:
        response.headers.update(error.headers)
    return response


_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take this method.",
    HTTPStatus.BAD_REQUEST: "The body is not JSON.",
}


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- registered for it alone
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, str | int))
    # The value itself is never echoed.
    return problem(
        request,
        422,
        "invalid_request",
        title="Invalid request",
        detail=f"{where}: {first['msg']}",
    )


async def _unexpected(request: Request, _error: Exception) -> Response:
    detail = "Something failed inside; the log has it under this request id."
    return problem(request, 500, "internal", title="Internal error", detail=detail)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(InferbusError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
