"""Reading Kafka by manual assignment: one consumer, one partition, no group rebalancing.

In: a topic's partition. Out: batches of raw records; the caller decides what is done and commits.
`StateReader` reads a compacted topic to its end before its process is ready, then follows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Protocol

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from google.protobuf.message import DecodeError

from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.kafka import client_options, stop_client
from inferbus_kit.lifecycle import Fail, cancel, watched

_log = structlog.get_logger("consume")

Start = Literal["committed", "earliest", "end"] | int | Callable[[int, int], int]
"""Where a reader begins; a function is told the log's start and end offsets."""


class Record(Protocol):
    """A record as aiokafka gives it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class PartitionReader:
    """One consumer on one partition.

    Invariants: never re-assigned (a second `assign` restarts at the committed offset); commits
    carry explicit offsets; a position that cannot be found is an error, never silence.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        partition: int,
        *,
        client_id: str,
        group: str | None = None,
        start: Start = "earliest",
        max_bytes: int = 16 << 20,
    ) -> None:
        self.tp = TopicPartition(topic, partition)
        self._start = start
        self._options: dict[str, Any] = {
            **client_options(bootstrap),
            "client_id": client_id,
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest" if start in {"committed", "earliest"} else "none",
            "fetch_max_wait_ms": 500,
            "fetch_max_bytes": max_bytes,
            "max_partition_fetch_bytes": max_bytes,
            "request_timeout_ms": 10_000,
            "metadata_max_age_ms": 30_000,
        }
        self._client: AIOKafkaConsumer | None = None

    @property
    def client(self) -> AIOKafkaConsumer:
        """The started consumer."""
        if self._client is None:
            raise BusUnavailableError("the consumer is not started")
        return self._client

    async def start(self, timeout_s: float = 30.0) -> int:
        """Connect, assign, seek; return the position, which is known when this returns.

        Raises:
            BusUnavailableError: no broker answered in time, or the position is not to be had.
        """
        self._client = AIOKafkaConsumer(**self._options)
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.start()
                start = self._start
                if callable(start):
                    # Once assigned, each question waits behind a fetch that waits for records.
                    start = start(*await self.bounds())
                self._client.assign([self.tp])
                if isinstance(start, int):
                    self._client.seek(self.tp, start)
                elif start == "end":
                    await self._seek_to_end(self._client)
                elif start == "earliest":
                    await self._client.seek_to_beginning(self.tp)
                return int(await self._client.position(self.tp))
        except (TimeoutError, KafkaError) as error:
            await self.stop()
            raise BusUnavailableError("Kafka does not answer; is it running?") from error

    async def _seek_to_end(self, client: AIOKafkaConsumer) -> None:
        # It returns False, and raises nothing, when the answer came too late.
        if not await client.seek_to_end(self.tp):
            raise TimeoutError

    async def stop(self) -> None:
        """Close, within 3 s."""
        client, self._client = self._client, None
        if client is not None:
            await stop_client(client)

    async def read(self, *, timeout_ms: int = 500, max_records: int | None = None) -> list[Record]:
        """Return the next records, in order; empty when none came in time."""
        batches = await self.client.getmany(self.tp, timeout_ms=timeout_ms, max_records=max_records)
        records: list[Record] = batches.get(self.tp, [])
        return records

    def seek(self, offset: int) -> None:
        """Read on from `offset`."""
        self.client.seek(self.tp, offset)

    def heard_ms(self) -> int:
        """Return when a broker last answered a fetch, with records or without; 0: never yet.

        `read` returns in time also where nobody answers.
        """
        return int(self.client.last_poll_timestamp(self.tp) or 0)

    async def position(self) -> int:
        """Return the offset of the next record that `read` gives."""
        return int(await self.client.position(self.tp))

    async def bounds(self, timeout_s: float = 10.0) -> tuple[int, int]:
        """Return the log's start and end offsets."""
        async with asyncio.timeout(timeout_s):
            first = await self.client.beginning_offsets([self.tp])
            last = await self.client.end_offsets([self.tp])
        return int(first[self.tp]), int(last[self.tp])

    async def commit(self, offset: int, timeout_s: float = 5.0) -> bool:
        """Commit `offset` as the next one to read; tell whether the broker took it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.client.commit({self.tp: offset})
        except (TimeoutError, KafkaError) as error:
            _log.warning("commit_failed", topic=self.tp.topic, error=repr(error))
            return False
        return True

    async def committed(self, timeout_s: float = 10.0) -> int | None:
        """Return the committed offset, or None."""
        async with asyncio.timeout(timeout_s):
            offset = await self.client.committed(self.tp)
        return None if offset is None else int(offset)


class StateReader:
    """Follows a one-partition state topic from its beginning.

    Invariants: `apply` sees every record once per life of the reader, in order; `start` returns
    only when all records that stood in the topic at its call were applied; a record that cannot
    be decoded is logged, counted and skipped; any other error of `apply` ends the reading, which
    `failed` and `on_failure` then tell.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        apply: Callable[[Record], None],
        *,
        client_id: str,
        on_failure: Fail | None = None,
    ) -> None:
        self._on_failure = on_failure
        self._reader = PartitionReader(bootstrap, topic, 0, client_id=client_id)
        self._apply = apply
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Condition()
        self.position = 0
        self.n_undecodable = 0
        self.failed = False
        self.last_read_monotonic_s = 0.0
        self.last_heard_monotonic_s = 0.0
        """When a broker last answered: what the topic said by then was applied a moment later."""
        self._heard_ms = 0

    async def start(self, timeout_s: float = 60.0) -> None:
        """Read to the end that is seen now, then follow in the background."""
        self.position = await self._reader.start(timeout_s)
        _, end = await self._reader.bounds()
        async with asyncio.timeout(timeout_s):
            while self.position < end:
                await self._step()
        self.last_heard_monotonic_s = asyncio.get_running_loop().time()
        work = asyncio.create_task(self._follow(), name=f"state:{self._reader.tp.topic}")
        self._task = watched(work, self._fail)

    def _fail(self, reason: str) -> None:
        self.failed = True
        if self._on_failure is not None:
            self._on_failure(reason)

    async def stop(self) -> None:
        await cancel(self._task)
        await self._reader.stop()

    async def reach(self, offset: int, timeout_s: float = 10.0) -> None:
        """Wait until every record below `offset` was applied.

        Raises:
            TimeoutError: it took longer.
        """
        async with asyncio.timeout(timeout_s), self._moved:
            await self._moved.wait_for(lambda: self.position >= offset)

    async def _follow(self) -> None:
        while True:
            try:
                await self._step()
            except KafkaError as error:
                _log.warning("state_read_failed", topic=self._reader.tp.topic, error=repr(error))
                await asyncio.sleep(0.5)

    async def _step(self) -> None:
        records = await self._reader.read(timeout_ms=500)
        self.last_read_monotonic_s = asyncio.get_running_loop().time()
        if (heard_ms := self._reader.heard_ms()) != self._heard_ms:
            self._heard_ms, self.last_heard_monotonic_s = heard_ms, self.last_read_monotonic_s
        for record in records:
            try:
                self._apply(record)
            except (DecodeError, ValueError) as error:
                self.n_undecodable += 1
                _log.warning(
                    "undecodable_state", topic=record.topic, offset=record.offset, error=repr(error)
                )
        # Compaction leaves holes at the end, so the position moves by the fetcher's own account.
        position = await self._reader.position()
        if position != self.position:
            self.position = position
            async with self._moved:
                self._moved.notify_all()
