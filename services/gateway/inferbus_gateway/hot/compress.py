"""Compressed answers, for clients that ask for one coding by name.

In: an answer and a coding. Out: the answer, smaller, or as it was. A list of codings, which HTTP
libraries send by themselves, asks for nothing: on a fast network tensors compress slower than they
travel. Large bodies are compressed on another thread, so that nobody else waits.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

from inferbus_gateway.hot.answer import Answer

CODINGS: Final = {b"gzip": 31, b"deflate": 15}
"""The codings, and zlib's names for them."""

MIN_BYTES: Final = 1 << 10
"""A smaller body fits into a packet as it is."""
_INLINE_BYTES: Final = 32 << 10
_LEVEL: Final = 1


def compressing(coding: bytes, done: Callable[[Answer], None]) -> Callable[[Answer], None]:
    """Return what takes an answer instead of `done`, compresses it and passes it on to `done`."""

    def take(answer: Answer) -> None:
        if len(answer.body) < MIN_BYTES:
            done(answer)
        elif len(answer.body) <= _INLINE_BYTES:
            done(compressed(answer, coding))
        else:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(None, compressed, answer, coding)
            work.add_done_callback(lambda ended: done(ended.result()))

    return take


def compressed(answer: Answer, coding: bytes) -> Answer:
    """Return the answer with its body in `coding`, or as it is where that saves nothing."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, CODINGS[coding])
    body = packer.compress(answer.body) + packer.flush()
    if len(body) >= len(answer.body):
        return answer
    headers = [(name, value) for name, value in answer.headers if name != b"content-length"]
    headers.append((b"content-length", b"%d" % len(body)))
    headers.append((b"content-encoding", coding))
    return Answer(answer.status, headers, body)
