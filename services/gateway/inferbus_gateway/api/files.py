"""`/v1/files`: inputs of batches, and what batches wrote.

In: multipart forms, as they stream. Out: file objects of the OpenAI API; contents as they are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from inferbus_gateway import errors
from inferbus_gateway.api import openai_routes as shared
from inferbus_gateway.control.batches.files import Files, now_ms
from inferbus_gateway.control.batches.fold import BatchFold
from inferbus_gateway.control.batches.upload import Form
from inferbus_gateway.errors import ParameterError
from inferbus_gateway.hot.shares import Shares
from inferbus_schemas import batches, ids
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal

INPUT = "batch"
_AT_ONCE, _AT_ONCE_EACH = 16, 4
_KEPT_S = 7 * 24 * 3600
LEAST_KEPT_S, MOST_KEPT_S = 3600, 30 * 24 * 3600
_MAX_LIMIT = 10_000
_BYTES = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes need; `charge` spends one request of a caller's limits, or raises."""

    files: Files
    fold: BatchFold
    max_bytes: int
    new_id: Callable[[], bytes]
    charge: Callable[[Principal], None]
    uploads: Shares = field(default_factory=lambda: Shares("uploads", _AT_ONCE, _AT_ONCE_EACH))
    """One set of places, whatever the prefix of the route."""


_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"enum": [INPUT]},
                        "expires_after[anchor]": {"enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": LEAST_KEPT_S,
                            "maximum": MOST_KEPT_S,
                        },
                    },
                }
            }
        },
    }
}
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": "Refused or failed", "content": _ERROR}
    for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, 501, 503)
}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}


def router(parts: Parts | None, prefix: str) -> APIRouter:
    """Return the routes; without `parts` each says that there is no store for files."""
    made = APIRouter(
        prefix=prefix + shared.FILES,
        tags=["batches"],
        route_class=shared.OpenAIRoute,
        responses=REFUSALS,
    )
    routes = _Routes(parts)
    made.post("", openapi_extra=_UPLOAD)(routes.create)
    made.get("")(routes.listing)
    made.get("/{file}")(routes.look)
    made.get("/{file}/content", response_class=StreamingResponse, responses=_CONTENT)(
        routes.content
    )
    made.delete("/{file}")(routes.delete)
    return made


class _Routes:
    """The endpoints. A file of another tenant is one that does not exist."""

    def __init__(self, parts: Parts | None) -> None:
        self._maybe = parts

    @property
    def _parts(self) -> Parts:
        if self._maybe is None:
            raise no_store()
        return self._maybe

    async def create(self, request: Request) -> JSONResponse:
        """Take a file of purpose `batch`: one request a line, as the OpenAI API has it."""
        parts, caller = self._parts, shared.caller_of(request)
        shared.refuse_key(request)
        form = Form(request.headers.get("content-type", ""))
        if request.headers.get("content-encoding", "identity") != "identity":
            raise errors.UnsupportedEncodingError("send the file without a Content-Encoding")
        parts.charge(caller)
        with parts.uploads.held(caller.tenant):
            file = await self._take(parts, form, caller, request.stream())
        return JSONResponse(described(file))

    async def _take(
        self, parts: Parts, form: Form, caller: Principal, body: AsyncIterator[bytes]
    ) -> m.File:
        file = m.File(id=parts.new_id(), tenant=caller.tenant, purpose=INPUT, principal=caller.name)
        writer = parts.files.writer(file, parts.max_bytes)
        try:
            async for data in form.file(body):
                await writer.write(data)
            file.filename = form.filename or "file"
            file.expires_ms = now_ms() + 1000 * _kept_s(form.fields)
            await parts.files.announce(await writer.close())
        except BaseException:
            await asyncio.shield(writer.discard())
            raise
        return file

    async def listing(
        self,
        request: Request,
        after: Annotated[str, Query(max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=_MAX_LIMIT)] = _MAX_LIMIT,
        order: Literal["asc", "desc"] = "desc",
        purpose: Annotated[str, Query(max_length=64)] = "",
    ) -> JSONResponse:
        """List your tenant's files, newest first."""
        now = now_ms()
        found = [
            described(one)
            for one in self._parts.fold.files_of(shared.caller_of(request).tenant)
            if one.expires_ms > now and purpose in ("", one.purpose)
        ]
        if order == "desc":
            found.reverse()
        return JSONResponse(shared.page(found, after, limit).body())

    async def look(self, request: Request, file: str) -> JSONResponse:
        """Describe a file."""
        return JSONResponse(described(await self._find(request, file)))

    async def content(self, request: Request, file: str) -> Response:
        """Return what is in a file."""
        self._parts.charge(shared.caller_of(request))
        found = await self._find(request, file)
        pieces = self._parts.files.read(found)
        first = await anext(pieces, b"")
        head = {"content-length": str(found.n_bytes)}
        return StreamingResponse(_all(first, pieces), media_type=_BYTES, headers=head)

    async def delete(self, request: Request, file: str) -> JSONResponse:
        """Delete a file; a batch that has not read it yet fails."""
        self._parts.charge(shared.caller_of(request))
        found = await self._find(request, file)
        await self._parts.files.delete(found)
        body = {"id": batches.file_name(found.id), "object": "file", "deleted": True}
        return JSONResponse(body)

    async def _find(self, request: Request, name: str) -> m.File:
        return await self._parts.files.find(name, shared.caller_of(request).tenant)


async def _all(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def no_store() -> errors.JobsNotConfiguredError:
    """Return the error of a gateway that keeps nothing."""
    return errors.JobsNotConfiguredError(
        "this gateway has no object store: set INFERBUS_OBJECT_STORE_URL"
    )


def _kept_s(fields: dict[str, str]) -> int:
    """Return how long a file is kept, of the fields of its form, which are checked.

    Raises:
        ParameterError: a field is wrong.
    """
    if fields.get("purpose") != INPUT:
        raise ParameterError("purpose", f"purpose must be {INPUT}: files are for batches here")
    known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
    if unknown := set(fields) - known:
        name = min(unknown)
        raise ParameterError(name[:64], "unknown field of the form")
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise ParameterError("expires_after[anchor]", "expires_after.anchor must be created_at")
    said = fields.get("expires_after[seconds]", str(_KEPT_S))
    if not (said.isascii() and said.isdigit() and len(said) < 10):  # noqa: PLR2004 -- as many digits as a limit has, and some
        raise ParameterError("expires_after[seconds]", "expires_after.seconds must be a number")
    return check_kept_s(int(said), "expires_after[seconds]")


def check_kept_s(seconds: int, param: str) -> int:
    """Return for how long something is kept, where that is within bounds.

    Raises:
        ParameterError: it is not.
    """
    if not LEAST_KEPT_S <= seconds <= MOST_KEPT_S:
        raise ParameterError(param, f"{param} is from {LEAST_KEPT_S} to {MOST_KEPT_S}")
    return seconds


def described(file: m.File) -> dict[str, Any]:
    """Return a file as the OpenAI API has it."""
    return {
        "id": batches.file_name(file.id),
        "object": "file",
        "bytes": file.n_bytes,
        "created_at": ids.unix_ms(file.id) // 1000,
        "expires_at": file.expires_ms // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
