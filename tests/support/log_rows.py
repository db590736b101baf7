"""Rows of the log by the request that they answer.

In: a stack and the id of a request. Out: its row once it is there; the texts in it.
"""

from __future__ import annotations

import asyncio

import asyncpg

from inferbus_dev.stack import Stack
from inferbus_schemas import messages as m
from inferbus_schemas import tensors


async def row(stack: Stack, request_id: str, timeout_s: float = 60.0) -> asyncpg.Record:
    """Wait for a request's row of the log."""
    connection = await asyncpg.connect(stack.postgres, ssl=False)
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = await connection.fetchrow(
                    "SELECT * FROM log.predictions WHERE request_id = $1::uuid", request_id
                )
                if found is not None:
                    return found
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


def texts_of(found: asyncpg.Record) -> list[str]:
    """Return the texts in a row, whose digest must hold."""
    (tensor,) = m.TensorSet.FromString(found["output"]).tensors
    assert tensors.output_sha256([tensor]) == found["output_sha256"]
    return [text.decode() for text in tensors.split_bytes(tensor.data)]


def text_of(found: asyncpg.Record) -> str:
    """Return the one text in a row."""
    (text,) = texts_of(found)
    return text
