"""Reads the prediction stream into the lanes of this process.

In: partitions from the consumer group, or a fixed list. Out: records in lanes. Kafka's group
decides only who reads what; positions come from Postgres, and two readers of one partition are
told apart by the compare-and-set of the sink.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import TopicPartition

from inferbus_kit.errors import StartupError
from inferbus_kit.health import Health
from inferbus_kit.kafka import client_options, stop_client
from inferbus_logger import identity
from inferbus_logger.lanes import Board

_log = structlog.get_logger("consume")

SILENCE_S: Final = 60.0
REVOKE_TIMEOUT_S: Final = 2.0
_START_TIMEOUT_S: Final = 30.0
_POLL_MS: Final = 200
_CROWDED_POLL_MS: Final = 10
_RETRY_S: Final = 0.3
_UNSOUGHT_S: Final = 0.05


class Reader(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka carries no types
    """One consumer and its loop.

    Invariants: only this loop seeks, so that no record from before a seek reaches a lane after it;
    while the board is crowded all partitions are paused, and else those that it holds back; polling
    goes on, so that the group does not take a waiting logger for a dead one.
    """

    def __init__(
        self,
        *,
        bootstrap: str,
        client_id: str,
        topic: str,
        group: str,
        partitions: tuple[int, ...] | None,
        board: Board,
        health: Health,
        traced: bool,
        answered: frozenset[str],
    ) -> None:
        self.topic = topic
        self._fixed = partitions
        self._board = board
        self._health = health
        self._traced = traced
        self._answered = answered
        self._paused: set[TopicPartition] = set()
        self.consumer = AIOKafkaConsumer(
            **client_options(bootstrap),
            client_id=client_id,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            session_timeout_ms=6_000,
            heartbeat_interval_ms=500,
            # A large record comes whole whatever these say.
            max_partition_fetch_bytes=2 << 20,
            fetch_max_bytes=32 << 20,
            # Many small answers would cost more than all else at a few thousand records a second.
            fetch_min_bytes=256 << 10,
            fetch_max_wait_ms=100,
            request_timeout_ms=10_000,
            retry_backoff_ms=100,
            metadata_max_age_ms=30_000,
        )

    async def start(self) -> None:
        """Connect and ask for partitions.

        Raises:
            StartupError: Kafka does not answer, or has no such topic.
        """
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self.consumer.start()
                numbers = await identity.partitions(self.consumer, self.topic)
        except (TimeoutError, KafkaError) as error:
            await self.stop()
            raise StartupError(
                "Kafka does not answer: see that it runs and that INFERBUS_KAFKA_BOOTSTRAP is right"
            ) from error
        if not numbers:
            await self.stop()
            raise StartupError(
                f"Kafka has no topic {self.topic}: create the topics of the catalogue first"
            )
        if self._fixed is None:
            self._health.not_ready("assignment", "waiting for partitions from the group")
            self.consumer.subscribe([self.topic], listener=self)
            return
        if unknown := sorted(set(self._fixed) - numbers):
            await self.stop()
            raise StartupError(
                f"INFERBUS_LOG_PARTITIONS: the topic has no partition {unknown[0]}, only 0 to "
                f"{max(numbers)}"
            )
        self.consumer.assign([TopicPartition(self.topic, number) for number in self._fixed])
        self._board.assign(self._fixed)

    async def stop(self) -> None:
        """Close, within 3 s."""
        await stop_client(self.consumer)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let the transactions under way end, for a moment, and let go."""
        numbers = {place.partition for place in revoked}
        self._board.reopen(numbers)
        if numbers and not await self._board.settle(numbers, REVOKE_TIMEOUT_S):
            _log.warning("revoked_inside_a_transaction")
        self._board.release(numbers)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Take partitions; they are opened in the background."""
        numbers = sorted(place.partition for place in assigned)
        _log.info("assigned", partitions=numbers)
        self._paused = set()
        self._board.assign(numbers)
        if numbers:
            self._health.not_ready("partitions", "finding where the log ends")
        self._health.ready("assignment")

    async def run(self) -> None:
        """Fill lanes until cancelled."""
        self._health.watch("consume", SILENCE_S)
        try:
            while True:
                self._health.beat("consume")
                try:
                    self._seek()
                    await self._step()
                except OffsetOutOfRangeError as error:
                    # The log was cut off here, at either end: look at it anew.
                    self._board.reopen([place.partition for place in error.args[0]])
                except NoOffsetForPartitionError:
                    # Assigned and not sought yet; there is no other source of a position.
                    await asyncio.sleep(_UNSOUGHT_S)
                except (KafkaError, IllegalStateError) as error:
                    _log.warning("read_failed", error=repr(error))
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._health.unwatch("consume")

    def _seek(self) -> None:
        for lane in self._board.lanes.values():
            place = TopicPartition(self.topic, lane.partition)
            if lane.seek_to is not None and place in self.consumer.assignment():
                offset = lane.sought()
                self.consumer.seek(place, offset)

    async def _step(self) -> None:
        wait_ms = _CROWDED_POLL_MS if self._hold_or_go() else _POLL_MS
        found: dict[Any, Any] = await self.consumer.getmany(timeout_ms=wait_ms)
        now_s = time.monotonic()
        stale = False
        for place, records in found.items():
            lane = self._board.lanes.get(place.partition)
            if lane is not None and lane.open:
                lane.offer(records, now_s, traced=self._traced, answered=self._answered)
                stale = stale or not lane.open
        if found:
            self._board.to_write.set()
        if stale:
            self._board.to_open.set()

    def _hold_or_go(self) -> bool:
        """Pause what must wait; tell whether that is all."""
        assigned, crowded = self.consumer.assignment(), self._board.crowded()
        held_back = self._board.held_back()
        waits = {place for place in assigned if crowded or place.partition in held_back}
        if waits != self._paused:
            self.consumer.pause(*(waits - self._paused))
            self.consumer.resume(*(self._paused & assigned - waits))
            self._paused = waits
        return crowded
