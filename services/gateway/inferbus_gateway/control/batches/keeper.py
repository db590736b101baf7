"""Batches from their acceptance to their end.

In: batches that `jobs.status` tells of, and the progress of their jobs. Out: for each first a job,
or the errors of its input; then its output files and its end. Each step may be done by any gateway
and more than once: all of its names follow from the batch, and the first to create an object or to
tell an end has it. The gateway that took a batch goes first, another one after some seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog
from aiokafka.errors import KafkaError

from inferbus_gateway import errors
from inferbus_gateway.control.batches import answers
from inferbus_gateway.control.batches.files import Files, now_ms
from inferbus_gateway.control.batches.fold import BatchFold, Known
from inferbus_gateway.control.batches.lines import LineReader, model_of
from inferbus_gateway.control.jobs.dispatch import Dispatcher
from inferbus_gateway.control.jobs.fold import Fold, Progress
from inferbus_gateway.control.jobs.lines import Lines
from inferbus_gateway.control.jobs.submit import Submissions, Wish
from inferbus_gateway.control.jobs.turns import Busy, Turns
from inferbus_gateway.hot.route import Routes, Target
from inferbus_kit.consume import Record
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Health
from inferbus_kit.objects import Objects
from inferbus_schemas import batches, ids, jobs
from inferbus_schemas import messages as m

_log = structlog.get_logger("batches")

_LOOK_S = 0.5
_OTHERS_MS = 10_000
_BYTES_PER_MS = 1000
"""Another gateway takes over what is so much later than an input of its size needs."""
_AT_ONCE = 2
_GIVEN_UP_MS = 3600 * 1000
_SWEEP_S = 600.0
_KEPT_MS = 7 * 24 * 3600 * 1000


class _UnfitError(Exception):
    """The input of a batch cannot be run; `errors` say why."""

    def __init__(self, found: list[m.BatchError]) -> None:
        super().__init__("the input cannot be run")
        self.errors = found


def model_not_found(message: str) -> m.BatchError:
    """Return the error of a batch whose model is not there, or not for who sent it."""
    return m.BatchError(code="model_not_found", message=message, param="body.model", line=1)


def batch_feed(fold: BatchFold) -> Callable[[Record], None]:
    """Return what applies records of `jobs.status` to `fold`."""

    def apply(record: Record) -> None:
        if record.value is not None:
            fold.apply(m.JobStatus.FromString(record.value), record.timestamp)
        elif (file_id := batches.file_of(record.key or b"")) is not None:
            fold.forget_file(file_id)
        elif (batch_id := batches.batch_of(record.key or b"")) is not None:
            fold.forget_batch(batch_id)

    return apply


@dataclass(frozen=True, slots=True)
class Around:
    """What a keeper works with; `max_line_bytes` is that of a body and of its tensors."""

    objects: Objects
    fold: BatchFold
    files: Files
    job_fold: Fold
    dispatcher: Dispatcher
    submissions: Submissions
    routes: Routes
    health: Health
    max_line_bytes: int
    busy: Busy


class Keeper:
    """Brings batches to their ends.

    Invariants: each batch ends once, in the end that the bus names first; a row that was run is in
    one of its files, in the order of the input, and so is one that was not; trouble of the store
    or of Kafka only takes time.
    """

    def __init__(self, around: Around) -> None:
        self._around = around
        self._mine: set[bytes] = set()
        self._working: dict[bytes, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._swept_s = time.monotonic()

    async def accept(self, batch: m.Batch) -> Known:
        """Take a batch.

        Raises:
            ObjectStoreError, BusUnavailableError: it may have been taken or not.
        """
        await self._around.objects.put(batches.batch_path(batch.id), batch.SerializeToString())
        await self._say(batches.batch_key(batch.id), m.JobStatus(batch=batch))
        self._mine.add(batch.id)
        return await self.find(batches.batch_name(batch.id), batch.tenant)

    async def refuse(self, batch: m.Batch, error: m.BatchError) -> Known:
        """Take a batch that fails at once.

        Raises:
            ObjectStoreError, BusUnavailableError: it may have been taken or not.
        """
        await self.accept(batch)
        await self._end(m.BatchEnded(batch=batch.id, end=m.BATCH_END_FAILED, errors=[error]))
        return await self.find(batches.batch_name(batch.id), batch.tenant)

    async def find(self, name: str, tenant: str) -> Known:
        """Return a batch of a tenant by its name.

        Raises:
            NotFoundError: the tenant has none of that name.
            ObjectStoreError: nobody can say.
        """
        batch_id = batches.parse_batch(name)
        if batch_id is not None:
            known = self._around.fold.batch(batch_id)
            if known is None:
                # Another gateway may have taken it a moment ago.
                raw = await self._around.objects.get(batches.batch_path(batch_id))
                known = None if raw is None else Known(m.Batch.FromString(raw))
            if known is not None and known.batch.tenant == tenant:
                return known
        raise errors.NotFoundError("there is no such batch")

    def progress(self, known: Known) -> Progress | None:
        """Return how far the job of a batch is; None while there is none."""
        return self._around.job_fold.progress(known.batch.id, now_ms())

    async def cancel(self, known: Known, principal: str) -> None:
        """Say that nobody wants the rest of a batch.

        Raises:
            ObjectStoreError, BusUnavailableError: it may be cancelled or not.
        """
        await self._around.dispatcher.cancel(m.Job(id=known.batch.id), principal)
        said = m.JobStatus(cancelled=m.JobCancelled(job=known.batch.id, principal=principal))
        self._around.fold.apply(said, now_ms())

    async def run(self) -> None:
        """Look after the batches until cancelled."""
        health = self._around.health
        health.watch("batches", 120.0)
        try:
            while True:
                health.beat("batches")
                await asyncio.sleep(_LOOK_S)
                for known in self._around.fold.open():
                    self._look(known)
                if time.monotonic() - self._swept_s > _SWEEP_S:
                    self._swept_s = time.monotonic()
                    await self._try(self.sweep(now_ms() - _KEPT_MS), b"")
        finally:
            for task in self._working.values():
                task.cancel()

    def _look(self, known: Known) -> None:
        """Begin the next step of a batch where it is due."""
        batch_id = known.batch.id
        if batch_id in self._working:
            return
        work = None
        job = self.progress(known)
        if job is not None and job.finished:
            if self._is_turn(batch_id, job.finished_ms, 0):
                work = self._finalize(known, job)
        elif now_ms() > known.batch.expires_ms and not known.cancelled_ms:
            work = self.cancel(known, "")
        elif now_ms() > known.batch.expires_ms + _GIVEN_UP_MS and job is None:
            # There was no room for its rows for a day and an hour.
            work = self._end(m.BatchEnded(batch=batch_id, end=m.BATCH_END_EXPIRED))
        elif job is None:
            size = self._around.fold.file(known.batch.input_file)
            n_bytes = 0 if size is None else size.n_bytes
            if self._is_turn(batch_id, ids.unix_ms(batch_id), n_bytes):
                work = self._begin(known)
        if work is not None:
            task = asyncio.create_task(self._in_turn(work, batch_id), name="batch")
            self._working[batch_id] = task
            task.add_done_callback(lambda _: self._working.pop(batch_id, None))

    def _is_turn(self, batch_id: bytes, since_ms: int, n_bytes: int) -> bool:
        late_ms = now_ms() - since_ms - n_bytes // _BYTES_PER_MS
        return batch_id in self._mine or late_ms > _OTHERS_MS

    async def _in_turn(self, work: Awaitable[None], batch_id: bytes) -> None:
        async with self._room:
            try:
                await self._try(work, batch_id)
            except Exception:  # noqa: BLE001 -- whatever it is, it would only happen again
                _log.exception("batch_broke", batch=batch_id.hex())
                why = m.BatchError(code="internal_error", message="the batch broke something here")
                failed = m.BatchEnded(batch=batch_id, end=m.BATCH_END_FAILED, errors=[why])
                await self._try(self._end(failed), batch_id)

    async def _try(self, work: Awaitable[None], batch_id: bytes) -> None:
        try:
            await work
        except (InferbusError, KafkaError, TimeoutError) as error:
            _log.warning("batch_waits", batch=batch_id.hex(), error=repr(error))
            await asyncio.sleep(_LOOK_S)

    async def _begin(self, known: Known) -> None:
        """Make a job of a batch's lines, or end it where they are none."""
        batch = known.batch
        try:
            target = self._target(batch)
            reader = LineReader(batch.endpoint, batch.model, target, self._around.max_line_bytes)
            rows = self._rows(batch, reader)
            if target is None:
                # There is no model to ask, so there are no lines or something is wrong with them.
                async for _ in rows:
                    continue
                return
            wish = Wish(
                target,
                batch.tenant,
                batch.principal,
                job_id=batch.id,
                traceparent=batch.traceparent,
            )
            await self._around.submissions.submit_rows(wish, rows)
        except _UnfitError as unfit:
            if await self._around.objects.exists(jobs.job_path(batch.id)):
                return  # another gateway made a job of it in time
            _log.info("batch_failed", batch=batch.id.hex(), n_errors=len(unfit.errors))
            ended = m.BatchEnded(batch=batch.id, end=m.BATCH_END_FAILED, errors=unfit.errors)
            await self._end(ended)

    def _target(self, batch: m.Batch) -> Target | None:
        """Return what a batch asks; None where its first line names no model.

        Raises:
            _UnfitError: there is no such model.
        """
        if not batch.model:
            return None
        name, _, version = batch.model.partition(":")
        try:
            return self._around.routes.resolve(name, version)
        except (errors.UnknownModelError, errors.NotDeployedError) as error:
            raise _UnfitError([model_not_found(str(error))]) from None

    async def _rows(self, batch: m.Batch, reader: LineReader) -> AsyncIterator[m.Row]:
        """Yield the rows of a batch's input.

        Raises:
            _UnfitError: it is none.
        """
        n_rows = 0
        turns = Turns(self._around.busy)
        async for line in self._lines(batch):
            row = reader.read(line)
            if reader.hopeless:
                break
            if row is not None:
                n_rows += 1
                yield row
            await turns.pause()
        if reader.errors:
            raise _UnfitError(reader.errors)
        if not n_rows:
            raise _UnfitError([m.BatchError(code="empty_file", message="the input has no lines")])

    async def model_of(self, batch: m.Batch) -> str:
        """Return the model that the first line of a batch's input asks; empty where it says none.

        Raises:
            ObjectStoreError: it cannot be read.
        """
        with contextlib.suppress(_UnfitError):
            async for line in self._lines(batch):
                return model_of(line)
        return ""

    async def _lines(self, batch: m.Batch) -> AsyncIterator[bytes | None]:
        """Yield the lines of a batch's input; None stands for one that is too long.

        Raises:
            ObjectStoreError: it cannot be read.
            _UnfitError: it was deleted.
        """
        lines = Lines(self._around.max_line_bytes)
        try:
            file = await self._around.files.find(batches.file_name(batch.input_file), batch.tenant)
            async for piece in self._around.files.read(file):
                for line in lines.feed(piece):
                    yield line
        except errors.NotFoundError:
            why = m.BatchError(
                code="invalid_input_file", message="the input is gone", param="input_file_id"
            )
            raise _UnfitError([why]) from None
        for line in lines.end():
            yield line

    async def _finalize(self, known: Known, job: Progress) -> None:
        """Write the output files of a batch whose rows all have their results, then its end."""
        batch = known.batch
        ended = m.BatchEnded(batch=batch.id, n_rows=job.job.n_rows, n_ok=job.n_ok)
        if job.n_cancelled:
            ended.end = m.BATCH_END_EXPIRED if known.expired else m.BATCH_END_CANCELLED
        else:
            ended.end = m.BATCH_END_COMPLETED
        good, bad = (self._output(batch, kind) for kind in ("output", "error"))
        good_to, bad_to = (self._around.files.writer(file) for file in (good, bad))
        async for row, said in self._results(job.job):
            ended.prompt_tokens += said.generated.prompt_tokens + said.input_tokens
            ended.cached_tokens += said.generated.cached_tokens
            ended.completion_tokens += said.generated.completion_tokens
            line = answers.line(batch.endpoint, row, said, expired=known.expired)
            await (good_to if line.good else bad_to).write(line.raw)
        if good.n_bytes:
            await self._around.files.announce(await good_to.close())
            ended.output_file = good.id
        if bad.n_bytes:
            await self._around.files.announce(await bad_to.close())
            ended.error_file = bad.id
        await self._end(ended)

    def _output(self, batch: m.Batch, kind: str) -> m.File:
        return m.File(
            id=batches.output_id(batch.id, kind),
            tenant=batch.tenant,
            filename=f"{batches.batch_name(batch.id)}_{kind}.jsonl",
            purpose="batch_output",
            expires_ms=now_ms() + batch.outputs_kept_ms,
            principal=batch.principal,
        )

    async def _results(self, job: m.Job) -> AsyncIterator[tuple[m.Row, m.Prediction]]:
        """Yield each row of a job and how it ended."""
        objects = self._around.objects
        turns = Turns(self._around.busy)
        for number in range(job.n_chunks):
            raw = await objects.get(jobs.results_path(job.id, number))
            given = await objects.get(jobs.input_path(job.input, number))
            if raw is None or given is None:
                raise errors.NotFoundError("the results of this batch are gone")
            rows = m.Chunk.FromString(given).rows
            for row, result in zip(rows, m.ChunkResults.FromString(raw).rows, strict=True):
                yield row, result.prediction
                await turns.pause()

    async def _end(self, ended: m.BatchEnded) -> None:
        known = self._around.fold.batch(ended.batch)
        if known is None or known.ended is None:
            await self._say(batches.ended_key(ended.batch), m.JobStatus(batch_ended=ended))
        self._mine.discard(ended.batch)

    async def _say(self, key: str, said: m.JobStatus) -> None:
        try:
            await self._around.dispatcher.say(key, said)
        except (KafkaError, TimeoutError) as error:
            raise errors.BusUnavailableError("Kafka takes nothing at present") from error
        self._around.fold.apply(said, now_ms())

    async def sweep(self, older_ms: int) -> None:
        """Delete the files whose time is over, and batches that ended before a time (UTC, ms).

        Raises:
            ObjectStoreError, BusUnavailableError, KafkaError, TimeoutError: some may be left.
        """
        await self._around.files.sweep()
        for batch in self._around.fold.ended_before(older_ms):
            await self._around.objects.delete(batches.batch_path(batch.id))
            await self._around.dispatcher.say(batches.ended_key(batch.id), None)
            await self._around.dispatcher.say(batches.batch_key(batch.id), None)
            self._around.fold.forget_batch(batch.id)
