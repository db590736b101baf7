"""A job from its upload to its acceptance.

In: a wish and the bytes of its input, as they stream. Out: chunks in the object store, then the
job, accepted at one moment: when the object that holds it is created. A gateway that dies before
leaves objects that nobody names; one that dies after leaves a job that any gateway goes on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from inferbus_gateway import errors
from inferbus_gateway.control.jobs import forms
from inferbus_gateway.control.jobs.chunks import Chunks, rows_per_chunk
from inferbus_gateway.control.jobs.dispatch import Dispatcher
from inferbus_gateway.control.jobs.forms import Form, Limits
from inferbus_gateway.control.jobs.turns import Busy, Turns
from inferbus_gateway.hot.route import Target
from inferbus_gateway.hot.shares import Shares
from inferbus_kit.objects import Objects
from inferbus_schemas import generation, jobs
from inferbus_schemas import messages as m


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants. `key`, or a given `job_id`, makes a second submission the same job.

    `version` is what the client called it: with the same key it cannot call it otherwise.
    `check` raises where who wants it may hand in no new one; what was taken before it may ask for.
    `traceparent` is of the span that takes it, empty where that is not sampled.
    """

    target: Target
    tenant: str
    principal: str
    key: str = ""
    client_job_id: str = ""
    job_id: bytes = b""
    version: str = ""
    check: Callable[[], None] | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class _Received:
    """An input that was read to its end."""

    folder: str
    sha256: bytes
    n_rows: int
    n_refused: int
    n_chunks: int


class Submissions:
    """Takes jobs.

    Invariants: a job is accepted whole or not at all; of all submissions with one key exactly one
    is accepted, and the others are told so or refused; memory holds a piece of the upload, one
    line and one chunk.
    """

    def __init__(
        self,
        objects: Objects,
        dispatcher: Dispatcher,
        limits: Limits,
        new_id: Callable[[], bytes],
        *,
        busy: Busy,
        load: Callable[[str], tuple[int, int]],
    ) -> None:
        self._load = load
        self._objects = objects
        self._dispatcher = dispatcher
        self._limits = limits
        self._new_id = new_id
        self._busy = busy
        self._uploads = Shares("uploads", limits.max_at_once, limits.max_tenant_at_once)

    async def submit(
        self, wish: Wish, body: AsyncIterator[bytes], form: Form = "lines"
    ) -> tuple[m.Job, bool]:
        """Take a job whose input has this form; tell whether it is new.

        Raises:
            TooLargeError, InvalidRequestError: its input.
            KeyReusedError: the key stands for another job.
            TooManyJobsError, TooManyJobRowsError: its tenant has as many as it may.
            RateLimitedError: earlier ones have used too many tokens.
            TenantBusyError, OverloadedError: too many are on their way in, of its tenant or in all.
            ObjectStoreError, BusUnavailableError: it was not accepted, or will go on by itself;
                with a key, sending it again tells.
        """
        with self._uploads.held(wish.tenant):
            return await self._submit(wish, body, form)

    async def _submit(
        self, wish: Wish, body: AsyncIterator[bytes], form: Form
    ) -> tuple[m.Job, bool]:
        max_rows = await self._room(wish)
        folder = f"uploads/{secrets.token_hex(16)}"
        accepted = False
        try:
            received = await self._receive(wish, body, folder, form, max_rows)
            job, accepted = await self._accept(wish, received)
        finally:
            if not accepted:
                await asyncio.shield(self._discard(folder))
        if accepted or not self._dispatcher.knows(job.id):
            await self._dispatcher.dispatch(job)
        return job, accepted

    async def submit_rows(
        self, wish: Wish, rows: AsyncIterator[m.Row], parent: bytes = b""
    ) -> m.Job:
        """Take a job of rows that were read already; they keep their numbers.

        Raises:
            InvalidRequestError: there are none.
            KeyReusedError: the key stands for another job.
            TooManyJobsError, TooManyJobRowsError, RateLimitedError: see `submit`.
            ObjectStoreError, BusUnavailableError: see `submit`.
        """
        max_rows = await self._room(wish)
        folder = f"uploads/{secrets.token_hex(16)}"
        try:
            received = await self._gather(wish, rows, folder, parent, max_rows)
        except BaseException:
            await asyncio.shield(self._discard(folder))
            raise
        try:
            # Where the store does not tell whether it was accepted, its rows are left alone.
            job, new = await self._accept(wish, received, parent)
        except errors.KeyReusedError:
            await self._discard(folder)
            raise
        if not new:
            await self._discard(folder)
        if new or not self._dispatcher.knows(job.id):
            await self._dispatcher.dispatch(job)
        return job

    async def _gather(
        self,
        wish: Wish,
        rows: AsyncIterator[m.Row],
        folder: str,
        parent: bytes,
        max_rows: int,
    ) -> _Received:
        """Take rows to their end, keeping their chunks under `folder`."""
        chunks = Chunks(rows_per_chunk(wish.target.manifest, generation.TASK))
        n_rows = n_refused = n_chunks = 0
        digest = hashlib.sha256(parent)
        digest.update(_named(wish.version))
        async for row in rows:
            n_rows += 1
            n_refused += bool(row.refused)
            if n_rows > max_rows:
                raise errors.TooManyJobRowsError
            digest.update(row.SerializeToString(deterministic=True))
            if (full := chunks.add(row)) is not None:
                await self._keep(folder, n_chunks, full)
                n_chunks += 1
        if (rest := chunks.rest()) is not None:
            await self._keep(folder, n_chunks, rest)
            n_chunks += 1
        if not n_rows:
            raise errors.InvalidRequestError("no row of the job can be tried again")
        return _Received(folder, digest.digest(), n_rows, n_refused, n_chunks)

    async def _room(self, wish: Wish) -> int:
        """Return how many rows a tenant may have on top of those of its unfinished jobs.

        Gateways know of each other's jobs a moment later: several at once may pass the limit.

        Raises:
            TooManyJobsError, TooManyJobRowsError: it has as many as it may.
            RateLimitedError: earlier ones have used too many tokens.
        """
        try:
            return self._room_of_new(wish)
        except (errors.RateLimitedError, errors.TooManyJobsError, errors.TooManyJobRowsError):
            sha256 = hashlib.sha256(wish.key.encode()).digest()
            path = jobs.key_path(wish.tenant, sha256)
            if not wish.key or await self._objects.get(path) is None:
                raise
            return self._limits.max_tenant_rows  # it is most likely there already

    def _room_of_new(self, wish: Wish) -> int:
        limits = self._limits
        n_jobs, n_rows = self._load(wish.tenant)
        if n_jobs >= limits.max_tenant_jobs:
            raise errors.TooManyJobsError
        if n_rows >= limits.max_tenant_rows:
            raise errors.TooManyJobRowsError
        if wish.check is not None:
            wish.check()
        return limits.max_tenant_rows - n_rows

    async def _receive(
        self, wish: Wish, body: AsyncIterator[bytes], folder: str, form: Form, max_rows: int
    ) -> _Received:
        """Read an upload to its end, keeping its chunks under `folder`."""
        digest = hashlib.sha256(_named(wish.version) if wish.version else b"")
        manifest, limits = wish.target.manifest, self._limits
        chunks = Chunks(rows_per_chunk(manifest, generation.TASK))
        n_rows = n_refused = n_chunks = 0
        turns = Turns(self._busy)
        rows = forms.rows(form, body, manifest.signature, limits, digest.update, tenant=wish.tenant)
        async with contextlib.aclosing(rows):
            async for row in rows:
                n_rows += 1
                n_refused += bool(row.refused)
                if n_rows > limits.max_rows:
                    raise errors.TooLargeError(
                        f"the input has over {limits.max_rows} rows; send several jobs"
                    )
                if n_rows > max_rows:
                    raise errors.TooManyJobRowsError
                if (full := chunks.add(row)) is not None:
                    await self._keep(folder, n_chunks, full)
                    n_chunks += 1
                await turns.pause()
        if (rest := chunks.rest()) is not None:
            await self._keep(folder, n_chunks, rest)
            n_chunks += 1
        if not n_rows:
            raise errors.InvalidRequestError("the input has no rows; send one JSON object a line")
        return _Received(folder, digest.digest(), n_rows, n_refused, n_chunks)

    async def _keep(self, folder: str, number: int, chunk: m.Chunk) -> None:
        await self._objects.put(jobs.input_path(folder, number), chunk.SerializeToString())

    async def _accept(
        self, wish: Wish, received: _Received, parent: bytes = b""
    ) -> tuple[m.Job, bool]:
        """Make the job, or return the one that stands for the key already."""
        target = wish.target
        key_sha256 = hashlib.sha256(wish.key.encode()).digest() if wish.key else b""
        job = m.Job(
            id=wish.job_id or await self._id(wish.tenant, key_sha256),
            tenant=wish.tenant,
            model=target.model,
            version=target.version,
            pool=target.pool,
            n_rows=received.n_rows,
            n_chunks=received.n_chunks,
            n_refused=received.n_refused,
            input=received.folder,
            input_sha256=received.sha256,
            n_partitions=await self._dispatcher.n_prediction_partitions(),
            parent=parent,
            client_job_id=wish.client_job_id,
            principal=wish.principal,
            key_sha256=key_sha256,
            traceparent=wish.traceparent,
        )
        if await self._objects.create(jobs.job_path(job.id), job.SerializeToString()):
            return job, True
        first = m.Job.FromString(await self._objects.get(jobs.job_path(job.id)) or b"")
        if (first.model, first.input_sha256) != (job.model, job.input_sha256):
            raise errors.KeyReusedError("this key stands for a job with another model or input")
        return first, False

    async def _id(self, tenant: str, key_sha256: bytes) -> bytes:
        """Return a new id, or the one that the key stands for."""
        fresh = self._new_id()
        if not key_sha256:
            return fresh
        path = jobs.key_path(tenant, key_sha256)
        if await self._objects.create(path, fresh):
            return fresh
        return await self._objects.get(path) or fresh

    async def _discard(self, folder: str) -> None:
        with contextlib.suppress(errors.InferbusError):
            await self._objects.delete_folder(folder)


def _named(version: str) -> bytes:
    return f"{len(version)}:{version}".encode()
