"""Records of submissions as a consumer gives them; an error costs none of them.

In: partitions that any program of a tenant writes to. Out: records, and stand-ins for those that
cannot be read (`submission_batches`), each where it stood.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from inferbus_gateway.hot.submission_batches import REASON, readable
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
        self._send = consumer._client.send  # noqa: SLF001 -- docs/decisions/0019-batches-are-made-readable-first.md
        consumer._client.send = self._sent  # noqa: SLF001

    async def read(self, timeout_ms: int) -> Found:
        """Return what came in time.

        Raises:
            KafkaError: nothing can be read at present.
        """
        try:
            found = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=256)
        except KafkaError:
            await self._rewind()
            raise
        return [(place, record) for place, records in found.items() for record in records]

    async def _sent(self, node_id: int, request: Any, **how: Any) -> Any:
        """Send a request; of a fetch, make what came readable."""
        response = await self._send(node_id, request, **how)
        if type(response).__name__.startswith("FetchResponse"):
            response.topics = await asyncio.to_thread(_topics, response.topics)
        return response

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


def why_unreadable(record: Record) -> str | None:
    """Return why a record cannot be read, where it stands for one; else None."""
    for name, value in record.headers:
        if name == REASON:
            return (value or b"").decode()
    return None


def _topics(topics: Sequence[Any]) -> list[Any]:
    """Return the same, with batches that the client can read; they are each partition's last."""
    return [
        (topic, [(*partition[:-1], readable(partition[-1] or b"")) for partition in partitions])
        for topic, partitions in topics
    ]
