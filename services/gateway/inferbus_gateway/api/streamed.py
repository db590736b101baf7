"""Answers that are made while they are sent.

In: a generator of bytes. Out: a response that ends it, however the response ends: what it holds is
let go when a client leaves, and not when the cycle collector comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from inferbus_gateway.errors import FailedError


class Streamed(StreamingResponse):
    """A response that closes what it streams; a client takes each piece within `patience_s`."""

    def __init__(
        self, pieces: AsyncGenerator[bytes], media_type: str, patience_s: float | None = None
    ) -> None:
        super().__init__(pieces, media_type=media_type)
        self._pieces = pieces
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            FailedError: the client does not take it.
        """

        async def patiently(message: Message) -> None:
            limit = asyncio.timeout(self._patience_s)
            try:
                async with limit:
                    await send(message)
            except TimeoutError:
                if limit.expired():
                    raise FailedError("the answer is not taken") from None
                raise

        async with contextlib.aclosing(self._pieces):
            await super().__call__(scope, receive, patiently)
