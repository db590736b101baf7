"""The kit's Kafka parts on a real broker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError

from inferbus_kit import produce
from inferbus_kit.consume import PartitionReader, Record, StateReader
from inferbus_kit.dlq import DeadLetters
from inferbus_kit.errors import BusUnavailableError, OverloadedError
from inferbus_kit.heartbeat import Beater
from inferbus_kit.produce import Delivery, Message, Producer, _Parcel
from inferbus_kit.topics import create_topics
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from tests.support import proxy, servers


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[Producer]:
    made = Producer(kafka_bootstrap, client_id="test")
    await made.start()
    yield made
    await made.stop()


async def _read_all(bootstrap: str, topic: str, partition: int = 0) -> list[Record]:
    reader = PartitionReader(bootstrap, topic, partition, client_id="test")
    position = await reader.start()
    _, end = await reader.bounds()
    found: list[Record] = []
    try:
        while position < end:
            found += await reader.read()
            position = await reader.position()
    finally:
        await reader.stop()
    return found


async def test_records_arrive_in_order(kafka_bootstrap: str, producer: Producer) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    deliveries = [
        await producer.send(topic, 0, b"%d" % n, headers=[("h", b"v")]) for n in range(500)
    ]
    offsets = [(await delivery).offset for delivery in deliveries]
    assert offsets == list(range(500))
    assert producer.in_flight_bytes == producer.n_in_flight == 0
    found = await _read_all(kafka_bootstrap, topic)
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
    values = [record.value for record in await _read_all(kafka_bootstrap, topic)]
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
        values = [record.value for record in await _read_all(kafka_bootstrap, topic, 1)]
    assert values == [b"known", b"held"]


async def test_reader_commits_and_restarts(kafka_bootstrap: str, producer: Producer) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    for n in range(10):
        await (await producer.send(topic, 0, b"%d" % n))
    group = f"g-{secrets.token_hex(3)}"
    reader = PartitionReader(
        kafka_bootstrap, topic, 0, client_id="t", group=group, start="committed"
    )
    assert await reader.start() == 0
    assert len(await reader.read()) == 10
    assert await reader.commit(7)
    assert await reader.committed() == 7
    await reader.stop()
    again = PartitionReader(
        kafka_bootstrap, topic, 0, client_id="t", group=group, start="committed"
    )
    assert await again.start() == 7
    assert [record.value for record in await again.read()] == [b"7", b"8", b"9"]
    await again.stop()
    at_end = PartitionReader(kafka_bootstrap, topic, 0, client_id="t", start="end")
    assert await at_end.start() == 10
    await at_end.stop()


async def test_state_reader_is_at_the_end_when_started(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, config={"cleanup.policy": "compact"})
    for n in range(50):
        await (await producer.send(topic, 0, b"%d" % n, key=b"k%d" % (n % 3)))
    seen: dict[bytes, bytes] = {}

    def apply(record: Record) -> None:
        assert record.key is not None
        if record.value == b"bad":
            raise ValueError("cannot be decoded")
        seen[record.key] = record.value or b""

    state = StateReader(kafka_bootstrap, topic, apply, client_id="t")
    await state.start()
    try:
        assert seen == {b"k0": b"48", b"k1": b"49", b"k2": b"47"}
        await (await producer.send(topic, 0, b"bad", key=b"k0"))
        last = await (await producer.send(topic, 0, b"new", key=b"k9"))
        await state.reach(last.offset + 1)
        assert seen[b"k9"] == b"new"
        assert state.n_undecodable == 1
    finally:
        await state.stop()


async def test_a_state_reader_that_cannot_go_on_says_so(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, config={"cleanup.policy": "compact"})
    reasons: list[str] = []

    def apply(_record: Record) -> None:
        raise LookupError("a fault of ours")

    state = StateReader(kafka_bootstrap, topic, apply, client_id="t", on_failure=reasons.append)
    await state.start()
    try:
        await (await producer.send(topic, 0, b"one", key=b"k"))
        async with asyncio.timeout(10):
            while not reasons:  # noqa: ASYNC110 -- the callback is what is waited for
                await asyncio.sleep(0.02)
        assert bool(state.failed)
        assert reasons == [f"task state:{topic} failed"]
    finally:
        await state.stop()


async def test_a_beater_that_cannot_go_on_says_so(producer: Producer) -> None:
    reasons: list[str] = []

    def make() -> tuple[str, m.Heartbeat]:
        raise LookupError("a fault of ours")

    beater = Beater(producer, "t-0", "test", make, on_failure=reasons.append)
    await beater.start()
    await asyncio.sleep(0.05)
    assert beater.failed
    assert reasons == ["task heartbeat failed"]
    await beater.stop()


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


async def test_dead_letters_say_where_they_came_from_and_have_a_limit(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    await create_topics(kafka_bootstrap, [(topics.dead_letters(topic), 1, 1, {})])
    await (await producer.send(topic, 0, b"junk", headers=[("ce_id", b"1")]))
    record = (await _read_all(kafka_bootstrap, topic))[0]
    letters = DeadLetters(producer, "worker-0", per_minute=2)
    for _ in range(2):
        await letters.put(record, ValueError("not a frame"), ["first\n" * 2000, "last words"])
    assert letters.n_written == 2, "none of these waited for the minute to be over"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(letters.put(record, ValueError("again")), 1.0)
    found = await _read_all(kafka_bootstrap, topics.dead_letters(topic))
    assert len(found) == letters.n_written == 2
    headers = dict(found[0].headers)
    assert found[0].value == b"junk"
    assert headers["dlq_topic"] == topic.encode()
    assert headers["dlq_offset"] == b"0"
    assert headers["dlq_error"] == b"ValueError: not a frame"
    assert headers["ce_id"] == b"1"
    assert headers["dlq_log"].endswith(b"first\n\nlast words")
    assert len(headers["dlq_log"]) == 8192


async def test_a_letter_has_room_for_itself_whatever_it_is_about(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, config={"max.message.bytes": "9000000"})
    await create_topics(kafka_bootstrap, [(topics.dead_letters(topic), 1, 1, {})])
    own = [("ce_id", b"1"), ("dlq_topic", b"forged"), *(("x", b"y" * 1023) for _ in range(80))]
    sent = await producer.send(topic, 0, b"v" * (5 << 20), key=b"k" * 5000, headers=own)
    await sent
    (record,) = await _read_all(kafka_bootstrap, topic)
    assert (len(record.key or b""), len(record.headers)) == (5000, len(own))
    await DeadLetters(producer, "worker-0").put(record, ValueError("e" * 5000))
    (letter,) = await _read_all(kafka_bootstrap, topics.dead_letters(topic))
    assert letter.key == b"k" * 4096
    assert letter.value == b"v" * (4 << 20)
    head = list(letter.headers)
    assert head[0] == ("ce_id", b"1")
    # 64 KiB less the two before, the forged one counted and dropped.
    assert [name for name, _ in head[1:-5]] == ["x"] * 63
    added = dict(head[-5:])
    assert added["dlq_topic"] == topic.encode()
    assert len(added["dlq_error"]) == 1000
    assert added["dlq_offset"] == b"0"
