"""Opens lanes: finds where each partition's log ends and whether Kafka still agrees with it.

In: lanes that are stale. Out: lanes that the reader may seek and fill, a noted gap, or a stop with
its sentence for an operator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from inferbus_kit.health import Health
from inferbus_kit.metrics import LoggerMetrics
from inferbus_logger import database, identity, positions
from inferbus_logger.database import Connection
from inferbus_logger.lanes import Board, Lane
from inferbus_logger.plan import Batch
from inferbus_logger.positions import Bus, Stored
from inferbus_logger.rows import NO_CHAIN
from inferbus_logger.sink import FencedError, Planned, Sink

_log = structlog.get_logger("open")

SILENCE_S: Final = 90.0
_IDLE_S: Final = 1.0
_FIRST_RETRY_S: Final = 0.1
_LAST_RETRY_S: Final = 2.0
_KAFKA_TIMEOUT_S: Final = 10.0


async def read_stored(
    connection: Connection, topic: str, partitions: Sequence[int]
) -> dict[int, Stored]:
    """Return what Postgres holds of these partitions."""
    found = await connection.fetch(
        "SELECT part, topic_id, era, start_offset, next_offset, last_id, chain"
        " FROM log.sink_offsets WHERE topic = $1 AND part = ANY($2::int[])",
        topic,
        list(partitions),
    )
    return {row["part"]: Stored(*row) for row in found}


class Opener:
    """The loop that opens lanes, on a connection of its own.

    Invariants: a lane is opened only at a place that Postgres and Kafka agree on; a gap is noted
    by the same compare-and-set as rows; nothing is decided while either does not answer.
    """

    def __init__(
        self,
        *,
        postgres_url: str,
        topic: str,
        board: Board,
        sink: Sink,
        metrics: LoggerMetrics,
        health: Health,
    ) -> None:
        self._url = postgres_url
        self._topic = topic
        self._board = board
        self._sink = sink
        self._metrics = metrics
        self._health = health
        self._connection: Connection | None = None
        self._retry_s = _FIRST_RETRY_S

    async def run(self, consumer: AIOKafkaConsumer) -> None:
        """Open lanes as they become stale; runs until cancelled."""
        self._health.watch("open", SILENCE_S)
        try:
            while True:
                self._health.beat("open")
                self._board.to_open.clear()
                lanes, stopped = self._board.to_be_opened(), self._board.stopped()
                if lanes or stopped:
                    await self._try(consumer, lanes, stopped)
                self._tell()
                if not self._board.to_be_opened():
                    await self._wait()
        finally:
            self._health.unwatch("open")
            await database.close(self._connection)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_IDLE_S):
                await self._board.to_open.wait()
        except TimeoutError:
            return

    async def _try(
        self, consumer: AIOKafkaConsumer, lanes: Sequence[Lane], stopped: Sequence[Lane]
    ) -> None:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await database.connect(self._url, "inferbus open")
            if stopped:
                numbers = [lane.partition for lane in stopped]
                stored = await read_stored(self._connection, self._topic, numbers)
                self._board.revive({number: each.era for number, each in stored.items()})
            if lanes:
                await self._open(self._connection, consumer, lanes)
        except FencedError:
            _log.info("fenced_while_opening")
        except asyncpg.UndefinedTableError:
            reason = "the log has no tables yet: run `python -m inferbus_logger migrate`"
            _log.error("no_tables", reason=reason)
            self._health.not_ready("partitions", reason)
            await asyncio.sleep(_IDLE_S)
        except (*database.UNAVAILABLE, asyncpg.PostgresError, KafkaError) as error:
            _log.warning("open_failed", error=repr(error))
            self._health.not_ready("partitions", "Postgres or Kafka does not answer")
            if self._connection is not None and not isinstance(error, KafkaError):
                self._connection.terminate()
                self._connection = None
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(self._retry_s * 2, _LAST_RETRY_S)
        else:
            self._retry_s = _FIRST_RETRY_S

    async def _open(
        self, connection: Connection, consumer: AIOKafkaConsumer, lanes: Sequence[Lane]
    ) -> None:
        numbers = [lane.partition for lane in lanes]
        bus = await self._ask_kafka(consumer, numbers)
        stored = await read_stored(connection, self._topic, numbers)
        for lane in lanes:
            while True:
                known = stored.get(lane.partition)
                decision = positions.decide(known, bus[lane.partition])
                if isinstance(decision, positions.Begin):
                    await self._begin(connection, lane.partition, bus[lane.partition])
                elif isinstance(decision, positions.Skip) and known is not None:
                    await self._skip(connection, known, decision.offset)
                else:
                    break
                stored |= await read_stored(connection, self._topic, [lane.partition])
            if isinstance(decision, positions.Stop):
                lane.stop(decision, known)
            elif isinstance(decision, positions.Resume) and known is not None:
                lane.begin(known, decision)

    async def _ask_kafka(
        self, consumer: AIOKafkaConsumer, numbers: Sequence[int]
    ) -> dict[int, Bus]:
        places = [TopicPartition(self._topic, number) for number in numbers]
        async with asyncio.timeout(_KAFKA_TIMEOUT_S):
            topic_id = await identity.topic_id(consumer, self._topic)
            starts, ends = await asyncio.gather(
                consumer.beginning_offsets(places), consumer.end_offsets(places)
            )
        return {
            place.partition: Bus(topic_id, int(starts[place]), int(ends[place])) for place in places
        }

    async def _begin(self, connection: Connection, partition: int, bus: Bus) -> None:
        await connection.execute(
            "INSERT INTO log.sink_offsets"
            " (topic, topic_id, part, era, start_offset, next_offset, last_id, chain)"
            " VALUES ($1, $2, $3, 0, $4, $4, '', $5) ON CONFLICT DO NOTHING",
            self._topic,
            bus.topic_id,
            partition,
            bus.log_start,
            NO_CHAIN,
        )
        _log.info("log_begins", partition=partition, offset=bus.log_start)

    async def _skip(self, connection: Connection, known: Stored, offset: int) -> None:
        gap = Batch(known.partition, known.era, known.next_offset, offset, kind="gap")
        await self._sink.write(connection, [Planned(gap, known.chain)])
        _log.error(
            "gap",
            partition=known.partition,
            start=known.next_offset,
            end=offset,
            reason="Kafka's retention dropped records before they were logged; keep them longer "
            "than the longest time without Postgres",
        )

    def _tell(self) -> None:
        """Say how many partitions wait, and why."""
        stopped = self._board.stopped()
        self._metrics.stopped_partitions.set(len(stopped))
        if stopped:
            self._health.not_ready(
                "partitions", "; ".join(sorted(lane.stopped for lane in stopped))
            )
        elif not self._board.to_be_opened():
            self._health.ready("partitions")
