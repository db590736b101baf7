"""Producers for copies of answers: one for each tenant, so that none fails by another's Kafka.

In: tenants and their topics. Out: a connected producer of a tenant's own, and whether Kafka shows a
topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from inferbus_kit.kafka import client_options
from inferbus_kit.produce import close, fail_queued

IDLE_S: Final = 60.0
"""A client that nobody asked for for this long is closed; a copy takes a few seconds at most."""


@dataclass(slots=True)
class _Seat:
    """A tenant's client, where there is one, and when it was asked for last."""

    client: AIOKafkaProducer | None = None
    used_s: float = 0.0
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Clients:
    """One client for each tenant that had copies of late, and one that looks at the topics of all.

    Invariants: no two clients take copies of one tenant; one that is dropped sends nothing that it
    had only queued; there are never more than tenants, and one.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str,
        tenants: Iterable[str],
        clock: Callable[[], float],
    ) -> None:
        # Not idempotent: that would send one batch for ever, and readers know doubles anyway.
        self._options: dict[str, Any] = {
            **client_options(bootstrap),
            "client_id": client_id,
            "acks": "all",
            "max_batch_size": 1 << 20,
            "request_timeout_ms": 4_000,
            "retry_backoff_ms": 100,
            "metadata_max_age_ms": 10_000,  # a topic that is made anew is found again
        }
        self._clock = clock
        self._seats = {tenant: _Seat() for tenant in tenants}
        self._scout: AIOKafkaProducer | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Return how many tenants have one."""
        return sum(seat.client is not None for seat in self._seats.values())

    async def start(self, topics: Iterable[str]) -> None:
        """Look at the topics.

        Raises:
            OSError, KafkaError: Kafka does not answer.
        """
        self._scout = await self._connect()
        for topic in topics:
            await partitions(self._scout, topic)

    async def stop(self) -> None:
        """Close all, bounded."""
        for seat in self._seats.values():
            self._let_go(seat)
        scout, self._scout = self._scout, None
        if scout is not None:
            self._close_later(scout)
        if self._closing:
            await asyncio.wait(self._closing)

    def shown(self, topic: str) -> bool:
        """Tell whether Kafka showed this topic at the last look, some seconds ago at most."""
        return self._scout is not None and bool(
            self._scout.client.cluster.partitions_for_topic(topic)
        )

    def look_again(self) -> None:
        """Look at the topics now: a tenant's own client saw another state."""
        if self._scout is not None:
            self._scout.client.force_metadata_update()

    async def of(self, tenant: str) -> AIOKafkaProducer:
        """Return the client of a tenant, connected.

        Raises:
            OSError, KafkaError: Kafka does not answer.
        """
        seat = self._seats[tenant]
        async with seat.connecting:
            seat.used_s = self._clock()
            if seat.client is None:
                seat.client = await self._connect()
            return seat.client

    def drop(self, tenant: str, client: AIOKafkaProducer) -> None:
        """Let the next try have a client of its own; this one may hold what nobody waits for."""
        seat = self._seats[tenant]
        if client is seat.client:
            fail_queued(client)  # else it would still send that, beside the next one
            self._let_go(seat)

    def close_idle(self) -> None:
        """Close those that nobody asked for of late."""
        for seat in self._seats.values():
            if self._clock() - seat.used_s >= IDLE_S:
                self._let_go(seat)

    def _let_go(self, seat: _Seat) -> None:
        client, seat.client = seat.client, None
        if client is not None:
            self._close_later(client)

    async def _connect(self) -> AIOKafkaProducer:
        client = AIOKafkaProducer(**self._options)
        try:
            await client.start()
        except BaseException:
            self._close_later(client)
            raise
        return client

    def _close_later(self, client: AIOKafkaProducer) -> None:
        task = asyncio.get_running_loop().create_task(close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def partitions(client: AIOKafkaProducer, topic: str) -> list[int]:
    """Return a topic's partitions; none where Kafka answers and shows no such topic.

    Raises:
        KafkaError: no broker answered.
    """
    found = client.client.cluster.partitions_for_topic(topic)
    for _ in range(2):  # the first look may have begun before the topic was asked for
        if found:
            break
        client.client.add_topic(topic)
        if not await client.client.force_metadata_update():
            raise KafkaConnectionError("no broker answers")
        found = client.client.cluster.partitions_for_topic(topic)
    return sorted(found or ())
