"""A GET on a loopback port, for probes and metrics: no client library, no pool, no redirects.

In: a port and a path. Out: the status and the body, or None where nobody answers.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from inferbus_dev.ports import LOOPBACK

OK = 200
TIMEOUT_S = 2.0


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: str


async def get(port: int, path: str) -> Answer | None:
    """Ask with HTTP/1.0, whose answers end with the connection."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nhost: {LOOPBACK}\r\n\r\n".encode())
                answer = await reader.read(-1)
            finally:
                writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return Answer(int(head.split()[1]), body.decode(errors="replace"))
    except (OSError, TimeoutError, ValueError, IndexError):
        return None
