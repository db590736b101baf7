"""Copies of predictions for tenants that read their own answers over Kafka.

In: batches that a transaction is about to commit. Out: their records, value, key and headers as
they were, on `inference.answers.<tenant>`, acknowledged before the commit, or an error that rolls
it back. So none is lost, and one stands there twice only where a process ends in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from inferbus_kit.errors import StartupError
from inferbus_kit.health import Health
from inferbus_kit.kafka import client_options
from inferbus_kit.metrics import LoggerMetrics
from inferbus_logger.plan import Batch
from inferbus_logger.rows import Item
from inferbus_schemas import topics

_log = structlog.get_logger("answers")

TIMEOUT_S: Final = 5.0
"""Longest wait for Kafka; Postgres lets a transaction idle for twice as long."""
PATIENCE_S: Final = 10.0
"""A topic that refuses for this long is not waited for any more."""
RETRY_S: Final = 30.0
"""How long nothing is tried then."""
_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 2.0
_REFUSALS: Final = (
    InvalidTopicError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
"""Kafka answers, and does not take this topic's records: time alone will not mend it."""


class AnswersError(Exception):
    """Kafka did not take what it must have before the transaction may commit."""


class Place(NamedTuple):
    """Where copies of one tenant come from; offsets count anew in each era."""

    tenant: str
    partition: int
    era: int


@dataclass(slots=True)
class _Way:
    """A tenant's topic, since when it refuses, and until when nothing is tried."""

    topic: str
    refuses_s: float | None = None
    shut_until_s: float = 0.0


class Answers:
    """The topics of some tenants.

    Invariants: `hand_over` returns when each record of theirs is acknowledged, or was given up,
    counted and told, since its topic has refused for `PATIENCE_S`; it takes `TIMEOUT_S` at most,
    however many tenants there are; what was acknowledged is not sent again by this process; copies
    of one partition stand in one partition, in its order.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str,
        tenants: Sequence[str],
        metrics: LoggerMetrics,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        entry = topics.topic(topics.ANSWERS)
        self._ways = {tenant: _Way(entry.for_tenant(tenant).name) for tenant in tenants}
        self._metrics = metrics
        self._health = health
        self._clock = clock
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
        self._client: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._acknowledged: dict[Place, int] = {}

    async def start(self) -> None:
        """Connect, and see that each tenant has its topic.

        Raises:
            StartupError: Kafka does not answer, or a topic is not there.
        """
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                client = await self._connected()
                missing = [
                    (tenant, way.topic)
                    for tenant, way in self._ways.items()
                    if not await _partitions(client, way.topic)
                ]
        except (OSError, KafkaError) as error:
            await self.stop()
            raise StartupError(
                "Kafka does not answer: see that it runs and that INFERBUS_KAFKA_BOOTSTRAP is right"
            ) from error
        if missing:
            await self.stop()
            tenant, topic = missing[0]
            raise StartupError(
                f"INFERBUS_ANSWER_TENANTS: Kafka shows this logger no topic {topic}: run `inferbus "
                f"topics add-tenant {tenant}` first"
            )

    async def stop(self) -> None:
        """Close, bounded."""
        if self._client is not None:
            await _close(self._client)
        for task in list(self._closing):
            task.cancel()

    async def hand_over(self, batches: Sequence[Batch]) -> None:
        """Copy what these batches store of the tenants.

        Raises:
            AnswersError: not all of it was taken; the batches must not be committed.
        """
        due: dict[str, dict[Place, list[Item]]] = {}
        for batch in batches:
            stored = (item for item in (*batch.rows, *batch.quarantine) if item.answer is not None)
            for item in sorted(stored, key=lambda item: item.offset):
                assert item.answer is not None  # noqa: S101 -- as asked above
                place = Place(item.answer.tenant, batch.partition, batch.era)
                if item.offset > self._acknowledged.get(place, -1):
                    due.setdefault(place.tenant, {}).setdefault(place, []).append(item)
        if not due:
            return
        ended = await asyncio.gather(
            *(self._copy(tenant, places) for tenant, places in due.items()), return_exceptions=True
        )
        for error in ended:
            if error is not None:
                raise error

    async def _copy(self, tenant: str, places: Mapping[Place, Sequence[Item]]) -> None:
        way = self._ways[tenant]
        n_records = sum(map(len, places.values()))
        if self._clock() < way.shut_until_s:
            self._metrics.answers.labels(tenant, "refused").inc(n_records)
            return
        client: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                client = await self._connected()
                await self._send(client, way.topic, places)
        except _REFUSALS as error:
            self._refused(tenant, error, n_records)
        except (OSError, KafkaError) as error:
            self._drop(client)
            reason = f"Kafka does not take the answers of {tenant}"
            self._health.not_ready(f"answers of {tenant}", reason)
            raise AnswersError(reason) from error
        else:
            way.refuses_s = None
            self._health.ready(f"answers of {tenant}")
            self._metrics.answers.labels(tenant, "copied").inc(n_records)

    def _refused(self, tenant: str, error: KafkaError, n_records: int) -> None:
        """Ask for another try, or give the records up once that has gone on for long."""
        way, now_s = self._ways[tenant], self._clock()
        reason = (
            f"Kafka refuses the answers of {tenant}: see that the topic {way.topic} is there and "
            "that this logger may write to it"
        )
        self._health.not_ready(f"answers of {tenant}", reason)
        if way.refuses_s is None:
            way.refuses_s = now_s
        if now_s - way.refuses_s < PATIENCE_S:
            raise AnswersError(reason) from error
        way.shut_until_s = now_s + RETRY_S
        self._metrics.answers.labels(tenant, "refused").inc(n_records)
        _log.error("answers_given_up", tenant=tenant, reason=reason, error=repr(error))

    async def _send(
        self, client: AIOKafkaProducer, topic: str, places: Mapping[Place, Sequence[Item]]
    ) -> None:
        numbers = await _partitions(client, topic)
        if not numbers:
            raise UnknownTopicOrPartitionError(topic)
        sent: list[asyncio.Future[Any]] = []
        failed: set[Place] = set()
        for place, items in places.items():
            number = numbers[place.partition % len(numbers)]
            for parcel, last in _parcels(client, items):
                delivery = await client.send_batch(parcel, topic, partition=number)
                delivery.add_done_callback(functools.partial(self._heard, place, last, failed))
                sent.append(delivery)
        # Not cancelled when time is up: aiokafka's sender would stumble over that.
        await asyncio.wait(sent)
        for delivery in sent:
            await delivery

    def _heard(
        self, place: Place, last: int, failed: set[Place], delivery: asyncio.Future[Any]
    ) -> None:
        """Note what was acknowledged, if only after the time was up; a hole is not passed."""
        if delivery.cancelled() or delivery.exception() is not None:
            failed.add(place)
        elif place not in failed:
            self._acknowledged[place] = max(last, self._acknowledged.get(place, -1))

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._client is None:
                client = AIOKafkaProducer(**self._options)
                try:
                    await client.start()
                except BaseException:
                    self._close_later(client)
                    raise
                self._client = client
            return self._client

    def _drop(self, client: AIOKafkaProducer | None) -> None:
        """Let the next try have a client of its own; this one may hold what nobody waits for."""
        if client is not None and client is self._client:
            self._client = None
            self._close_later(client)

    def _close_later(self, client: AIOKafkaProducer) -> None:
        task = asyncio.get_running_loop().create_task(_close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _partitions(client: AIOKafkaProducer, topic: str) -> list[int]:
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


def _parcels(client: AIOKafkaProducer, items: Sequence[Item]) -> Iterator[tuple[Any, int]]:
    """Yield batches as large as they may be, each with the offset that its last copy is of."""
    parcel, last = client.create_batch(), -1
    for item in items:
        assert item.answer is not None  # noqa: S101 -- `hand_over` looked
        told = {
            "timestamp": None,
            "key": item.answer.key,
            "value": item.value,
            "headers": list(item.answer.headers),
        }
        if parcel.append(**told) is None:
            yield parcel, last
            parcel = client.create_batch()
            parcel.append(**told)
        last = item.offset
    yield parcel, last


async def _close(client: AIOKafkaProducer) -> None:
    """Stop a client; with no broker its own stop waits for what it holds."""
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await client.stop()
