"""The kit's producer on a real broker."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError

from inferbus_kit import produce
from inferbus_kit.errors import BusUnavailableError, OverloadedError
from inferbus_kit.produce import Delivery, Message, Producer, _Parcel
from tests.support import proxy, servers


async def test_records_arrive_in_order(kafka_bootstrap: str, producer: Producer) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    deliveries = [
        await producer.send(topic, 0, b"%d" % n, headers=[("h", b"v")]) for n in range(500)
    ]
    offsets = [(await delivery).offset for delivery in deliveries]
    assert offsets == list(range(500))
    assert producer.in_flight_bytes == producer.n_in_flight == 0
    found = await servers.read_all(kafka_bootstrap, topic)
    assert [record.value for record in found] == [b"%d" % n for n in range(500)]
    assert found[0].headers == (("h", b"v"),)


async def test_a_refused_batch_costs_only_itself(kafka_bootstrap: str, producer: Producer) -> None:
    """With idempotence a refused batch poisons its partition until the client is replaced."""
    topic = await servers.fresh_topic(kafka_bootstrap, config={"max.message.bytes": "20000"})
    small = [await producer.send(topic, 0, b"a%d" % n) for n in range(3)]
    await asyncio.gather(*small)
    refused = await producer.send(topic, 0, b"x" * 100_000)
    with pytest.raises(MessageSizeTooLargeError):
        await asyncio.wait_for(refused, 30)
    after = [await producer.send(topic, 0, b"b%d" % n) for n in range(5)]
    await asyncio.wait_for(asyncio.gather(*after), 60)
    values = [record.value for record in await servers.read_all(kafka_bootstrap, topic)]
    assert set(values) == {b"a0", b"a1", b"a2", b"b0", b"b1", b"b2", b"b3", b"b4"}
    assert producer.n_in_flight == 0


async def test_the_producer_is_bounded(kafka_bootstrap: str) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    bounded = Producer(kafka_bootstrap, client_id="test", max_in_flight_bytes=1000)
    await bounded.start()
    try:
        first = await bounded.send(topic, 0, b"x" * 5000)
        with pytest.raises(OverloadedError):
            await bounded.send(topic, 0, b"y")
        await first
        await (await bounded.send(topic, 0, b"z"))
    finally:
        await bounded.stop()


async def test_a_record_over_the_limit_is_refused_before_the_broker(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    with pytest.raises(MessageSizeTooLargeError):
        await producer.send(topic, 0, b"x" * (9 << 20))
    assert producer.n_in_flight == 0


@pytest.mark.parametrize("n_messages", [1, 2])
async def test_an_added_partition_is_found_at_once_and_a_missing_one_is_an_error(
    kafka_bootstrap: str, producer: Producer, n_messages: int
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    await (await producer.send(topic, 0, b"known"))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(3)})
    finally:
        await admin.close()
    batch = [Message(b"new")] * n_messages
    meta = await asyncio.wait_for(await producer.send_many(topic, 2, batch), 10)
    assert (meta.partition, meta.offset) == (2, 0)
    with pytest.raises(BusUnavailableError, match="too few partitions"):
        await producer.send_many(topic, 99, batch)
    assert producer.n_in_flight == producer.in_flight_bytes == 0


async def test_no_broker_is_one_sentence() -> None:
    with pytest.raises(BusUnavailableError, match="Kafka does not answer"):
        await Producer("127.0.0.1:9", client_id="test").start(timeout_s=2)


async def test_of_a_client_that_cannot_stop_nothing_lives_on(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    monkeypatch.setattr(produce, "_STOP_S", 0.1)
    monkeypatch.setattr(produce, "_CUT_S", 0.3)
    tasks = asyncio.all_tasks()
    async with proxy.before_kafka(kafka_bootstrap, monkeypatch) as between:
        made = Producer(kafka_bootstrap, client_id="test")
        await made.start()
        await (await made.send(topic, 0, b"known"))
        between.hold()
        values = [b"x" * (7 << 20), b"queued", b"too"]  # sockets do not hold the first
        deliveries = [await made.send(topic, 0, value) for value in values]
        await made.stop(timeout_s=0.1)
        for delivery in deliveries:
            with pytest.raises(BusUnavailableError):
                await asyncio.wait_for(delivery, 5)
        assert made.n_in_flight == made.in_flight_bytes == 0
        between.go_on()
        while between.n_connections:  # noqa: ASYNC110 -- sockets tell nobody
            await asyncio.sleep(0.01)
        left = [task.get_coro() for task in asyncio.all_tasks() - tasks]
        assert [each for each in left if "aiokafka" in repr(each)] == []


class Replaced:
    """A producer whose client is replaced while that holds a record for partition 1."""

    def __init__(self, bootstrap: str, topic: str, between: proxy.Proxy) -> None:
        self.made = Producer(bootstrap, client_id="test")
        self._connect = self.made._connect
        self._topic = topic
        self._between = between
        self.held: Delivery | None = None
        self.all_held = False

    async def poison(self) -> Delivery:
        """Let a batch be refused; return a record that only the next client delivers."""
        await self.made.start()
        self.made._connect = self._replacing  # type: ignore[method-assign]
        for partition in (0, 1):
            await (await self.made.send(self._topic, partition, b"known"))
        with pytest.raises(MessageSizeTooLargeError):
            await (await self.made.send(self._topic, 0, b"x" * 100_000))
        return await self.made.send(self._topic, 0, b"next")

    async def _replacing(self, timeout_s: float) -> Any:
        if self.held is None:
            (self._between.hold if self.all_held else self._between.hold_known)()
            self.held = await self.made.send(self._topic, 1, b"held")
        return await self._connect(timeout_s)


async def _alone(between: proxy.Proxy) -> None:
    async with asyncio.timeout(5):
        while between.n_connections:  # noqa: ASYNC110 -- sockets tell nobody
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _replaced(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Replaced, proxy.Proxy, str]]:
    topic = await servers.fresh_topic(
        bootstrap, partitions=2, config={"max.message.bytes": "20000"}
    )
    tasks = asyncio.all_tasks()
    async with proxy.before_kafka(bootstrap, monkeypatch) as between:
        at = Replaced(bootstrap, topic, between)
        yield at, between, topic
        await at.made.stop()
        assert at.made.n_in_flight == at.made.in_flight_bytes == 0
        with pytest.raises(BusUnavailableError, match="not started"):
            await at.made.send(topic, 0, b"after")
        between.go_on()
        await _alone(between)
        left = [task.get_coro() for task in asyncio.all_tasks() - tasks]
        assert [each for each in left if "aiokafka" in repr(each)] == []


async def test_a_stop_waits_for_what_a_replaced_client_holds(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _replaced(kafka_bootstrap, monkeypatch) as (at, between, _):
        await (await at.poison())
        assert at.held is not None
        stopping = asyncio.create_task(at.made.stop())
        await asyncio.wait([stopping], timeout=0.2)
        between.go_on()
        await stopping
        assert at.held.result().partition == 1


async def test_a_stop_while_the_client_is_replaced_leaves_none(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _replaced(kafka_bootstrap, monkeypatch) as (at, between, _):
        at.all_held = True
        following = await at.poison()
        async with asyncio.timeout(5):
            while at.held is None:  # noqa: ASYNC110 -- nothing else tells
                await asyncio.sleep(0.01)
        stopping = asyncio.create_task(at.made.stop(timeout_s=0.1))
        while at.made._client is not None:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)
        between.go_on()
        await stopping
        await asyncio.wait([following, at.held], timeout=5)
        with pytest.raises(BusUnavailableError):
            following.result()


async def test_a_stop_that_is_cancelled_ends_what_it_waited_for(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce, "_STOP_S", 0.1)
    monkeypatch.setattr(produce, "_CUT_S", 0.1)
    async with _replaced(kafka_bootstrap, monkeypatch) as (at, _, __):
        await (await at.poison())
        assert at.held is not None
        stopping = asyncio.create_task(at.made.stop(timeout_s=60))
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
        with pytest.raises(BusUnavailableError):
            async with asyncio.timeout(20):
                await at.held


async def test_a_replaced_client_is_not_cut_off_while_it_may_deliver(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce, "_STOP_S", 0.1)
    monkeypatch.setattr(produce, "_CUT_S", 0.1)
    async with _replaced(kafka_bootstrap, monkeypatch) as (at, between, topic):
        await (await at.poison())
        assert at.held is not None
        await asyncio.wait([at.held], timeout=0.4)
        between.go_on()
        await at.held
        await at.made.stop()
        await _alone(between)
        values = [record.value for record in await servers.read_all(kafka_bootstrap, topic, 1)]
    assert values == [b"known", b"held"]


async def test_a_fault_while_a_record_is_sent_again_ends_its_future(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producer = Producer("unused:1", client_id="t-0")

    async def fault(_timeout_s: float) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(producer, "_connect", fault)
    record = _Parcel("t", 0, (Message(b"x"),), 100)
    producer.in_flight_bytes, producer.n_in_flight = 100, 1
    outer: Delivery = asyncio.get_running_loop().create_future()
    producer._retry(record, outer, 0, 1, KafkaConnectionError())
    with pytest.raises(BusUnavailableError):
        await asyncio.wait_for(outer, 1.0)
    assert (producer.in_flight_bytes, producer.n_in_flight) == (0, 0)


async def test_a_stop_ends_what_was_just_to_be_sent_again() -> None:
    producer = Producer("unused:1", client_id="t-0")
    producer.in_flight_bytes, producer.n_in_flight = 100, 1
    outer: Delivery = asyncio.get_running_loop().create_future()
    producer._retry(_Parcel("t", 0, (Message(b"x"),), 100), outer, 0, 1, KafkaConnectionError())
    await producer.stop()
    with pytest.raises(BusUnavailableError, match="stopped"):
        await asyncio.wait_for(outer, 1.0)
    assert (producer.in_flight_bytes, producer.n_in_flight) == (0, 0)


async def test_a_failed_record_for_which_nobody_waits_any_longer_is_no_complaint() -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, said: complaints.append(said))
    producer = Producer("unused:1", client_id="t-0")
    producer.in_flight_bytes, producer.n_in_flight = 100, 1
    outer: Delivery = loop.create_future()
    producer._retry(_Parcel("t", 0, (Message(b"x"),), 100), outer, 0, 0, KafkaConnectionError())
    del outer
    gc.collect()
    assert complaints == []
