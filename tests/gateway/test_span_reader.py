"""Which records of the bus are read for one request."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition

from inferbus_gateway.control.span_reader import SLACK_MS, SpanReader
from inferbus_kit.kafka import client_options, stop_client
from inferbus_schemas import ids
from tests.support import servers

AT_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


@contextlib.asynccontextmanager
async def reading(bootstrap: str, n_partitions: int, topic: str) -> AsyncIterator[SpanReader]:
    consumer = AIOKafkaConsumer(
        **client_options(bootstrap), enable_auto_commit=False, auto_offset_reset="none"
    )
    await consumer.start()
    try:
        yield SpanReader(consumer, [TopicPartition(topic, at) for at in range(n_partitions)])
    finally:
        await stop_client(consumer)


@pytest.fixture
async def timed(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    """A producer whose records bear the times that it says."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    yield producer
    await producer.stop()


async def fresh(bootstrap: str, n_partitions: int) -> str:
    config = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
    return await servers.fresh_topic(bootstrap, partitions=n_partitions, config=config)


async def all_of(reader: SpanReader) -> list[str]:
    """Return what is read until all was that may be the request's."""
    found = []
    while not await reader.passed():
        found += [(one.value or b"").decode() for one in await reader.read()]
    return found


async def test_what_came_long_after_a_request_is_not_waited_for(
    kafka_bootstrap: str, timed: AIOKafkaProducer
) -> None:
    topic = await fresh(kafka_bootstrap, 1)
    for name, after_ms in (
        ("before", -SLACK_MS - 1),
        ("a clock that is behind", 1 - SLACK_MS),
        ("its first", 0),
        ("of its time", HOUR_MS // 3),
    ):
        await timed.send_and_wait(topic, name.encode(), timestamp_ms=AT_MS + after_ms)
    later = [f"later {n} {'x' * 100_000}" for n in range(40)]
    for value in later:
        await timed.send_and_wait(topic, value.encode(), timestamp_ms=AT_MS + HOUR_MS)
    async with reading(kafka_bootstrap, 1, topic) as reader:
        await reader.seek(ids.uuid7(AT_MS, 1))
        assert not await reader.passed()
        found = await all_of(reader)
    assert found[:3] == ["a clock that is behind", "its first", "of its time"]
    assert len(found) < len(later), "what stood behind its time was read to the end"


async def test_a_request_of_now_is_read_to_where_its_records_ended(
    kafka_bootstrap: str, timed: AIOKafkaProducer
) -> None:
    topic = await fresh(kafka_bootstrap, 2)
    for at in range(20):
        await timed.send_and_wait(topic, b"%d" % at, partition=at % 2, timestamp_ms=AT_MS + at)
    async with reading(kafka_bootstrap, 2, topic) as reader:
        await reader.seek(ids.uuid7(AT_MS, 1))
        assert sorted(map(int, await all_of(reader))) == list(range(20))
        await timed.send_and_wait(topic, b"live", partition=1, timestamp_ms=AT_MS + 30)
        while not (live := await reader.read()):
            pass
        assert [one.value for one in live] == [b"live"]
    async with reading(kafka_bootstrap, 2, topic) as reader:
        await reader.seek(ids.uuid7(AT_MS + HOUR_MS, 1))
        assert await reader.passed(), "nothing there is as young"


async def test_once_its_partition_is_known_no_other_is_read(
    kafka_bootstrap: str, timed: AIOKafkaProducer
) -> None:
    topic = await fresh(kafka_bootstrap, 2)

    async def put(values: range) -> None:
        for at in values:
            await timed.send_and_wait(topic, b"%d" % at, partition=at % 2, timestamp_ms=AT_MS)

    await put(range(20))
    async with reading(kafka_bootstrap, 2, topic) as reader:
        await reader.seek(ids.uuid7(AT_MS, 1))
        found: list[str] = []
        while "1" not in found:
            found += [(one.value or b"").decode() for one in await reader.read()]
        await reader.narrow(1)
        await put(range(20, 40))
        while "39" not in found:
            found += [(one.value or b"").decode() for one in await reader.read()]
    odd = [int(one) for one in found if int(one) % 2]
    assert odd == list(range(1, 40, 2))
    assert not {"20", "38"} & set(found)
