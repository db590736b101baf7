"""Records of submissions as a consumer gives them; an error costs none of them.

In: partitions that any program of a tenant writes to. Out: records, and stand-ins for those that
cannot be read (`inferbus_guard.batches`), each where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from inferbus_guard import batches
from inferbus_kit.consume import Record

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
        self._astray = False
        batches.guard(consumer)

    async def read(self, places: Collection[TopicPartition], timeout_ms: int) -> Found:
        """Return what came in time of these partitions; at least one is named.

        Raises:
            KafkaError: nothing can be read at present.
        """
        if self._astray:
            await self._rewind()
        self._astray = True
        found = await self._consumer.getmany(*places, timeout_ms=timeout_ms, max_records=256)
        self._astray = False
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
