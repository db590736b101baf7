"""Answers that are made while they are sent.

In: a generator of bytes. Out: a response that ends it, however the response ends: what it holds is
let go when a client leaves, and not when the cycle collector comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class Streamed(StreamingResponse):
    """A response that closes what it streams."""

    def __init__(self, pieces: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__(pieces, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with contextlib.aclosing(self._pieces):
            await super().__call__(scope, receive, send)
