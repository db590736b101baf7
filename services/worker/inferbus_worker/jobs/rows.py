"""Rows of a chunk through the executor of their version, each to the record that ends it.

In: the rows of a chunk. Out: one prediction a row, in their order, none of them on the stream yet.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from inferbus_kit.consume import Record
from inferbus_schemas import generation, jobs
from inferbus_schemas import messages as m
from inferbus_worker.hot.consume import Desk
from inferbus_worker.hot.work import Frame, Work
from inferbus_worker.jobs.pace import Pace, Requests

_LOOK_S = 0.02
_CANCEL_LOOK_S = 1.0
_WAIT_FOR_VERSION_S = 120.0
_ROW_DEADLINE_S = 3600.0
_TRIES = 5
_MAX_RESULT_BYTES = 64 << 20
_US = 1e6

Cancelled = Callable[[], Awaitable[bool]]


class _Nowhere:
    """An inbox for frames that nobody commits."""

    def frame_done(self, offset: int) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Place:
    """The record that a row's request would have come by: none."""

    timestamp: int
    topic: str = ""
    partition: int = -1
    offset: int = -1
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class RowRunner:
    """Runs rows, one chunk at a time.

    Invariants: each row gets exactly one record; no more rows are with the executor than the pace
    allows; a row whose attempt failed is tried again, a few times, once its version is held.
    """

    def __init__(self, desk: Desk, instance: str) -> None:
        self._desk = desk
        self._instance = instance
        self._paces: dict[tuple[str, int], Pace] = {}
        self._turn = asyncio.Lock()

    async def run(self, job: m.Job, chunk: m.Chunk, cancelled: Cancelled) -> list[m.Prediction]:
        """Return the records of a chunk's rows; of a job that is cancelled, what it had by then."""
        async with self._turn:
            run = _Run(self, job, chunk)
            return await run.to_its_end(cancelled)

    def pace(self, job: m.Job, job_rows: tuple[int, int]) -> Pace:
        """Return the pace of a job's version; `job_rows` as its executor says."""
        key = (job.model, job.version)
        if key not in self._paces:
            self._paces[key] = Pace(*job_rows)
        return self._paces[key]

    def took(self, job: m.Job, row_s: float) -> None:
        """Note what a row cost its engine."""
        if (pace := self._paces.get((job.model, job.version))) is not None:
            pace.took(row_s)

    def ended(self, job: m.Job) -> None:
        """Note that no row of the version is with its engine."""
        if (pace := self._paces.get((job.model, job.version))) is not None:
            pace.ended(time.monotonic())

    @property
    def desk(self) -> Desk:
        """Where the executors are."""
        return self._desk

    def record(
        self, job: m.Job, row: m.Row, outcome: m.Outcome, why: tuple[str, str]
    ) -> m.Prediction:
        """Return the record of a row that no engine ran; `why` is a code and a sentence."""
        code, message = why
        return m.Prediction(
            id=jobs.row_id(job.id, row.number),
            attempt=1,
            outcome=outcome,
            tenant=job.tenant,
            model=job.model,
            version=job.version,
            served_by=self._instance,
            client_request_id=row.client_request_id,
            error_code=code,
            error_message=message,
            traceparent=job.traceparent,
        )


class _Run:
    """One chunk in the executor; it keeps the records of its rows."""

    def __init__(self, runner: RowRunner, job: m.Job, chunk: m.Chunk) -> None:
        self._runner = runner
        self._job = job
        self._rows = chunk.rows
        self._records: list[m.Prediction | None] = [None] * len(chunk.rows)
        self._tries = [0] * len(chunk.rows)
        self._yields = [0] * len(chunk.rows)
        self._deaths = [0] * len(chunk.rows)
        self._waiting: deque[int] = deque()
        self._by_id: dict[bytes, int] = {}
        self._n_out = 0
        self._n_bytes = 0
        self._moved = asyncio.Event()
        record: Record = _Place(int(time.time() * 1000))
        self._frame = Frame(_Nowhere(), record, len(chunk.rows))

    async def to_its_end(self, cancelled: Cancelled) -> list[m.Prediction]:
        for at, row in enumerate(self._rows):
            if row.refused:
                self._end(at, m.OUTCOME_INVALID_INPUT, ("invalid_input", row.refused))
            else:
                self._waiting.append(at)
        looked_s = float("-inf")
        lost_s = 0.0
        while self._waiting or self._n_out:
            now_s = time.monotonic()
            if now_s - looked_s > _CANCEL_LOOK_S:
                looked_s = now_s
                if await cancelled():
                    self._end_waiting(m.OUTCOME_CANCELLED, ("cancelled", "the job was cancelled"))
            if self._give(now_s):
                lost_s = 0.0
            elif self._waiting and not self._held():
                lost_s = lost_s or now_s
                if now_s - lost_s > _WAIT_FOR_VERSION_S:
                    why = ("version_not_held", "no worker of the pool can load the version")
                    self._end_waiting(m.OUTCOME_FAILED, why)
            await self._pause()
        return [record for record in self._records if record is not None]

    async def _pause(self) -> None:
        self._moved.clear()
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._moved.wait()
        except TimeoutError:
            return

    def _held(self) -> bool:
        executor = self._runner.desk.executors.get((self._job.model, self._job.version))
        return executor is not None and not executor.failed_reason

    def _give(self, now_s: float) -> bool:
        """Give the executor what may go now; tell whether anything did."""
        desk = self._runner.desk
        executor = desk.executors.get((self._job.model, self._job.version))
        if executor is None or executor.failed_reason or not self._waiting:
            return False
        pace = self._runner.pace(self._job, executor.job_rows)
        room = pace.room(
            self._n_out, Requests(desk.open_rows, desk.last_s, executor.asked_s), now_s
        )
        given = 0
        while self._waiting and given < room:
            at = self._waiting.popleft()
            self._n_out += 1
            given += 1
            executor.add(self._work(at, now_s))
        if given:
            executor.pump(now_s)
        return given > 0

    def _work(self, at: int, now_s: float) -> Work:
        row, job = self._rows[at], self._job
        request_id = jobs.row_id(job.id, row.number)
        self._by_id[request_id] = at
        self._tries[at] += 1
        request = m.Request(
            id=request_id,
            tenant=job.tenant,
            model=job.model,
            version=job.version,
            ttl_ms=int(_ROW_DEADLINE_S * 1000),
            attempt=1,
            may_retry=self._tries[at] < _TRIES,
            client_request_id=row.client_request_id,
            outputs=row.outputs,
            traceparent=job.traceparent,
            tensors=row.tensors,
        )
        if row.HasField("generation"):
            request.generation.CopyFrom(row.generation)
        return Work(
            request,
            self._frame,
            now_s,
            now_s + _ROW_DEADLINE_S,
            n_alone_deaths=self._deaths[at],
            n_yields=self._yields[at],
            keeper=self,
        )

    def keep(self, work: Work, record: m.Prediction) -> None:
        """Take the record of a row, or put the row back in line."""
        at = self._back(work)
        if record.outcome == m.OUTCOME_ATTEMPT_FAILED:
            self._waiting.append(at)
            return
        if record.batch_size:
            self._runner.took(self._job, record.engine_us / record.batch_size / _US)
        self._n_bytes += len(record.outputs) + len(record.inputs)
        if self._n_bytes > _MAX_RESULT_BYTES and record.outcome == m.OUTCOME_OK:
            why = ("output_too_large", "the answers of the rows around this one are too large")
            record = self._without_answer(record, self._rows[at], why)
        self._records[at] = record

    def again(self, work: Work) -> None:
        """Put a row that made way for requests first in line: it was not tried."""
        at = self._back(work)
        self._tries[at] -= 1
        self._yields[at] += 1
        self._deaths[at] = work.n_alone_deaths
        self._waiting.appendleft(at)

    def _back(self, work: Work) -> int:
        self._n_out -= 1
        if not self._n_out:
            self._runner.ended(self._job)
        self._moved.set()
        return self._by_id[work.request.id]

    def _without_answer(
        self, record: m.Prediction, row: m.Row, why: tuple[str, str]
    ) -> m.Prediction:
        """Return the record of a row whose answer is not kept; its tokens were used."""
        out = self._runner.record(self._job, row, m.OUTCOME_OUTPUT_TOO_LARGE, why)
        out.input_tokens = record.input_tokens
        if record.HasField("generated"):
            out.generated.CopyFrom(generation.usage(record.generated))
        return out

    def _end(self, at: int, outcome: m.Outcome, why: tuple[str, str]) -> None:
        self._records[at] = self._runner.record(self._job, self._rows[at], outcome, why)

    def _end_waiting(self, outcome: m.Outcome, why: tuple[str, str]) -> None:
        while self._waiting:
            self._end(self._waiting.popleft(), outcome, why)
