"""Copies of predictions for tenants that read their own answers over Kafka.

In: batches that a transaction is about to commit. Out: their records, value, key and headers as
they were, on `inference.answers.<tenant>`, acknowledged before the commit, or an error that rolls
it back. So none is lost; a try after a time-out, or another logger's, may double and reorder.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from inferbus_kit.errors import StartupError
from inferbus_kit.health import Health
from inferbus_kit.metrics import LoggerMetrics
from inferbus_logger.answer_clients import Clients, partitions
from inferbus_logger.plan import Batch
from inferbus_logger.positions import Position
from inferbus_logger.refusals import Place, Refusals
from inferbus_logger.rows import Item
from inferbus_schemas import topics

_log = structlog.get_logger("answers")

TIMEOUT_S: Final = 5.0
"""Longest wait for Kafka; Postgres lets a transaction idle for twice as long."""
_START_TIMEOUT_S: Final = 30.0
_TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)
_REFUSALS: Final = (
    InvalidTopicError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
"""Kafka answers, and does not take this topic's records: time alone will not mend it."""


class AnswersError(Exception):
    """Kafka did not take what it must have before the batches of some partitions may commit."""

    def __init__(self, reason: str, partitions: Iterable[int]) -> None:
        super().__init__(reason)
        self.partitions = frozenset(partitions)


class Answers:
    """The topics of some tenants.

    Invariants: `hand_over` returns when each record of theirs is acknowledged, or was given up,
    counted and told: it is too large for its topic, or refused, and `Refusals` waits no longer; it
    takes `TIMEOUT_S` at most, however many tenants there are; what was acknowledged is not sent
    again by this process; copies of one partition go to one partition, in its order, each parcel
    when the one before is acknowledged.
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
        self._topics = {tenant: entry.for_tenant(tenant).name for tenant in tenants}
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._clients = Clients(bootstrap, client_id=client_id, tenants=tenants, clock=clock)
        self._settled: dict[Place, int] = {}
        self._refusals = Refusals()

    async def start(self) -> None:
        """Connect, and tell of each tenant that has no topic.

        Raises:
            StartupError: Kafka does not answer.
        """
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._clients.start(self._topics.values())
        except (OSError, KafkaError) as error:
            await self.stop()
            raise StartupError(
                "Kafka does not answer: see that it runs and that INFERBUS_KAFKA_BOOTSTRAP is right"
            ) from error
        for tenant, topic in self._topics.items():
            if not self._clients.shown(topic):
                self._missing(tenant)

    def _missing(self, tenant: str) -> None:
        self._refusals.note_missing(tenant)
        reason = (
            f"INFERBUS_ANSWER_TENANTS: Kafka shows this logger no topic {self._topics[tenant]}: "
            f"run `inferbus topics add-tenant {tenant}`"
        )
        self._health.not_ready(f"answers of {tenant}", reason)
        _log.error("answers_without_topic", tenant=tenant, reason=reason)

    async def stop(self) -> None:
        """Close, bounded."""
        await self._clients.stop()

    def look(self, log: Mapping[int, Position | None]) -> None:
        """Take back what is not so any more, told how far the partitions are that it has."""
        self._clients.close_idle()
        self._refusals.look(log)
        for tenant, topic in self._topics.items():
            if self._refusals.missing(tenant) and self._clients.shown(topic):
                self._refusals.note_found(tenant)
            self._tell(tenant)

    def _tell(self, tenant: str) -> None:
        if not self._refusals.trouble(tenant):
            self._health.ready(f"answers of {tenant}")

    async def hand_over(self, batches: Sequence[Batch]) -> None:
        """Copy what these batches store of the tenants.

        Raises:
            AnswersError: not all of it was taken; the batches of those partitions must not be
                committed, and the others may be, when they are handed over again.
        """
        due: dict[str, dict[Place, list[Item]]] = {}
        for batch in batches:
            stored = (item for item in (*batch.rows, *batch.quarantine) if item.answer is not None)
            for item in sorted(stored, key=lambda item: item.offset):
                assert item.answer is not None  # noqa: S101 -- as asked above
                place = Place(item.answer.tenant, batch.partition, batch.era)
                if item.offset > self._settled.get(place, -1):
                    due.setdefault(place.tenant, {}).setdefault(place, []).append(item)
        if not due:
            return
        ended = await asyncio.gather(
            *(self._copy(tenant, places) for tenant, places in due.items()), return_exceptions=True
        )
        failed: list[AnswersError] = []
        for error in ended:
            if isinstance(error, AnswersError):
                failed.append(error)
            elif error is not None:
                raise error
        if failed:
            reasons = "; ".join(map(str, failed))
            waits = {number for error in failed for number in error.partitions}
            raise AnswersError(reasons, waits) from failed[0].__cause__

    async def _copy(self, tenant: str, places: Mapping[Place, Sequence[Item]]) -> None:
        tried_s = self._clock()
        due: dict[Place, Sequence[Item]] = {}
        for place, items in places.items():
            if self._refusals.passed_by(place, tried_s):
                self._settle(place, items, "refused")
            else:
                due[place] = items
        if not due:
            return
        client: AIOKafkaProducer | None = None
        errors: dict[Place, Exception] = {}
        broke: Exception | None = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                client = await self._clients.of(tenant)
                await self._send(client, tenant, due, errors)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the transaction is tried again
            broke = error
        refused = {place: one for place, one in errors.items() if isinstance(one, _REFUSALS)}
        unanswered = (errors if broke is None else due).keys() - refused.keys()
        if unanswered and client is not None:
            # Whatever it is, the next try has a client of its own.
            self._clients.drop(tenant, client)
        said = self._unanswered(tenant, {place: due[place] for place in unanswered})
        said |= self._refused(tenant, {place: due[place] for place in refused}, errors, tried_s)
        if said:
            cause = broke or next(iter(errors.values()))
            raise AnswersError("; ".join(sorted(set(said.values()))), said) from cause

    def _unanswered(self, tenant: str, places: Mapping[Place, Sequence[Item]]) -> dict[int, str]:
        """Note where Kafka did not say; return why which partitions wait."""
        reason = f"Kafka does not take the answers of {tenant}"
        waits: dict[int, str] = {}
        for place, items in places.items():
            if (offset := self._first_left(place, items)) is not None:
                self._refusals.unanswered(place, offset)
                waits[place.partition] = reason
        if waits:
            self._health.not_ready(f"answers of {tenant}", reason)
        return waits

    def _first_left(self, place: Place, items: Sequence[Item]) -> int | None:
        """Return the offset of the first record that is not done with."""
        settled = self._settled.get(place, -1)
        return next((item.offset for item in items if item.offset > settled), None)

    def _refused(
        self,
        tenant: str,
        places: Mapping[Place, Sequence[Item]],
        errors: Mapping[Place, Exception],
        tried_s: float,
    ) -> dict[int, str]:
        """Give up what has been refused for long; return why which other partitions wait."""
        now_s = self._clock()
        reason = (
            f"Kafka refuses the answers of {tenant}: see that the topic {self._topics[tenant]} is "
            "there and that this logger may write to it"
        )
        if places:
            self._health.not_ready(f"answers of {tenant}", reason)
        waits: dict[int, str] = {}
        for place, items in places.items():
            offset = self._first_left(place, items)
            if offset is None:  # an earlier try was acknowledged late
                continue
            if self._refusals.refused(place, offset, tried_s, now_s):
                self._settle(place, items, "refused")
                told = {"tenant": tenant, "partition": place.partition, "reason": reason}
                _log.error("answers_given_up", **told, error=repr(errors[place]))
            else:
                waits[place.partition] = reason
        return waits

    async def _send(
        self,
        client: AIOKafkaProducer,
        tenant: str,
        places: Mapping[Place, Sequence[Item]],
        errors: dict[Place, Exception],
    ) -> None:
        """Send, and note in `errors` what is not taken, as Kafka says so."""
        topic = self._topics[tenant]
        numbers = await partitions(client, topic)
        if not numbers:
            self._refusals.note_missing(tenant)
            self._clients.look_again()
            errors.update((place, UnknownTopicOrPartitionError(topic)) for place in places)
            return

        async def send(place: Place, items: Sequence[Item]) -> None:
            number = numbers[place.partition % len(numbers)]
            try:
                await self._send_in_order(client, topic, number, place, items)
            except Exception as error:  # noqa: BLE001 -- it fails the places that it is of alone
                errors[place] = error

        await asyncio.gather(*(send(place, items) for place, items in places.items()))

    async def _send_in_order(
        self,
        client: AIOKafkaProducer,
        topic: str,
        number: int,
        place: Place,
        items: Sequence[Item],
    ) -> None:
        for parcel, held in _parcels(client, items):
            delivery = await client.send_batch(parcel, topic, partition=number)
            delivery.add_done_callback(functools.partial(self._heard, place, held))
            # Not cancelled when time is up: it may be acknowledged a moment later.
            await asyncio.wait([delivery])
            if delivery.cancelled():
                raise KafkaError("the client let go of a record")
            try:
                delivery.result()
            except _TOO_LARGE as error:
                if middle := len(held) // 2:
                    for half in (held[:middle], held[middle:]):
                        await self._send_in_order(client, topic, number, place, half)
                    continue
                self._settle(place, held, "refused")
                _log.error(
                    "answer_too_large",
                    tenant=place.tenant,
                    reason=f"the topic {topic} takes no record as large; see max.message.bytes",
                    partition=place.partition,
                    offset=held[0].offset,
                    error=repr(error),
                )

    def _heard(self, place: Place, held: Sequence[Item], delivery: asyncio.Future[Any]) -> None:
        """Note what was acknowledged, if only after the time was up."""
        if delivery.cancelled() or delivery.exception() is not None:
            return
        self._settle(place, held, "copied")
        self._refusals.taken(place, self._clock())
        self._tell(place.tenant)

    def _settle(
        self, place: Place, items: Sequence[Item], ended: Literal["copied", "refused"]
    ) -> None:
        """Note that these are done with; each is counted once, however often it was sent."""
        before = self._settled.get(place, -1)
        n_records = sum(item.offset > before for item in items)
        self._metrics.answers.labels(place.tenant, ended).inc(n_records)
        self._settled[place] = max(before, items[-1].offset)
        self._refusals.done(place)


def _parcels(
    client: AIOKafkaProducer, items: Sequence[Item]
) -> Iterator[tuple[Any, Sequence[Item]]]:
    """Yield batches as large as they may be, each with what it holds."""
    parcel, first = client.create_batch(), 0
    for index, item in enumerate(items):
        assert item.answer is not None  # noqa: S101 -- `hand_over` looked
        told = {
            "timestamp": None,
            "key": item.answer.key,
            "value": item.value,
            "headers": list(item.answer.headers),
        }
        if parcel.append(**told) is None:
            yield parcel, items[first:index]
            parcel, first = client.create_batch(), index
            parcel.append(**told)
    yield parcel, items[first:]
