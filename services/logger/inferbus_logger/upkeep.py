"""What a logger does beside logging, every few seconds.

In: the lanes. Out: partitions ahead of time, old days taken out, the alarm of the default
partition, lag and rows, Kafka's committed offsets for lag dashboards, a second look after a
reconnect.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from typing import Final

import asyncpg
import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from inferbus_kit.metrics import LoggerMetrics
from inferbus_logger import database, identity
from inferbus_logger.answers import Answers
from inferbus_logger.consume import Reader
from inferbus_logger.database import Connection
from inferbus_logger.lanes import Board
from inferbus_logger.partitions import Partitions, default_rows

_log = structlog.get_logger("upkeep")

_STEP_S: Final = 1.0
_TABLES_S: Final = 30.0
_COMMIT_TIMEOUT_S: Final = 3.0


class Upkeep:
    """The loop of small duties.

    Invariants: none of them is needed for a row to be right; each failure is logged and tried
    again at the next round.
    """

    def __init__(
        self,
        *,
        postgres_url: str,
        reader: Reader,
        board: Board,
        partitions: Partitions,
        answers: Answers | None,
        metrics: LoggerMetrics,
        retention_days: int,
    ) -> None:
        self._url = postgres_url
        self._reader = reader
        self._board = board
        self._partitions = partitions
        self._answers = answers
        self._metrics = metrics
        self._retention_days = retention_days
        self._connections: frozenset[object] = frozenset()
        self._committed: dict[int, int] = {}
        self._measured: set[int] = set()
        self._before: dict[int, tuple[tuple[int, int], int]] = {}

    async def run(self) -> None:
        """Go round until cancelled."""
        tables_due_s = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            self._look_again_after_reconnect()
            self._measure_lag()
            if self._answers is not None:
                self._answers.look(self._board.positions())
            await self._count_rows()
            await self.commit()
            if clock() >= tables_due_s and await self._tables():
                tables_due_s = clock() + _TABLES_S
            await asyncio.sleep(_STEP_S)

    def _look_again_after_reconnect(self) -> None:
        """Open all lanes anew where a broker was away: it may have lost its tail meanwhile."""
        seen = identity.connections(self._reader.consumer)
        lost = self._connections - seen
        self._connections = seen
        if lost:
            _log.info("kafka_reconnected")
            self._board.reopen()

    def _measure_lag(self) -> None:
        for partition in self._measured - set(self._board.lanes):
            # It is another logger's now; a figure left behind would count twice.
            self._metrics.lag_records.remove(str(partition))
        self._measured &= set(self._board.lanes)
        for lane in self._board.lanes.values():
            place = TopicPartition(self._reader.topic, lane.partition)
            if place not in self._reader.consumer.assignment():
                continue
            end = self._reader.consumer.highwater(place)
            if end is not None and lane.open:
                lag = max(0, end - lane.next_offset)
                self._metrics.lag_records.labels(str(lane.partition)).set(lag)
                self._measured.add(lane.partition)

    async def _count_rows(self) -> None:
        """Tell how many rows each partition has: those before its lane began, and those since."""
        lanes = {lane.partition: lane for lane in self._board.lanes.values() if lane.open}
        for partition in set(self._before) - set(self._board.lanes):
            self._metrics.stored_rows.remove(str(partition))
            del self._before[partition]
        unknown = {
            number: lane.began
            for number, lane in lanes.items()
            if number not in self._before or self._before[number][0] != lane.began
        }
        if unknown:
            try:
                counted = await rows_before(self._url, self._reader.topic, unknown)
            except (*database.UNAVAILABLE, asyncpg.PostgresError) as error:
                _log.warning("rows_not_counted", error=repr(error))
                return
            self._before |= {number: (unknown[number], counted[number]) for number in unknown}
        for number, lane in lanes.items():
            began, before = self._before[number]
            if began == lane.began:
                self._metrics.stored_rows.labels(str(number)).set(before + lane.n_rows)

    async def commit(self) -> None:
        """Commit how far the log is; only for who looks at the group's lag."""
        ahead = {
            lane.partition: lane.next_offset
            for lane in self._board.lanes.values()
            if lane.open and self._committed.get(lane.partition) != lane.next_offset
        }
        if not ahead:
            return
        try:
            async with asyncio.timeout(_COMMIT_TIMEOUT_S):
                await self._reader.consumer.commit(
                    {
                        TopicPartition(self._reader.topic, partition): offset
                        for partition, offset in ahead.items()
                    }
                )
        except (TimeoutError, KafkaError, ValueError) as error:
            # Not a member at present, or the group is another's; the next round will do.
            _log.debug("commit_failed", error=repr(error))
        else:
            self._committed |= ahead

    async def _tables(self) -> bool:
        connection: Connection | None = None
        try:
            connection = await database.connect(self._url, "inferbus upkeep")
            today = dt.datetime.now(dt.UTC).date()
            await self._partitions.ahead(connection, today)
            if self._retention_days:
                oldest = today - dt.timedelta(days=self._retention_days)
                await self._partitions.retire(connection, oldest)
            outside = await default_rows(connection)
        except (*database.UNAVAILABLE, asyncpg.PostgresError) as error:
            _log.warning("upkeep_failed", error=repr(error))
            return False
        finally:
            await database.close(connection)
        self._metrics.default_partition_rows.set(outside)
        if outside:
            _log.error(
                "rows_outside_all_days",
                rows=outside,
                reason="ids whose time is far from their record's; see the README of the logger",
            )
        return True


async def rows_before(
    postgres_url: str, topic: str, places: Mapping[int, tuple[int, int]]
) -> dict[int, int]:
    """Return how many rows each partition's batches have before an era and offset of it."""
    connection: Connection | None = None
    try:
        connection = await database.connect(postgres_url, "inferbus rows")
        return {
            number: int(
                await connection.fetchval(
                    "SELECT coalesce(sum(n_rows), 0) FROM log.log_batches"
                    " WHERE topic = $1 AND part = $2 AND (era, base_offset) < ($3, $4)",
                    topic,
                    number,
                    *began,
                )
            )
            for number, began in places.items()
        }
    finally:
        await database.close(connection)
