"""What endpoints read from a request besides its typed parameters."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from inferbus_registry import errors
from inferbus_registry.events import Caller
from inferbus_schemas import access

BODY_TIMEOUT_S = 30.0
MAX_JSON_BYTES = 64 << 10

Text = Annotated[str, Query(max_length=63, pattern=r"^[ -~]*$")]
"""A name or id in a query; what none can hold, as a NUL, no database is asked for."""

T = TypeVar("T", bound=BaseModel)


def caller_of(request: Request) -> Caller:
    """Return who asks, for the history."""
    return Caller(who=principal_of(request).who, request_id=request.state.request_id)


def principal_of(request: Request) -> access.Principal:
    """Return who asks; the door has let nobody else in."""
    found: access.Principal = request.state.principal
    return found


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return a whole small body.

    Raises:
        TooLargeError, UploadTooSlowError: see there.
    """
    chunks: list[bytes] = []
    total = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                total += len(chunk)
                if total > max_bytes:
                    raise errors.TooLargeError(max_bytes)
                chunks.append(chunk)
    except TimeoutError as error:
        raise errors.UploadTooSlowError from error
    return b"".join(chunks)


async def read_json(request: Request, kind: type[T]) -> T:
    """Return a small JSON body as `kind`; FastAPI itself would read a body of any size.

    Raises:
        RequestValidationError, TooLargeError, UploadTooSlowError: see there.
    """
    raw = await read_body(request, MAX_JSON_BYTES)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found) from error


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of a route that reads its body with `read_json`."""
    content = {"application/json": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
