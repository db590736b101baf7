"""Records of submissions as a consumer gives them, and what it cannot give stepped over.

In: partitions that any program of a tenant writes to. Out: records; and stand-ins for those that
the client cannot read, by their compression or their headers, each where it stood. An error costs
no record that can be read: what the client had taken of others, as it failed, is read again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CorruptRecordException, KafkaError, UnsupportedCodecError
from aiokafka.structs import TopicPartition

from inferbus_kit.consume import Record

_log = structlog.get_logger("submissions")

_DAMAGED = (CorruptRecordException, UnsupportedCodecError, ValueError)
"""What aiokafka raises for bytes that it cannot read; ValueError also of names that are no text."""
_FETCH_S = 0.3
_STEPS = 256
"""So many records of a partition are stepped over before others are read again."""


@dataclass(slots=True)
class Unreadable:
    """Stands for a record that cannot be read; of those in a row `first` is the one to tell of."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    first: bool
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


Found = list[tuple[TopicPartition, Record]]


class SubmissionReads:
    """Reads what a consumer is assigned.

    Invariants: records of a partition come in their order, none is left out; whatever is raised,
    each partition stands where its next record is.
    """

    def __init__(
        self, consumer: AIOKafkaConsumer, position: Callable[[TopicPartition], int | None]
    ) -> None:
        """Read with `consumer`; `position` tells what is next, None before the first."""
        self._consumer = consumer
        self._position = position

    async def read(self, timeout_ms: int) -> Found:
        """Return what came in time.

        Raises:
            KafkaError: nothing can be read at present.
        """
        try:
            found = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=256)
        except _DAMAGED as error:
            _log.warning("submissions_unreadable", error=repr(error)[:300])
            await self._rewind()
            return await self._one_by_one()
        except KafkaError:
            await self._rewind()
            raise
        return [(place, record) for place, records in found.items() for record in records]

    async def _rewind(self) -> None:
        """Stand again behind what was handed out: the client may have drained more as it failed."""
        fresh = []
        for place in self._consumer.assignment():
            at = self._position(place)
            if at is None:
                fresh.append(place)
            else:
                self._consumer.seek(place, at)
        for place in fresh:
            at = await self._consumer.committed(place)
            if at is None:
                await self._consumer.seek_to_beginning(place)
            else:
                self._consumer.seek(place, at)

    async def _one_by_one(self) -> Found:
        """Read a record of each partition, past those that cannot be read."""
        # All are fetched anew; then no empty one is waited for by itself.
        await asyncio.sleep(_FETCH_S)
        found: Found = []
        for place in sorted(self._consumer.assignment() - self._consumer.paused()):
            for step in range(_STEPS):
                at = await self._consumer.position(place)
                wait_ms = 200 if step else 20
                try:
                    batches = await self._consumer.getmany(place, timeout_ms=wait_ms, max_records=1)
                except _DAMAGED:
                    now_ms = int(time.time() * 1000)
                    skipped = Unreadable(place.topic, place.partition, at, now_ms, first=not step)
                    found.append((place, skipped))
                    self._consumer.seek(place, at + 1)
                else:
                    found += [(place, record) for record in batches.get(place, ())]
                    break
        return found
