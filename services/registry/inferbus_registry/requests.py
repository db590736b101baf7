"""What endpoints read from a request besides its typed parameters."""

from __future__ import annotations

import asyncio

from fastapi import Request

from inferbus_registry import errors
from inferbus_registry.events import Caller

BODY_TIMEOUT_S = 30.0


def caller_of(request: Request) -> Caller:
    """Return who asks. Every listener is loopback until authentication exists."""
    return Caller(who="local", request_id=request.state.request_id)


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
