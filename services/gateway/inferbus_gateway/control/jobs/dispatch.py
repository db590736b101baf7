"""Commands of accepted jobs, and what this gateway says of them on the bus.

In: jobs. Out: one command per chunk on `jobs.chunks`, records of `jobs.status`. A job whose
gateway died between the two is found by any other one, which then sends all commands again: a chunk
that has its results costs a worker one look.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

import structlog
from aiokafka.errors import KafkaError

from inferbus_gateway import errors
from inferbus_gateway.control.jobs.fold import Fold
from inferbus_kit.consume import Record
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Health
from inferbus_kit.objects import Objects
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, jobs, topics
from inferbus_schemas import messages as m

_log = structlog.get_logger("jobs")

_LOOK_S = 2.0
_AGE_MS = 10_000
_SWEEP_S = 600.0
_KEPT_MS = 7 * 24 * 3600 * 1000
_AT_ONCE = 64
_ACK_S = 15.0


def job_feed(fold: Fold) -> Callable[[Record], None]:
    """Return what applies records of `jobs.status` to `fold`."""

    def apply(record: Record) -> None:
        if record.value is not None:
            fold.apply(m.JobStatus.FromString(record.value), record.timestamp)
        elif (job_id := jobs.parse_id((record.key or b"").decode())) is not None:
            fold.forget(job_id)

    return apply


class Dispatcher:
    """Writes what the bus must know of jobs.

    Invariants: a job says `dispatched` only when Kafka has all of its commands; a command that
    came twice does no harm; what a job left is deleted seven days after it was made, if it ended
    and no younger one continues it.
    """

    def __init__(
        self, producer: Producer, objects: Objects, fold: Fold, instance: str, health: Health
    ) -> None:
        self._producer = producer
        self._objects = objects
        self._fold = fold
        self._health = health
        self._source = f"/inferbus/gateway/{instance}"
        self._swept_s = time.monotonic()

    def knows(self, job_id: bytes) -> bool:
        """Tell whether the bus knows of a job."""
        return job_id in self._fold

    async def n_prediction_partitions(self) -> int:
        """Return how many partitions the prediction stream has now."""
        return await self._producer.n_partitions(topics.topic(topics.PREDICTIONS).name)

    async def dispatch(self, job: m.Job) -> None:
        """Say that there is a job and send its commands.

        Raises:
            BusUnavailableError: Kafka did not take all; it goes on by itself when it can.
        """
        try:
            if job.id not in self._fold:
                await self.say(jobs.job_key(job.id), m.JobStatus(job=job))
                # At once, so that who submits it can ask for it here.
                self._fold.apply(m.JobStatus(job=job), int(time.time() * 1000))
            await self._send_commands(job)
            said = m.Job.FromString(job.SerializeToString())
            said.dispatched = True
            await self.say(jobs.job_key(job.id), m.JobStatus(job=said))
            self._fold.apply(m.JobStatus(job=said), int(time.time() * 1000))
        except (KafkaError, TimeoutError) as error:
            raise errors.BusUnavailableError("Kafka takes nothing at present") from error

    async def cancel(self, job: m.Job, principal: str) -> None:
        """Say that nobody wants the rest of a job.

        Raises:
            ObjectStoreError, BusUnavailableError: it may be cancelled or not.
        """
        await self._objects.create(jobs.cancel_path(job.id), b"")
        said = m.JobStatus(cancelled=m.JobCancelled(job=job.id, principal=principal))
        try:
            await self.say(jobs.cancelled_key(job.id), said)
        except (KafkaError, TimeoutError) as error:
            raise errors.BusUnavailableError("Kafka takes nothing at present") from error
        self._fold.apply(said, int(time.time() * 1000))

    async def _send_commands(self, job: m.Job) -> None:
        topic = topics.topic(topics.JOB_CHUNKS, job.pool)
        n_partitions = await self._producer.n_partitions(topic.name)
        for first in range(0, job.n_chunks, _AT_ONCE):
            sent = []
            for number in range(first, min(first + _AT_ONCE, job.n_chunks)):
                key = jobs.chunk_key(job.id, number)
                delivery = await self._producer.send(
                    topic.name,
                    jobs.chunk_partition(job.id, number, n_partitions),
                    m.ChunkCommand(job=job, chunk=number).SerializeToString(),
                    key=key.encode(),
                    headers=envelope.headers(topic.ce_type, self._source, key, job.traceparent),
                )
                sent.append(delivery)
            async with asyncio.timeout(_ACK_S):
                await asyncio.gather(*sent)

    async def say(self, key: str, said: m.JobStatus | None) -> None:
        """Write a record of `jobs.status`; None deletes what its key says.

        Raises:
            KafkaError, TimeoutError: it may have been written or not.
        """
        topic = topics.topic(topics.JOB_STATUS)
        delivery = await self._producer.send(
            topic.name,
            0,
            None if said is None else said.SerializeToString(),
            key=key.encode(),
            headers=envelope.headers(topic.ce_type, self._source, secrets.token_hex(8)),
        )
        async with asyncio.timeout(_ACK_S):
            await delivery

    async def run(self) -> None:
        """Go on with jobs whose gateway is gone, and delete old ones, until cancelled."""
        self._health.watch("jobs", 120.0)
        while True:
            self._health.beat("jobs")
            await asyncio.sleep(_LOOK_S)
            for job in self._fold.undispatched(int(time.time() * 1000), _AGE_MS):
                _log.warning("job_taken_over", job=jobs.job_key(job.id), n_chunks=job.n_chunks)
                await self._try(self.dispatch(job), job)
                self._health.beat("jobs")
            if time.monotonic() - self._swept_s > _SWEEP_S:
                self._swept_s = time.monotonic()
                await self.sweep(int(time.time() * 1000) - _KEPT_MS)

    async def sweep(self, older_ms: int) -> None:
        """Delete what is left of jobs that ended and were made before a time (UTC, ms)."""
        for job, chunks in self._fold.older_than(older_ms):
            await self._try(self._delete(job, chunks), job)
            self._health.beat("jobs")

    async def _delete(self, job: m.Job, chunks: list[int]) -> None:
        await self._objects.delete_folder(job.input)
        await self._objects.delete_folder(jobs.job_folder(job.id))
        if job.key_sha256:
            await self._objects.delete(jobs.key_path(job.tenant, job.key_sha256))
        for number in chunks:
            await self.say(jobs.chunk_key(job.id, number), None)
        await self.say(jobs.cancelled_key(job.id), None)
        # Last, so that a sweep that was cut short begins again.
        await self.say(jobs.job_key(job.id), None)

    async def _try(self, work: Awaitable[None], job: m.Job) -> None:
        try:
            await work
        except (InferbusError, KafkaError, TimeoutError) as error:
            _log.warning("job_upkeep_failed", job=jobs.job_key(job.id), error=repr(error))
