"""One version's work: requests through its batcher and its engine, each to exactly one record.

In: requests that passed the signature, answers of the engine. Out: batches to the engine, records
to the emitter. What a dead engine left unanswered runs again, the batch that it died of in halves,
until the payload that kills it stands alone.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from inferbus_kit.metrics import WorkerMetrics
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Manifest
from inferbus_worker.engines import wire
from inferbus_worker.engines.process import Death
from inferbus_worker.hot.batcher import Batcher, Limits
from inferbus_worker.hot.emit import MAX_OUTPUT_BYTES, Emitter, OkAnswer, Served, Used
from inferbus_worker.hot.pieces import Pieces
from inferbus_worker.hot.rows import Answer
from inferbus_worker.hot.signature import InvalidInputError, RowSizes, SignatureCheck
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.work import Batch, Work

_log = structlog.get_logger("execute")

DEPTH = 2
"""Batches given to an engine at once: while it computes one, the next is on its socket."""
MAX_JOB_ROWS = 512
_FATAL_ALONE = 2


class Engine(Protocol):
    """What runs batches; see `engines.host`."""

    @property
    def up(self) -> bool: ...
    @property
    def n_in_flight(self) -> int: ...
    def submit(
        self, token: Any, heads: Sequence[wire.TensorHead], buffers: Sequence[bytes]
    ) -> None: ...


class PoisonLetters(Protocol):
    """Who keeps a request that kills its engine; see `letters`."""

    def poison(self, work: Work, death: asyncio.Future[Death]) -> None: ...


class VersionMetrics:
    """The metrics of one version, with their labels looked up once."""

    def __init__(self, metrics: WorkerMetrics, model: str, version: int) -> None:
        labels = (model, str(version))
        self.batches = {
            reason: metrics.batches.labels(*labels, reason)
            for reason in ("rows", "bytes", "deadline", "idle", "again")
        }
        self.batch_rows = metrics.batch_rows.labels(*labels)
        self.engine_seconds = metrics.engine_seconds.labels(*labels)
        self.queue_seconds = metrics.queue_seconds.labels(*labels)


class Executor:
    """The hot side of one resident version.

    Invariants: each request that was added leaves with exactly one call of the emitter; batches
    that must run again go before new ones; a request that has killed the engine twice while it
    ran alone is POISON, becomes a dead letter and runs no more; a request of more than `max_rows`
    rows runs in pieces where its answer is the same, and between two of them its deadline is looked
    at and others have a turn.
    """

    def __init__(
        self,
        manifest: Manifest,
        served: Served,
        *,
        emitter: Emitter,
        letters: PoisonLetters,
        metrics: VersionMetrics,
        spans: Spans,
    ) -> None:
        batching = manifest.batching
        self._emitter = emitter
        self._letters = letters
        self._metrics = metrics
        self._spans = spans
        self._check = SignatureCheck(manifest.signature)
        self._row_sizes = RowSizes(manifest.signature)
        self._names = [(spec.name, spec.datatype) for spec in manifest.signature.inputs]
        fixed_rows = any(spec.shape[0] != -1 for spec in manifest.signature.inputs)
        max_rows = 1 if fixed_rows else batching.max_rows
        self._batcher: Batcher[Work] = Batcher(Limits(max_rows, batching.max_wait_ms / 1000))
        self._again: deque[list[Work]] = deque()
        self._max_rows = max_rows if manifest.signature.splits else 0
        self._large: deque[Batch] = deque()
        self._turn_of_large = False
        self._timer: asyncio.TimerHandle | None = None
        self._engine: Engine | None = None
        self.served = served
        self.failed_reason = ""
        self.job_rows = (1, max(DEPTH * max_rows, MAX_JOB_ROWS))
        """Rows of jobs that should be here for the engine to be full, and that may be."""
        self.asked_s = float("-inf")
        """No row of a job outlasts the next request: who paces them needs to know of none."""

    def attach(self, engine: Engine) -> None:
        """Use this engine; once, before the first request."""
        self._engine = engine

    @property
    def oldest_s(self) -> float | None:
        """Arrival of the request that waits longest."""
        waiting = [works[0].arrived_s for works in self._again]
        waiting += [batch.works[0].arrived_s for batch in self._large]
        if (oldest := self._batcher.oldest_s) is not None:
            waiting.append(oldest)
        return min(waiting, default=None)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        running = self._engine.n_in_flight if self._engine is not None else 0
        return not (self._batcher or self._again or self._large or running)

    def add(self, work: Work) -> bool:
        """Take a request; tell whether it waits for its engine now. `pump` must follow."""
        if self.failed_reason:
            self._emitter.attempt_failed(work, "engine_lost", self.failed_reason, self.served)
            return False
        request = work.request
        try:
            work.rows, bucket, work.shapes, work.data = self._check.take(
                request.tensors, request.outputs
            )
        except InvalidInputError as error:
            self._emitter.ended(
                work, m.OUTCOME_INVALID_INPUT, "invalid_input", str(error), self.served
            )
            return False
        if self._row_sizes.of(request.outputs) * work.rows > MAX_OUTPUT_BYTES:
            self._emitter.too_large(work, self.served)
            return False
        work.n_bytes = len(request.tensors)
        self._batcher.add(bucket, work)
        return True

    def pump(self, now_s: float) -> None:
        """Give the engine what it should run now."""
        engine = self._engine
        if engine is None or not engine.up:
            return
        while (n_in_flight := engine.n_in_flight) < DEPTH:
            if not self._submit_next(engine, now_s, idle=n_in_flight == 0):
                break
        self._arm(now_s)

    def _submit_next(self, engine: Engine, now_s: float, *, idle: bool) -> bool:
        """Give the engine a batch, or a piece in its turn; tell whether there may be more."""
        if self._large and self._turn_of_large:
            self._turn_of_large = False
            self._submit_piece(engine, self._large.popleft(), now_s)
            return True
        self._turn_of_large = True
        if self._again:
            self._submit(engine, self._again.popleft(), "again", now_s)
            return True
        if (released := self._batcher.take(now_s, idle=idle)) is not None:
            self._submit(engine, released.items, released.released_by, now_s)
            return True
        return bool(self._large)

    def _arm(self, now_s: float) -> None:
        """Come back when the oldest request has waited for as long as it may."""
        if self._timer is None and self._batcher and (due_s := self._batcher.due_s) is not None:
            delay_s = max(0.001, due_s - now_s)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        engine = self._engine
        if engine is not None and engine.n_in_flight < DEPTH:
            self.pump(time.monotonic())

    def tick(self, now_s: float) -> None:
        """Answer what has expired while it waited; called a few times a second."""
        for work in self._batcher.expire(now_s):
            self._emitter.expired(work, self.served)
        self._sweep_again(now_s)
        self.pump(now_s)

    def _sweep_again(self, now_s: float) -> None:
        self._large = deque(batch for batch in self._large if self._wanted(batch, now_s))
        for _ in range(len(self._again)):
            works = self._live(self._again.popleft(), now_s)
            if works:
                self._again.append(works)

    def _live(self, works: list[Work], now_s: float) -> list[Work]:
        """Return those whose deadline has not passed; answer the others."""
        for work in works:
            if work.deadline_s <= now_s:
                self._emitter.expired(work, self.served)
        return [work for work in works if work.deadline_s > now_s]

    def _submit(self, engine: Engine, works: list[Work], reason: str, now_s: float) -> None:
        works = self._live(works, now_s)
        if not works:
            return
        rows = sum(work.rows for work in works)
        batch = Batch(works, rows, os.urandom(16), now_s)
        if self._spans.on:
            batch.started_ns = time.time_ns()
        heads: list[wire.TensorHead] = []
        buffers: list[bytes] = []
        first = works[0]
        for index, (name, datatype) in enumerate(self._names):
            if len(works) == 1:
                data = first.data[index]
            else:
                data = b"".join([work.data[index] for work in works])
            shape = (rows, *first.shapes[index][1:])
            heads.append(wire.TensorHead(name, datatype, shape, len(data)))
            buffers.append(data)
        self._metrics.batches[reason].inc()
        self._metrics.batch_rows.observe(rows)
        if len(works) == 1 and 0 < self._max_rows < rows:
            batch.pieces = Pieces(heads, buffers, self._max_rows)
            self._submit_piece(engine, batch, now_s)
        else:
            engine.submit(batch, heads, buffers)

    def _submit_piece(self, engine: Engine, batch: Batch, now_s: float) -> None:
        if batch.pieces is not None and self._wanted(batch, now_s):
            engine.submit(batch, *batch.pieces.next())

    def _wanted(self, batch: Batch, now_s: float) -> bool:
        """Tell whether there is time left for a large request; answer it where there is none."""
        (work,) = batch.works
        if work.deadline_s > now_s or batch.pieces is None:
            return True
        self._emitter.expired(work, self.served, Used(n_tokens=batch.pieces.n_tokens))
        return False

    # What the engine says.

    def on_up(self) -> None:
        self.pump(time.monotonic())

    def on_done(self, batch: Batch, done: wire.Done, body: memoryview) -> None:
        now_s = time.monotonic()
        if batch.pieces is not None:
            whole = batch.pieces.answered(done, body)
            if whole is None:
                self._large.append(batch)
                self.pump(now_s)
                return
            done, body = whole
        batch.engine_us = done.engine_us
        if done.bad_rows:
            self._without_bad_rows(batch, done.bad_rows)
        elif done.error:
            self._split_error(batch, done.error)
        else:
            self._answer(batch, done, body)
        self.pump(now_s)

    def _answer(self, batch: Batch, done: wire.Done, body: memoryview) -> None:
        answer = Answer(done.outputs, body, batch.rows)
        self._metrics.engine_seconds.observe(done.engine_us / 1e6)
        spans = self._spans.answered(batch)
        observe = self._metrics.queue_seconds.observe
        row = 0
        for work in batch.works:
            outputs, digest = answer.cut(row, work.rows, work.request.outputs)
            observe(batch.started_s - work.arrived_s)
            context = spans.get(id(work), work.request.traceparent)
            n_tokens = sum(done.row_tokens[row : row + work.rows])
            ok = OkAnswer(row, outputs, digest, context, n_tokens=n_tokens)
            self._emitter.ok(work, batch, self.served, ok)
            row += work.rows

    def _without_bad_rows(self, batch: Batch, bad_rows: dict[int, str]) -> None:
        good: list[Work] = []
        row = 0
        for work in batch.works:
            bad = [at for at in bad_rows if row <= at < row + work.rows]
            if bad:
                at = min(bad)
                said = f"row {at - row}: {bad_rows[at]}" if work.rows > 1 else bad_rows[at]
                self._emitter.ended(
                    work, m.OUTCOME_INVALID_INPUT, "invalid_input", said, self.served
                )
            else:
                good.append(work)
            row += work.rows
        if good:
            self._again.appendleft(good)

    def _split_error(self, batch: Batch, error: str) -> None:
        _log.warning("batch_failed", model=batch.works[0].request.model, error=error)
        if len(batch.works) > 1:
            self._again.extendleft(reversed(_halves(batch.works)))
            return
        self._emitter.ended(
            batch.works[0],
            m.OUTCOME_FAILED,
            "engine_error",
            "the model cannot compute this input",
            self.served,
        )

    def on_down(self, batches: list[Batch], death: asyncio.Future[Death]) -> None:
        """Queue again what a dead process left; it died of the oldest."""
        again = [batch.works for batch in batches[1:]]
        if batches:
            again = self._suspects(batches[0].works, death) + again
        self._again.extendleft(reversed(again))

    def on_stopped(self, batches: list[Batch]) -> None:
        """Queue again what ran when the engine was stopped on purpose."""
        self._again.extendleft(reversed([batch.works for batch in batches]))

    def _suspects(self, works: list[Work], death: asyncio.Future[Death]) -> list[list[Work]]:
        if len(works) > 1:
            return _halves(works)
        work = works[0]
        work.n_alone_deaths += 1
        if work.n_alone_deaths < _FATAL_ALONE:
            return [works]
        _log.error("poison", model=work.request.model, request_id=work.request.id.hex())
        self._letters.poison(work, death)
        self._emitter.ended(
            work,
            m.OUTCOME_POISON,
            "poison_input",
            "this input crashes the model's engine; it was not tried again",
            self.served,
        )
        return []

    def on_failed(self, reason: str) -> None:
        """Give everything back: the engine will not come again."""
        self.give_up(f"the model's engine is lost: {reason}")

    def give_up(self, reason: str) -> None:
        """End all attempts that are open here, and those that come."""
        self.failed_reason = reason
        waiting = [work for works in self._again for work in works] + self._batcher.drain()
        waiting += [work for batch in self._large for work in batch.works]
        self._again.clear()
        self._large.clear()
        for work in waiting:
            self._emitter.attempt_failed(work, "engine_lost", reason, self.served)


def _halves(works: list[Work]) -> list[list[Work]]:
    middle = len(works) // 2
    return [works[:middle], works[middle:]]
