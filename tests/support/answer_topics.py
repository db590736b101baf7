"""Topics of answers for tests: made for a tenant that nobody else has, and read to their end.

In: the session's Kafka. Out: a tenant's name; records in the order of partitions and offsets.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from inferbus_dev.topics import create_topics
from inferbus_schemas import topics
from tests.support import reconcile


def name(tenant: str) -> str:
    """Return the topic of a tenant's answers."""
    return topics.topic(topics.ANSWERS, tenant=tenant).name


async def make(bootstrap: str, tenant: str, **config: str) -> None:
    """Make a tenant's topic of answers, with settings over those of the catalogue."""
    (wanted,) = (one for one in topics.to_create((), tenants=(tenant,)) if one.name == name(tenant))
    spec = (wanted.name, wanted.partitions, wanted.replication, {**wanted.config, **config})
    await create_topics(bootstrap, [spec])


async def tenant(bootstrap: str, **config: str) -> str:
    """Return the name of a tenant of this test's own, whose topic is there."""
    made = f"t{secrets.token_hex(4)}"
    await make(bootstrap, made, **config)
    return made


async def records(bootstrap: str, topic: str) -> list[Any]:
    """Return all records that a topic has now, in the order of partitions and offsets."""
    ends = await reconcile.end_offsets(bootstrap, topic)
    if not any(ends.values()):
        return []  # aiokafka stumbles over an end before its first read
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, number) for number in ends])
        found: list[Any] = []
        async with asyncio.timeout(120):
            while len(found) < sum(ends.values()):
                for some in (await consumer.getmany(timeout_ms=500)).values():
                    found += some
    finally:
        await consumer.stop()
    return sorted(found, key=lambda record: (record.partition, record.offset))
