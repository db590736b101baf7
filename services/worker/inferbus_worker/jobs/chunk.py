"""One chunk from its command to its end.

In: a command. Out, in this order, each only when the one before is safe: the results object, the
predictions as that object has them, the chunk's status, a mark that nothing is left to do. Whoever
runs a chunk again finds what is there and goes on behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.consume import Record
from inferbus_kit.errors import InferbusError
from inferbus_kit.metrics import WorkerMetrics
from inferbus_kit.objects import Objects
from inferbus_kit.produce import MAX_BATCH_BYTES, Message, Producer
from inferbus_schemas import envelope, generation, ids, jobs, topics
from inferbus_schemas import messages as m
from inferbus_telemetry.spans import Tracing
from inferbus_worker.hot.letters import Letters
from inferbus_worker.jobs.rows import RowRunner

_log = structlog.get_logger("jobs")

_RETRY_S = 1.0
_LOOK_S = 0.5
_ACK_S = 20.0

Found = TypeVar("Found")


class TooManyAttemptsError(Exception):
    """A chunk that was begun as often as it may and never ended."""


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where a chunk's parts go, and who else may have it."""

    objects: Objects
    producer: Producer
    letters: Letters
    metrics: WorkerMetrics
    tracing: Tracing
    lives: Callable[[bytes], bool]
    """Whether the worker with this life, 16 hex digits, is there."""


class ChunkRunner:
    """Runs chunks.

    Invariants: of all runs of a chunk one writes the results, and what the stream gets is what they
    hold; every row of the chunk is in them; trouble of the store or of Kafka only takes time; a run
    that is given up in order does not count as an attempt.
    """

    def __init__(self, rows: RowRunner, outlets: Outlets, instance: str, life: int) -> None:
        self._rows = rows
        self._life = f"{life:016x}".encode()
        self._lives = outlets.lives
        self._objects = outlets.objects
        self._producer = outlets.producer
        self._letters = outlets.letters
        self._metrics = outlets.metrics
        self._tracing = outlets.tracing
        self._instance = instance
        self._source = f"/inferbus/worker/{instance}"

    async def run(self, command: m.ChunkCommand, record: Record) -> None:
        """Bring a chunk to its end, however long store and Kafka take."""
        job = command.job
        if not (self._tracing.on and job.traceparent):
            await self._run(command, record)
            return
        with self._tracing.around(
            f"process {record.topic}",
            job.traceparent,
            "CONSUMER",
            inferbus__job_id=ids.text(job.id),
            inferbus__chunk=command.chunk,
        ) as context:
            # What its rows do belongs to the chunk.
            job.traceparent = context
            await self._run(command, record)

    async def _run(self, command: m.ChunkCommand, record: Record) -> None:
        job, number = command.job, command.chunk
        path = jobs.results_path(job.id, number)
        attempts = await self._claim(job, number)
        if attempts is None:
            return
        raw = await _until(lambda: self._objects.get(path))
        if raw is None:
            try:
                results = await self._results(command, record, attempts)
            except asyncio.CancelledError:
                await self._withdraw(job, number, attempts)
                raise
            body = results.SerializeToString()
            if not await _until(lambda: self._objects.create(path, body)):
                raw = await _until(lambda: self._objects.get(path))
        if raw is not None:
            results = m.ChunkResults.FromString(raw)
        await self._predict(job, results)
        await self._say(self._status(command, results, attempts))
        await _until(lambda: self._objects.create(jobs.done_path(job.id, number), b""))
        self._metrics.job_chunks.inc()

    async def _claim(self, job: m.Job, number: int) -> int | None:
        """Begin an attempt; return its number, one too high where none is left.

        None: nothing is left to do. A worker that lives and has the chunk is waited for: a
        rebalance that gave its partition away is no reason to run anything twice.
        """
        while True:
            if await _until(lambda: self._objects.exists(jobs.done_path(job.id, number))):
                return None
            holders = await self._holders(job, number)
            if any(one != self._life and self._lives(one) for one in holders):
                await asyncio.sleep(_LOOK_S)
                continue
            if await _until(lambda: self._objects.exists(jobs.results_path(job.id, number))):
                return len(holders)
            attempt = len(holders) + 1
            path = jobs.attempt_path(job.id, number, attempt)
            if attempt > jobs.MAX_ATTEMPTS or await _until(
                lambda path=path: self._objects.create(path, self._life)  # type: ignore[misc]
            ):
                return attempt

    async def _holders(self, job: m.Job, number: int) -> list[bytes]:
        """Return the lives of the workers that began a chunk, in the order of their attempts."""
        found: list[bytes] = []
        for attempt in range(1, jobs.MAX_ATTEMPTS + 1):
            path = jobs.attempt_path(job.id, number, attempt)
            life = await _until(lambda path=path: self._objects.get(path))  # type: ignore[misc]
            if life is None:
                break
            found.append(life)
        return found

    async def _withdraw(self, job: m.Job, number: int, attempt: int) -> None:
        if attempt <= jobs.MAX_ATTEMPTS:
            with contextlib.suppress(InferbusError):
                await self._objects.delete(jobs.attempt_path(job.id, number, attempt))

    async def _results(
        self, command: m.ChunkCommand, record: Record, attempts: int
    ) -> m.ChunkResults:
        """Run the rows, or say of each why it was not run."""
        job, number = command.job, command.chunk
        raw = await _until(lambda: self._objects.get(jobs.input_path(job.input, number)))
        chunk = m.Chunk.FromString(raw or b"")
        if attempts > jobs.MAX_ATTEMPTS:
            predictions = await self._bury(job, chunk, record)
        else:
            running = m.ChunkStatus(state=m.CHUNK_STATE_RUNNING)
            await self._say(self._stamped(running, command, attempts))

            async def cancelled() -> bool:
                with contextlib.suppress(InferbusError):
                    return await self._objects.exists(jobs.cancel_path(job.id))
                return False

            predictions = await self._rows.run(job, chunk, cancelled)
        return m.ChunkResults(
            rows=[
                m.RowResult(number=row.number, prediction=said)
                for row, said in zip(chunk.rows, predictions, strict=True)
            ]
        )

    async def _bury(self, job: m.Job, chunk: m.Chunk, record: Record) -> list[m.Prediction]:
        """Make a dead letter of a chunk; return how its rows ended."""
        _log.error("chunk_given_up", job=ids.text(job.id), n_rows=len(chunk.rows))
        error = TooManyAttemptsError(
            f"begun {jobs.MAX_ATTEMPTS} times, each time its worker was lost before the end"
        )
        await self._letters.bury(record, error)
        why = ("too_many_attempts", "its chunk was begun three times and never ended")
        return [
            self._rows.record(job, row, m.OUTCOME_INVALID_INPUT, ("invalid_input", row.refused))
            if row.refused
            else self._rows.record(job, row, m.OUTCOME_FAILED, why)
            for row in chunk.rows
        ]

    async def _predict(self, job: m.Job, results: m.ChunkResults) -> None:
        """Write the rows' records to the prediction stream, until Kafka has all of them."""
        topic = topics.topic(topics.PREDICTIONS)
        by_partition: dict[int, list[m.Prediction]] = defaultdict(list)
        for row in results.rows:
            said = row.prediction
            by_partition[jobs.row_partition(said.id, job.n_partitions)].append(said)
        # Together, since one request to a broker takes the batches of all of its partitions.
        async with asyncio.TaskGroup() as group:
            for partition, predictions in by_partition.items():
                messages = [self._message(job, topic.ce_type, said) for said in predictions]
                group.create_task(
                    _until(lambda p=partition, w=messages: self._send(topic.name, p, w))  # type: ignore[misc]
                )
                # Interactive requests have their turn between.
                await asyncio.sleep(0)
        for outcome, n_rows in Counter(row.prediction.outcome for row in results.rows).items():
            labels = (job.model, str(job.version), m.outcome_name(outcome))
            self._metrics.job_rows.labels(*labels).inc(n_rows)

    def _message(self, job: m.Job, ce_type: str, said: m.Prediction) -> Message:
        ce_id = f"{ids.text(said.id)}/1"
        head = envelope.headers(ce_type, self._source, ce_id, said.traceparent)
        return Message(said.SerializeToString(), job.model.encode(), head)

    async def _send(self, topic: str, partition: int, messages: list[Message]) -> None:
        sent = []
        parcel: list[Message] = []
        n_bytes = 0
        for message in messages:
            if parcel and n_bytes + message.size_bytes > MAX_BATCH_BYTES:
                sent.append(await self._producer.send_many(topic, partition, parcel))
                parcel, n_bytes = [], 0
            parcel.append(message)
            n_bytes += message.size_bytes
        sent.append(await self._producer.send_many(topic, partition, parcel))
        async with asyncio.timeout(_ACK_S):
            await asyncio.gather(*sent)

    def _status(
        self, command: m.ChunkCommand, results: m.ChunkResults, attempts: int
    ) -> m.ChunkStatus:
        ends = Counter(row.prediction.outcome for row in results.rows)
        done = m.ChunkStatus(
            state=m.CHUNK_STATE_DONE,
            n_ok=ends[m.OUTCOME_OK],
            n_cancelled=ends[m.OUTCOME_CANCELLED],
            n_tokens=sum(generation.n_tokens(row.prediction) for row in results.rows),
        )
        done.n_failed = len(results.rows) - done.n_ok - done.n_cancelled
        return self._stamped(done, command, attempts)

    def _stamped(
        self, said: m.ChunkStatus, command: m.ChunkCommand, attempts: int
    ) -> m.ChunkStatus:
        said.job, said.chunk = command.job.id, command.chunk
        said.attempts, said.worker = attempts, self._instance
        return said

    async def _say(self, said: m.ChunkStatus) -> None:
        topic = topics.topic(topics.JOB_STATUS)
        key = jobs.chunk_key(said.job, said.chunk)
        message = Message(
            m.JobStatus(chunk=said).SerializeToString(),
            key.encode(),
            envelope.headers(topic.ce_type, self._source, f"{key}/{said.attempts}/{said.state}"),
        )
        await _until(lambda: self._send(topic.name, 0, [message]))


async def _until(work: Callable[[], Awaitable[Found]]) -> Found:
    """Do something until it succeeds: store and Kafka come back, and a chunk has time."""
    while True:
        try:
            return await work()
        except (InferbusError, KafkaError, TimeoutError) as error:
            _log.warning("chunk_waits", error=repr(error))
            await asyncio.sleep(_RETRY_S)
