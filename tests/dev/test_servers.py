"""The session's Kafka and Postgres are real and answer."""

from __future__ import annotations

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tests.support import servers


async def test_a_record_comes_back(kafka_bootstrap: str) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, partitions=2)
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, acks="all")
    await producer.start()
    try:
        sent = await producer.send_and_wait(topic, b"value", key=b"key", partition=1)
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 1)])
        record = await consumer.getone()
    finally:
        await consumer.stop()
    assert (record.key, record.value, record.offset) == (b"key", b"value", sent.offset)


async def test_each_test_has_a_database_of_its_own(postgres_database: str) -> None:
    connection = await asyncpg.connect(postgres_database)
    try:
        await connection.execute("CREATE TABLE mine (id int)")
        assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename='mine'")
        assert (await connection.fetchval("SHOW server_version")).startswith("18")
    finally:
        await connection.close()
