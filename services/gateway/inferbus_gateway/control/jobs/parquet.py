"""Parquet in and out of jobs, by a process for each file; this side moves bytes only.

In: an upload, kept in a file without a name because its table of contents stands at its end; or
results. Out: rows, or the bytes of a file, as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import IO

import msgspec

from inferbus_gateway import errors
from inferbus_gateway.columns import wire
from inferbus_kit.lifecycle import cancel
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Signature

MEDIA_TYPE = "application/vnd.apache.parquet"
_PIECE_BYTES = 64 << 10
_ROWS_A_PART = 64
_MAX_PART_BYTES = 64 << 20
_ENVIRONMENT = {
    # One thread, and the allocator that gives memory back.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PATH": os.defpath,
}


async def spool(
    body: AsyncIterator[bytes], max_bytes: int, update: Callable[[bytes], None]
) -> IO[bytes]:
    """Return a file that holds a body and goes with its last descriptor; `update` sees all bytes.

    Raises:
        TooLargeError: it is over `max_bytes`.
    """
    kept = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    n_bytes = 0
    with contextlib.ExitStack() as undo:
        undo.callback(kept.close)
        async for piece in body:
            n_bytes += len(piece)
            if n_bytes > max_bytes:
                raise errors.TooLargeError(
                    f"the file is over {max_bytes} bytes; send several, or JSON lines"
                )
            update(piece)
            await asyncio.to_thread(kept.write, piece)
        await asyncio.to_thread(kept.flush)
        kept.seek(0)
        undo.pop_all()
    return kept


async def rows(
    kept: IO[bytes], signature: Signature, max_rows: int, max_row_bytes: int
) -> AsyncGenerator[m.Row]:
    """Yield the rows of a Parquet file.

    Raises:
        InvalidRequestError: it is none, or its columns are not the inputs.
        TooLargeError: it has too many rows, or parts that are too large.
    """
    what = wire.Reading(signature.inputs, max_rows, max_row_bytes)
    async with _child("read", what, stdin=kept) as child:
        assert child.stdout is not None  # noqa: S101 -- a pipe
        while True:
            kind, body = await _part(child.stdout)
            if kind == wire.ROWS:
                for row in m.Chunk.FromString(body).rows:
                    yield row
            elif kind == wire.END:
                return
            elif kind == wire.TOO_LARGE:
                raise errors.TooLargeError(body.decode())
            else:
                raise errors.InvalidRequestError(body.decode())


async def file(results: AsyncIterator[m.RowResult], signature: Signature) -> AsyncIterator[bytes]:
    """Yield the bytes of a Parquet file of results.

    Raises:
        FailedError: its process is gone.
    """
    what = wire.Writing(signature.outputs)
    async with _child("write", what, stdin=asyncio.subprocess.PIPE) as child:
        assert child.stdin is not None  # noqa: S101 -- pipes
        assert child.stdout is not None  # noqa: S101
        feeding = asyncio.create_task(_feed(child.stdin, results), name="parquet")
        try:
            while piece := await child.stdout.read(_PIECE_BYTES):
                yield piece
            await feeding
            if await child.wait():
                raise errors.FailedError("the file could not be written to its end")
        finally:
            await cancel(feeding)


async def _feed(stdin: asyncio.StreamWriter, results: AsyncIterator[m.RowResult]) -> None:
    held = m.ChunkResults()
    with contextlib.suppress(ConnectionError):
        async for row in results:
            held.rows.append(row)
            if len(held.rows) >= _ROWS_A_PART or len(row.prediction.outputs) > _PIECE_BYTES:
                stdin.write(wire.part(wire.ROWS, held.SerializeToString()))
                held = m.ChunkResults()
                await stdin.drain()
        stdin.write(wire.part(wire.ROWS, held.SerializeToString()) + wire.part(wire.END))
        await stdin.drain()
        stdin.close()


async def _part(stdout: asyncio.StreamReader) -> tuple[bytes, bytes]:
    try:
        kind, length = wire.HEAD.unpack(await stdout.readexactly(wire.HEAD.size))
        if length <= _MAX_PART_BYTES:
            return kind, await stdout.readexactly(length)
    except asyncio.IncompleteReadError:
        pass
    # It crashed, or ran out of what it may use.
    return wire.REFUSED, b"the file cannot be read as Parquet"


@contextlib.asynccontextmanager
async def _child(
    verb: str, what: wire.Reading | wire.Writing, stdin: int | IO[bytes]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the process for one file; it is gone when this is left, however that happens."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "inferbus_gateway.columns.child", verb),
        msgspec.json.encode(what).decode(),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_ENVIRONMENT,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
