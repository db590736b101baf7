"""Writers: each owns one connection and turns what waits on the board into transactions.

In: batches of lanes that are due. Out: committed batches, or lanes that are opened anew. When
Postgres is away a writer waits for it; Kafka holds the log meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import asyncpg
import structlog

from inferbus_kit.health import Health
from inferbus_kit.metrics import LoggerMetrics
from inferbus_logger import database
from inferbus_logger.answers import AnswersError
from inferbus_logger.database import Connection
from inferbus_logger.lanes import Board
from inferbus_logger.partitions import Partitions
from inferbus_logger.sink import FencedError, Planned, Sink, Written
from inferbus_telemetry.spans import Tracing

_log = structlog.get_logger("write")

SILENCE_S: Final = 90.0
"""A writer that has not come round for this long hangs; longer than a command's own timeout."""
_IDLE_S: Final = 1.0
_FIRST_BACKOFF_S: Final = 0.1
_LAST_BACKOFF_S: Final = 3.0


class Writer:
    """One connection's loop.

    Invariants: never two operations on its connection; what it took from the board it gives back,
    committed or abandoned; what Kafka does not take of one partition's answers holds up that
    partition alone; after `stopping` it ends with the transaction that is under way.
    """

    def __init__(
        self,
        name: str,
        *,
        postgres_url: str,
        topic: str,
        board: Board,
        sink: Sink,
        partitions: Partitions,
        metrics: LoggerMetrics,
        health: Health,
        tracing: Tracing,
    ) -> None:
        self.name = name
        self._url = postgres_url
        self._topic = topic
        self._board = board
        self._sink = sink
        self._partitions = partitions
        self._metrics = metrics
        self._health = health
        self._tracing = tracing
        self._held: list[Planned] = []
        self._connection: Connection | None = None
        self._backoff_s = _FIRST_BACKOFF_S
        self.stopping = False

    async def run(self) -> None:
        """Write until `stopping`."""
        self._health.watch(self.name, SILENCE_S)
        try:
            while not self.stopping:
                self._health.beat(self.name)
                if self._connection is None and not await self._connect():
                    continue
                self._board.to_write.clear()
                planned, due_s = self._board.work()
                if planned:
                    await self._write(planned)
                else:
                    await self._wait(due_s)
        finally:
            self._health.unwatch(self.name)
            await database.close(self._connection)

    async def _wait(self, due_s: float | None) -> None:
        wait_s = _IDLE_S if due_s is None else min(_IDLE_S, max(0.0, due_s - time.monotonic()))
        try:
            async with asyncio.timeout(wait_s):
                await self._board.to_write.wait()
        except TimeoutError:
            return

    async def _connect(self) -> bool:
        try:
            self._connection = await database.connect(self._url, f"inferbus {self.name}")
        except (*database.UNAVAILABLE, asyncpg.PostgresError) as error:
            _log.warning("postgres_unavailable", error=repr(error))
            self._health.not_ready("postgres", "Postgres does not answer")
            await self._back_off()
            return False
        # It may be another Postgres than before, or an older state of it.
        self._board.reopen()
        self._health.ready("postgres")
        return True

    async def _back_off(self) -> None:
        await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter
        self._backoff_s = min(self._backoff_s * 2, _LAST_BACKOFF_S)

    async def _write(self, planned: Sequence[Planned]) -> None:
        """Write batches; together where that goes, else each by itself."""
        assert self._connection is not None  # noqa: S101 -- `run` connected
        self._held = list(planned)
        try:
            await self._partitions.cover(self._connection, [each.batch for each in planned])
            await self._together(self._connection, planned)
        except database.UNAVAILABLE as error:
            _log.warning("postgres_lost", error=repr(error))
            self._health.not_ready("postgres", "Postgres does not answer")
            self._connection.terminate()
            self._connection = None
            await self._give_up()
        except AnswersError as error:
            _log.warning("answers_not_taken", error=str(error), reason=repr(error.__cause__))
            await self._write_others(error.partitions)
        except asyncpg.PostgresError as error:
            # Rolled back for certain: a deadlock, a lock that took too long, a full disk.
            _log.warning("transaction_failed", error=repr(error))
            await self._give_up()
        else:
            self._backoff_s = _FIRST_BACKOFF_S

    async def _write_others(self, waits: frozenset[int]) -> None:
        """Give back what waits for a topic of answers, and write the rest: its copies are taken."""
        self._health.beat(self.name)
        rest = [each for each in self._held if each.batch.partition not in waits]
        self._board.set_apart([each for each in self._held if each.batch.partition in waits])
        self._held = []
        if rest:
            await self._write(rest)

    async def _give_up(self) -> None:
        self._board.abandoned(self._held)
        self._held = []
        await self._back_off()

    async def _together(self, connection: Connection, planned: Sequence[Planned]) -> None:
        started = time.time_ns()
        try:
            written = await self._sink.write(connection, planned)
        except database.UNAVAILABLE:
            raise
        except (FencedError, *database.REFUSED_ROW):
            # One of them lost its partition, has an id with a row, or a row that is refused.
            await self._one_by_one(connection, planned)
        else:
            self._committed(planned, written, started)

    async def _one_by_one(self, connection: Connection, planned: Sequence[Planned]) -> None:
        for each in planned:
            self._health.beat(self.name)
            started = time.time_ns()
            try:
                written = await self._sink.write_staged(connection, each)
            except FencedError:
                self._metrics.fenced.inc()
                _log.info("fenced", partition=each.batch.partition, base=each.batch.base)
                self._board.abandoned([each])
                self._held.remove(each)
            else:
                self._committed([each], [written], started)

    def _committed(
        self, planned: Sequence[Planned], written: Sequence[Written], started_ns: int
    ) -> None:
        ended_ns = time.time_ns()
        self._metrics.commit_seconds.observe((ended_ns - started_ns) / 1e9)
        self._board.committed(planned, written)
        self._held = [each for each in self._held if each not in planned]
        if not self._tracing.on:
            return
        # The rows of a job's chunk share a context, and so a span.
        traced: dict[str, list[int]] = {}
        for item in (item for each in written for item in each.batch.rows):
            if item.traceparent:
                traced.setdefault(item.traceparent, []).append(item.offset)
        for context, offsets in traced.items():
            if self._tracing.sampled(context):
                self._tracing.span(
                    f"process {self._topic}",
                    parent=context,
                    kind="CONSUMER",
                    start_ns=started_ns,
                    end_ns=ended_ns,
                    attributes={
                        "messaging.kafka.message.offset": offsets[0],
                        "messaging.batch.message_count": len(offsets),
                    },
                )
