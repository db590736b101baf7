"""A look at all inboxes of the pool: how many there are, and which were not read to their end.

In: nothing. Out: what `Facts` of the lease wants, by three round trips to Kafka.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.kafka import client_options
from inferbus_worker.errors import NoTopicError

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look saw: the number of inboxes, and those whose committed offset is below the end."""

    n_inboxes: int
    behind: frozenset[int]


class Survey:
    """Two connections of their own, so that a look never waits for a consumer's long poll."""

    def __init__(self, bootstrap: str, topic: str, group: str, client_id: str) -> None:
        self._topic = topic
        self._group = group
        self._admin = AIOKafkaAdminClient(**client_options(bootstrap), client_id=client_id)
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap), client_id=client_id, enable_auto_commit=False
        )

    async def start(self) -> None:
        """Connect.

        Raises:
            BusUnavailableError: no broker answered in time.
        """
        try:
            async with asyncio.timeout(30.0):
                await self._admin.start()
                await self._consumer.start()
        except (TimeoutError, KafkaError) as error:
            raise BusUnavailableError("Kafka does not answer; is it running?") from error

    async def stop(self) -> None:
        """Disconnect, bounded."""
        for close in (self._consumer.stop, self._admin.close):
            with contextlib.suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(2.0):
                    await close()

    async def look(self) -> Sight:
        """Look once.

        Raises:
            NoTopicError: the topic does not exist.
            KafkaError, TimeoutError: Kafka did not answer.
        """
        async with asyncio.timeout(_TIMEOUT_S):
            (found,) = await self._admin.describe_topics([self._topic])
            n_inboxes = len(found["partitions"])
            if not n_inboxes:
                raise NoTopicError(
                    f"the topic {self._topic} does not exist; create the pool's topics first"
                )
            places = [TopicPartition(self._topic, inbox) for inbox in range(n_inboxes)]
            firsts = await self._consumer.beginning_offsets(places)
            ends = await self._consumer.end_offsets(places)
            committed = await self._admin.list_consumer_group_offsets(self._group)
        behind = set()
        for place in places:
            said = committed.get(place)
            at = said.offset if said is not None and said.offset >= 0 else firsts[place]
            # Records below the log's start are gone: nobody can read them any more.
            if max(at, firsts[place]) < ends[place]:
                behind.add(place.partition)
        return Sight(n_inboxes, frozenset(behind))
