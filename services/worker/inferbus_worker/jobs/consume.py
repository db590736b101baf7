"""Commands in: a member of the pool's group that takes a chunk when there is room for one.

In: records of `jobs.chunks.<pool>`. Out: chunks that run, committed offsets. Rebalances stop the
whole group for a moment, which is harmless here and the reason why nothing interactive uses one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from google.protobuf.message import DecodeError

from inferbus_kit.consume import Record
from inferbus_kit.kafka import client_options, stop_client
from inferbus_kit.lifecycle import cancel
from inferbus_kit.offsets import ContiguousOffsets
from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m
from inferbus_worker.hot.consume import Desk
from inferbus_worker.hot.letters import Letters
from inferbus_worker.hot.loops import Loops
from inferbus_worker.jobs.chunk import ChunkRunner

_log = structlog.get_logger("jobs")

_AT_ONCE = 2
"""While the rows of one chunk run, the results of the other are written."""
_MANY_ROWS = 64
_STARVED_S = 2.0
_LOOK_S = 0.02
_RETRY_S = 1.0
_JOIN_S = 20.0
_REVOKED_S = 2.0
_COMMIT_S = 5.0
_DRAIN_S = 10.0


def group(pool: str) -> str:
    """Return the group that takes the chunks of a pool."""
    return f"worker.jobs.{pool}"


class JobLoop(ConsumerRebalanceListener):  # type: ignore[misc]
    """This worker's part of the pool's jobs.

    Invariants: an offset is committed only when its chunk and all before it in the partition have
    ended, and only while the partition is this member's; at most two chunks run here.
    """

    def __init__(
        self,
        bootstrap: str,
        pool: str,
        runner: ChunkRunner,
        *,
        desk: Desk,
        letters: Letters,
        loops: Loops,
        client_id: str,
    ) -> None:
        self._topic = topics.topic(topics.JOB_CHUNKS, pool)
        self._options = {
            **client_options(bootstrap),
            "group_id": group(pool),
            "client_id": client_id,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "session_timeout_ms": 10_000,
            "heartbeat_interval_ms": 500,
            # A chunk of generations takes minutes in which nothing is polled.
            "max_poll_interval_ms": 6 * 3600 * 1000,
            "metadata_max_age_ms": 30_000,
            "request_timeout_ms": 15_000,
        }
        self._runner = runner
        self._desk = desk
        self._letters = letters
        self._loops = loops
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._offsets: dict[TopicPartition, ContiguousOffsets] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._running: dict[tuple[TopicPartition, int], asyncio.Task[None]] = {}
        self._took_s = 0.0

    async def start(self) -> None:
        """Begin to take chunks, in the background."""
        self._task = self._loops.start("jobs", self._run())

    async def stop(self) -> None:
        """Take no more, finish what runs if that takes seconds, leave the group."""
        await cancel(self._task)
        if self._running:
            await asyncio.wait(self._running.values(), timeout=_DRAIN_S)
        for task in list(self._running.values()):
            await cancel(task)
        await self._commit()
        await self._leave()

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._join()
                    while True:
                        self._loops.beat("jobs")
                        await self._step()
                except (KafkaError, TimeoutError) as error:
                    _log.warning("jobs_not_read", error=repr(error))
                    await self._leave()
                    self._loops.beat("jobs")
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._loops.rest("jobs")

    async def _join(self) -> None:
        # What was read before is read again, as far as it was not committed.
        self._offsets.clear()
        self._committed.clear()
        self._consumer = AIOKafkaConsumer(**self._options)
        async with asyncio.timeout(_JOIN_S):
            await self._consumer.start()
        self._consumer.subscribe([self._topic.name], listener=self)

    async def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_client(consumer)

    async def _step(self) -> None:
        if len(self._running) >= _AT_ONCE or self._crowded():
            await asyncio.sleep(_LOOK_S)
            return
        assert self._consumer is not None  # noqa: S101 -- joined before
        batches = await self._consumer.getmany(timeout_ms=500, max_records=1)
        for partition, records in batches.items():
            for record in records:
                self._took_s = time.monotonic()
                self._begin(partition, record)

    def _crowded(self) -> bool:
        """Tell whether interactive requests fill the worker; they do not starve jobs for ever."""
        waited_s = time.monotonic() - self._took_s
        return self._desk.open_rows > _MANY_ROWS and waited_s < _STARVED_S

    def _begin(self, partition: TopicPartition, record: Record) -> None:
        offsets = self._offsets.get(partition)
        if offsets is None or record.offset < offsets.committable:
            offsets = self._offsets[partition] = ContiguousOffsets(record.offset)
        offsets.read(record.offset)
        place = (partition, record.offset)
        if place in self._running:
            return  # read again after a rebalance that gave the partition back
        name = f"chunk:{record.partition}/{record.offset}"
        self._running[place] = task = self._loops.start(name, self._chunk(partition, record))
        task.add_done_callback(lambda _: self._running.pop(place))

    async def _chunk(self, partition: TopicPartition, record: Record) -> None:
        try:
            envelope.check(record.headers, self._topic.ce_type)
            command = m.ChunkCommand.FromString(record.value or b"")
        except (envelope.EnvelopeError, DecodeError) as error:
            await self._letters.bury(record, error)
        else:
            await self._runner.run(command, record)
        if (offsets := self._offsets.get(partition)) is not None:
            offsets.done(record.offset)
        await self._commit()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Wait a moment for what runs, commit, and forget the partitions."""
        gone = set(revoked)
        running = [task for (place, _), task in self._running.items() if place in gone]
        if running:
            await asyncio.wait(running, timeout=_REVOKED_S)
        await self._commit()
        for partition in gone:
            self._offsets.pop(partition, None)
            self._committed.pop(partition, None)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Do nothing: the positions are the committed ones."""

    async def _commit(self) -> None:
        """Commit what has ended, of the partitions that are this member's."""
        consumer = self._consumer
        if consumer is None:
            return
        mine = consumer.assignment()
        ready = {
            partition: offsets.committable
            for partition, offsets in self._offsets.items()
            if partition in mine and offsets.committable > self._committed.get(partition, 0)
        }
        if not ready:
            return
        try:
            async with asyncio.timeout(_COMMIT_S):
                await consumer.commit(ready)
        except (KafkaError, TimeoutError) as error:
            # Its chunks have their marks: who reads them again passes them by.
            _log.warning("commit_failed", error=repr(error))
        else:
            self._committed |= ready
