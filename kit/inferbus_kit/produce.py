"""A bounded, idempotent producer that survives refused batches.

In: records for explicit partitions. Out: a future per record with its metadata. Receipts are not
taken from here: a duplicate that the broker recognises is acknowledged with offset -1.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerClosed
from aiokafka.structs import RecordMetadata

from inferbus_kit.errors import BusUnavailableError, OverloadedError
from inferbus_kit.kafka import client_options

_log = structlog.get_logger("produce")

MAX_BATCH_BYTES = 1 << 20
MAX_RECORD_BYTES = 8 << 20
_RESENDS = 5
_LOOKS = 5
_LOOK_S = 0.1
_STOP_S = 2.0
_CUT_S = 1.0

Delivery = asyncio.Future[RecordMetadata]


class Message(NamedTuple):
    """A record without its place."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()

    @property
    def size_bytes(self) -> int:
        """An upper bound on what it takes in a batch."""
        head = sum(len(name) + len(value) + 8 for name, value in self.headers)
        return len(self.value or b"") + len(self.key or b"") + head + 64


@dataclass(frozen=True, slots=True)
class _Parcel:
    """Messages for one partition that are handed over, resent and settled together."""

    topic: str
    partition: int
    messages: Sequence[Message]
    size_bytes: int


class Producer:
    """An aiokafka producer with a bound on bytes in flight.

    Invariants: a record's future ends, also by a stop, with its metadata or with a
    `BusUnavailableError` or `KafkaError`; a record that failed may still have been written (same
    id: it is deduplicated by its readers). After a refused batch every later send to that partition
    would fail (OutOfOrderSequenceNumber), so the client is replaced and what failed is sent again;
    the replaced one delivers what else it holds, for as long as an acknowledgement may take.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str,
        linger_ms: int = 0,
        request_timeout_ms: int = 8000,
        max_in_flight_bytes: int = 64 << 20,
    ) -> None:
        self._options: dict[str, Any] = {
            **client_options(bootstrap),
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": linger_ms,
            "max_batch_size": MAX_BATCH_BYTES,
            "max_request_size": MAX_RECORD_BYTES,
            "request_timeout_ms": request_timeout_ms,
            "metadata_max_age_ms": 30_000,
        }
        self._max_in_flight_bytes = max_in_flight_bytes
        self._client: AIOKafkaProducer | None = None
        self._epoch = 0
        self._replacing: asyncio.Lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        """Resends, and replaced clients that still deliver; a stop cancels them."""
        self._closing: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self.in_flight_bytes = 0
        self.n_in_flight = 0
        self.n_replaced = 0

    async def start(self, timeout_s: float = 30.0) -> None:
        """Connect.

        Raises:
            BusUnavailableError: no broker answered in time.
        """
        self._client = await self._connect(timeout_s)

    async def _connect(self, timeout_s: float) -> AIOKafkaProducer:
        client = AIOKafkaProducer(**self._options)
        try:
            async with asyncio.timeout(timeout_s):
                await client.start()
        except (TimeoutError, KafkaError) as error:
            await close(client)
            raise BusUnavailableError("Kafka does not answer; is it running?") from error
        except BaseException:
            self._close_later(client)
            raise
        return client

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Deliver what is left, by whichever client, within the time; close, 3 s more at most."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._client is not None and self.n_in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            _log.warning("stopped_undelivered", n_records=self.n_in_flight)
        finally:
            self._end()
        while ending := self._tasks | self._closing:
            await asyncio.wait(ending)

    def _end(self) -> None:
        """End what is not delivered; waits for nothing, so a cancelled stop does it too."""
        client, self._client = self._client, None
        self._epoch += 1  # what fails from now on is not sent again
        for task in self._tasks:
            task.cancel()
        if client is not None:
            self._close_later(client)

    def _close_later(self, client: AIOKafkaProducer) -> None:
        task = asyncio.get_running_loop().create_task(close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def n_partitions(self, topic: str) -> int:
        """Return how many partitions a topic has.

        Raises:
            BusUnavailableError: the producer is not started, or the topic does not exist.
        """
        if self._client is None:
            raise BusUnavailableError("the producer is not started")
        try:
            async with asyncio.timeout(10.0):
                return len(await self._client.partitions_for(topic))
        except (TimeoutError, KafkaError) as error:
            raise BusUnavailableError("a topic is missing; create the topics first") from error

    async def send(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Delivery:
        """Hand a record over; the future that is returned ends when the broker has answered.

        Waits only while the partition's open batch is full.

        Raises:
            OverloadedError: too many bytes are in flight; nothing was handed over.
            MessageSizeTooLargeError: the record is over 8 MiB; nothing was handed over.
            BusUnavailableError: the record could not be handed over in time.
        """
        return await self.send_many(topic, partition, (Message(value, key, headers),))

    async def send_many(self, topic: str, partition: int, messages: Sequence[Message]) -> Delivery:
        """Hand messages over as one batch of the partition; they are acknowledged together.

        Several must fit `MAX_BATCH_BYTES` by their `size_bytes`. Waits while an earlier batch of
        the partition has not left; raises as `send` does.
        """
        record = _Parcel(topic, partition, messages, sum(one.size_bytes for one in messages))
        if self.in_flight_bytes > self._max_in_flight_bytes:
            raise OverloadedError("too much is waiting for Kafka; try again shortly")
        outer: Delivery = asyncio.get_running_loop().create_future()
        self.in_flight_bytes += record.size_bytes
        self.n_in_flight += 1
        try:
            await self._hand_over(record, outer, _RESENDS)
        except BaseException:
            self._settle(record)
            raise
        return outer

    async def _hand_over(self, record: _Parcel, outer: Delivery, resends: int) -> None:
        client, epoch = self._client, self._epoch
        if client is None:
            raise BusUnavailableError("the producer is not started")
        try:
            async with asyncio.timeout(10.0):
                try:
                    inner = await _give(client, record)
                except AssertionError:
                    # So the client names a partition that was added after its last look.
                    await _look_for(client, record)
                    inner = await _give(client, record)
        except MessageSizeTooLargeError:
            raise
        except (TimeoutError, KafkaError) as error:
            raise BusUnavailableError("Kafka takes no records at present") from error

        def acknowledged(done: asyncio.Future[RecordMetadata]) -> None:
            error = None if done.cancelled() else done.exception()
            if done.cancelled() or error is not None:
                self._retry(record, outer, epoch, resends, error)
                return
            self._settle(record)
            if not outer.done():
                outer.set_result(done.result())

        inner.add_done_callback(acknowledged)

    def _settle(self, record: _Parcel) -> None:
        self.in_flight_bytes -= record.size_bytes
        self.n_in_flight -= 1
        if not self.n_in_flight:
            self._idle.set()

    def _fail(self, record: _Parcel, outer: Delivery, error: BaseException) -> None:
        self._settle(record)
        if not outer.done():
            outer.set_exception(error)
            outer.exception()  # or asyncio complains where nobody waits any longer

    def _retry(
        self,
        record: _Parcel,
        outer: Delivery,
        epoch: int,
        resends: int,
        error: BaseException | None,
    ) -> None:
        if resends == 0 or isinstance(error, MessageSizeTooLargeError):
            error = error or BusUnavailableError("Kafka did not take the record")
            self._fail(record, outer, error)
            return
        _log.warning("produce_failed", topic=record.topic, error=repr(error))
        task = asyncio.get_running_loop().create_task(self._resend(record, outer, epoch, resends))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._resent, record, outer))

    async def _resend(self, record: _Parcel, outer: Delivery, epoch: int, resends: int) -> None:
        await self._replace(epoch)
        await self._hand_over(record, outer, resends - 1)

    def _resent(self, record: _Parcel, outer: Delivery, task: asyncio.Task[None]) -> None:
        """Let who waits hear of what went wrong, even where the task never came to run."""
        self._tasks.discard(task)
        if task.cancelled():
            self._fail(record, outer, BusUnavailableError("the producer was stopped"))
        elif (error := task.exception()) is not None:
            if not isinstance(error, (KafkaError, BusUnavailableError)):
                _log.error("resend_crashed", topic=record.topic, exc_info=error)
                error = BusUnavailableError("Kafka did not take the record")
            self._fail(record, outer, error)

    async def _replace(self, epoch: int) -> None:
        """Replace the client that failed in `epoch`, once for all the records that it failed."""
        async with self._replacing:
            if self._epoch != epoch:
                return
            fresh = await self._connect(10.0)
            if self._epoch != epoch:  # stopped meanwhile
                self._close_later(fresh)
                return
            old, self._client = self._client, fresh
            self._epoch += 1
            self.n_replaced += 1
            if old is not None:
                task = asyncio.get_running_loop().create_task(self._deliver(old))
                self._tasks.add(task)
                task.add_done_callback(functools.partial(self._delivered, old))

    async def _deliver(self, old: AIOKafkaProducer) -> None:
        """Give a replaced client time: were it cut off before, what it sent might be doubled."""
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(self._options["request_timeout_ms"] / 1000):
                await old.flush()

    def _delivered(self, old: AIOKafkaProducer, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._close_later(old)


async def _give(client: AIOKafkaProducer, parcel: _Parcel) -> Delivery:
    topic, partition = parcel.topic, parcel.partition
    if len(parcel.messages) == 1:
        value, key, headers = parcel.messages[0]
        inner = await client.send(topic, value, key=key, partition=partition, headers=headers)
        return cast("Delivery", inner)
    batch = client.create_batch()
    for value, key, headers in parcel.messages:
        if batch.append(timestamp=None, key=key, value=value, headers=list(headers)) is None:
            raise MessageSizeTooLargeError("the messages do not fit one batch")
    return cast("Delivery", await client.send_batch(batch, topic, partition=partition))


async def _look_for(client: AIOKafkaProducer, parcel: _Parcel) -> None:
    """Ask the brokers, not the client's memory, for the partition.

    Raises:
        BusUnavailableError: they do not know it either.
    """
    for _ in range(_LOOKS):
        await client.client.force_metadata_update()
        if parcel.partition in await client.partitions_for(parcel.topic):
            return
        await asyncio.sleep(_LOOK_S)
    _log.error("no_such_partition", topic=parcel.topic, partition=parcel.partition)
    raise BusUnavailableError("a topic has too few partitions; add them to the topic")


def fail_queued(client: AIOKafkaProducer) -> None:
    """Fail what a client has not begun to send, so that it never does."""
    queues = client._message_accumulator._batches  # noqa: SLF001 -- as in `close`
    batches = [batch for queue in queues.values() for batch in queue]
    queues.clear()
    for batch in batches:
        # One that was under way before takes itself out of these.
        client._message_accumulator._pending_batches.add(batch)  # noqa: SLF001 -- as above
        _fail(batch)


def _fail(batch: Any) -> None:
    batch.failure(ProducerClosed())
    batch._drain_waiter.exception()  # noqa: SLF001 -- it may be that nobody waits for it


async def close(client: AIOKafkaProducer) -> None:
    """Stop a client, within 3 s: what it has not delivered by then fails.

    With no broker its own stop may hang for ever, and cut off it leaves sender and sockets behind.
    """
    over = (TimeoutError, KafkaError, asyncio.CancelledError)
    with contextlib.suppress(*over):
        async with asyncio.timeout(_STOP_S):
            await client.stop()
            return
    sender = client._sender.sender_task  # noqa: SLF001 -- there is no other way
    if sender is not None:
        sender.cancel()
    for connection in client.client._conns.values():  # noqa: SLF001 -- as above
        if (writer := connection._writer) is not None:  # noqa: SLF001 -- as above
            writer.transport.abort()  # else it first sends what it has
    with contextlib.suppress(*over):
        async with asyncio.timeout(_CUT_S):
            await client.client.close()
            if sender is not None:
                await sender
    fail_queued(client)
    for batch in list(client._message_accumulator._pending_batches):  # noqa: SLF001 -- as above
        _fail(batch)
