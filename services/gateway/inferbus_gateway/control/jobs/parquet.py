"""Parquet in and out of jobs, by a process for each file; this side moves bytes only.

In: an upload, kept in a file without a name because its table of contents stands at its end; or
results. Out: rows, or the bytes of a file, as they come. What is written is kept in such a file
too: its process ends as soon as it can, however slowly a client takes the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import IO
from weakref import WeakValueDictionary

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


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a client must take a file, on the whole, once it was waited for so long."""

    least_bytes_per_s: int = 64 << 10
    patience_s: float = 60.0

    def holds(self, n_bytes: int, taken_s: float) -> bool:
        """Tell whether so many bytes in so long are enough."""
        return n_bytes >= self.least_bytes_per_s * (taken_s - self.patience_s)


_PACE = Pace()


class Slots:
    """Places for processes that read or write Parquet, and for files that are being fetched.

    Invariants: at most `n` processes run at once, whatever starts them, and at most `n_fetched`
    files are kept; of a tenant no more than its share; who finds no place for `wait_s` is refused.
    """

    def __init__(
        self,
        n: int = 2,
        n_fetched: int = 16,
        wait_s: float = 10.0,
        *,
        n_tenant: int = 1,
        n_tenant_fetched: int = 4,
        pace: Pace = _PACE,
    ) -> None:
        self._pace = pace
        self._processes = _Places("being read or written", n, n_tenant, wait_s)
        self._fetched = _Places("being fetched", n_fetched, n_tenant_fetched, wait_s)

    def of(self, tenant: str) -> Share:
        """Return what a tenant may hold of them."""
        return Share(self._processes, self._fetched, tenant, self._pace)


@dataclass(frozen=True, slots=True)
class Share:
    """The places as one tenant finds them, and how fast it must be with them."""

    _processes: _Places
    _fetched: _Places
    _tenant: str
    pace: Pace

    def process(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold a place of a process.

        Raises:
            OverloadedError, TenantBusyError: none is free, or none for this tenant.
        """
        return self._processes.held(self._tenant)

    def fetched(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold a place of a file that is being fetched.

        Raises:
            OverloadedError, TenantBusyError: none is free, or none for this tenant.
        """
        return self._fetched.held(self._tenant)


class _Places:
    """Places of one kind; a tenant that waits for one of its own keeps none from others."""

    def __init__(self, what: str, n: int, n_tenant: int, wait_s: float) -> None:
        self._what = what
        self._free = asyncio.Semaphore(n)
        self._n_tenant = n_tenant
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._wait_s = wait_s

    @contextlib.asynccontextmanager
    async def held(self, tenant: str) -> AsyncIterator[None]:
        share = self._shares.setdefault(tenant, asyncio.Semaphore(self._n_tenant))
        refusal: errors.InferbusError = errors.TenantBusyError(
            f"as many Parquet files of your tenant as may be are {self._what}; try again shortly"
        )
        async with contextlib.AsyncExitStack() as places:
            try:
                async with asyncio.timeout(self._wait_s):
                    await places.enter_async_context(share)
                    refusal = errors.OverloadedError(
                        f"too many Parquet files are {self._what}; try again shortly"
                    )
                    await places.enter_async_context(self._free)
            except TimeoutError:
                raise refusal from None
            yield


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
    share: Share, kept: IO[bytes], signature: Signature, max_rows: int, max_row_bytes: int
) -> AsyncGenerator[m.Row]:
    """Yield the rows of a Parquet file.

    Raises:
        InvalidRequestError: it is none, or its columns are not the inputs.
        TooLargeError: it has too many rows, or parts that are too large.
        OverloadedError, TenantBusyError: too many files are being read or written.
    """
    what = wire.Reading(signature.inputs, max_rows, max_row_bytes)
    async with share.process(), _child("read", what, stdin=kept) as child:
        while True:
            kind, body = await _part(child)
            if kind == wire.ROWS:
                for row in m.Chunk.FromString(body).rows:
                    yield row
            elif kind == wire.END:
                return
            elif kind == wire.TOO_LARGE:
                raise errors.TooLargeError(body.decode())
            else:
                raise errors.InvalidRequestError(body.decode())


async def file(
    share: Share, results: AsyncIterator[m.RowResult], signature: Signature, max_bytes: int
) -> AsyncGenerator[bytes]:
    """Yield the bytes of a Parquet file of results; the first once it is whole or 64 KiB long.

    Raises:
        OutputTooLargeError: it takes more than `max_bytes`, or than its process may use.
        FailedError: its process is gone, or the client hardly takes any bytes.
        OverloadedError, TenantBusyError: too many are being read or written, or fetched.
    """
    async with share.fetched():
        kept = _Kept(max_bytes)
        writing = asyncio.create_task(_write(share, kept, results, signature), name="parquet")
        writing.add_done_callback(lambda _: kept.more.set())
        at, taken_s = 0, 0.0
        try:
            while True:
                if writing.done():
                    writing.result()
                elif kept.n_bytes - at < _PIECE_BYTES:
                    kept.more.clear()
                    await kept.more.wait()
                    continue
                if not (piece := await asyncio.to_thread(kept.read, at)):
                    break
                since_s = time.monotonic()
                yield piece
                at, taken_s = at + len(piece), taken_s + time.monotonic() - since_s
                if not share.pace.holds(at, taken_s):
                    raise errors.FailedError("the file is fetched too slowly to be kept any longer")
        finally:
            try:
                await cancel(writing)
            finally:
                kept.close()


class _Kept:
    """A file that is read while it is written.

    Invariants: it has at most `max_bytes`; it goes with its descriptor.
    """

    def __init__(self, max_bytes: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- see close
        self._max_bytes = max_bytes
        self.n_bytes = 0
        self.more = asyncio.Event()
        self.close = self._file.close

    async def add(self, piece: bytes) -> None:
        """Write at the end.

        Raises:
            OutputTooLargeError: it would be too large.
        """
        if self.n_bytes + len(piece) > self._max_bytes:
            raise _too_large(f"over {self._max_bytes} bytes")
        await asyncio.to_thread(self._add, piece)
        self.n_bytes += len(piece)
        self.more.set()

    def _add(self, piece: bytes) -> None:
        self._file.write(piece)
        self._file.flush()

    def read(self, at: int) -> bytes:
        """Return what was written at a place, a piece at most."""
        return os.pread(self._file.fileno(), _PIECE_BYTES, at)


def _too_large(why: str) -> errors.OutputTooLargeError:
    return errors.OutputTooLargeError(f"as Parquet the results are {why}; read them as JSON lines")


async def _write(
    share: Share, kept: _Kept, results: AsyncIterator[m.RowResult], signature: Signature
) -> None:
    what = wire.Writing(signature.outputs)
    async with share.process(), _child("write", what, stdin=asyncio.subprocess.PIPE) as child:
        assert child.stdin is not None  # noqa: S101 -- pipes
        assert child.stdout is not None  # noqa: S101
        feeding = asyncio.create_task(_feed(child.stdin, results), name="parquet")
        try:
            while piece := await child.stdout.read(_PIECE_BYTES):
                await kept.add(piece)
            await feeding
            status = await child.wait()
        finally:
            await cancel(feeding)
    if status in {wire.NO_MEMORY, -signal.SIGXCPU}:
        raise _too_large("more than a process of ours may work on")
    if status:
        raise errors.FailedError("the file could not be written to its end")


async def _feed(stdin: asyncio.StreamWriter, results: AsyncIterator[m.RowResult]) -> None:
    held = m.ChunkResults()
    try:
        async for row in results:
            held.rows.append(row)
            if len(held.rows) >= _ROWS_A_PART or len(row.prediction.outputs) > _PIECE_BYTES:
                stdin.write(wire.part(wire.ROWS, held.SerializeToString()))
                held = m.ChunkResults()
                await stdin.drain()
        stdin.write(wire.part(wire.ROWS, held.SerializeToString()) + wire.part(wire.END))
        await stdin.drain()
    except ConnectionError:
        pass  # It is gone; how it ended says why.
    finally:
        # A process whose rows do not come any more ends by this.
        stdin.close()


async def _part(child: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    assert child.stdout is not None  # noqa: S101 -- a pipe
    try:
        kind, length = wire.HEAD.unpack(await child.stdout.readexactly(wire.HEAD.size))
        if length <= _MAX_PART_BYTES:
            return kind, await child.stdout.readexactly(length)
    except asyncio.IncompleteReadError:
        if await child.wait() == -signal.SIGXCPU:
            return wire.TOO_LARGE, b"the file takes too long to read; send several"
    # It crashed.
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
        # While a pipe holds bytes that nobody reads, asyncio does not tell that it ended.
        assert child.stdout is not None  # noqa: S101 -- a pipe
        while await child.stdout.read(_PIECE_BYTES):
            pass
        await child.wait()
