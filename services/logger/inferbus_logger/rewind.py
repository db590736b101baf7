"""Sets where a partition is read on, after Kafka lost what the log has.

In: an operator's decision. Out: a new era of the partition: its offsets are counted anew, its
chain goes on, and loggers that run are fenced off and open it again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from inferbus_kit.errors import StartupError
from inferbus_kit.kafka import client_options, stop_client
from inferbus_logger import database, identity

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Rewound:
    """What a rewind changed."""

    partition: int
    era: int
    before: int
    now: int


async def rewind(
    postgres_url: str, bootstrap: str, topic: str, partition: int, offset: int | None
) -> Rewound:
    """Begin a new era of a partition at `offset`, or at the first record that Kafka has.

    Records that have rows already become duplicates; nothing is deleted.

    Raises:
        StartupError: Kafka or Postgres does not answer, or the offset is not there to be read.
    """
    topic_id, first, end = await _ask_kafka(bootstrap, topic, partition)
    chosen = first if offset is None else offset
    if not first <= chosen <= end:
        raise StartupError(
            f"partition {partition} holds offsets {first} to {end}: choose one of them, or earliest"
        )
    connection = await database.open_for_command(postgres_url, "inferbus rewind")
    try:
        row = await connection.fetchrow(
            "WITH old AS (SELECT next_offset FROM log.sink_offsets"
            " WHERE topic = $1 AND part = $2 FOR UPDATE)"
            " UPDATE log.sink_offsets AS o SET topic_id = $3, era = o.era + 1, start_offset = $4,"
            " next_offset = $4, last_id = '', updated_at = now()"
            " FROM old WHERE o.topic = $1 AND o.part = $2 RETURNING o.era, old.next_offset",
            topic,
            partition,
            topic_id,
            chosen,
        )
    finally:
        await database.close(connection)
    if row is None:
        raise StartupError(f"partition {partition} was never logged: there is nothing to rewind")
    return Rewound(partition, row["era"], row["next_offset"], chosen)


async def _ask_kafka(bootstrap: str, topic: str, partition: int) -> tuple[bytes, int, int]:
    consumer = AIOKafkaConsumer(**client_options(bootstrap), enable_auto_commit=False)
    place = TopicPartition(topic, partition)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await consumer.start()
            if partition not in await identity.partitions(consumer, topic):
                raise StartupError(f"Kafka has no partition {partition} of the topic {topic}")
            topic_id = await identity.topic_id(consumer, topic)
            consumer.assign([place])
            first = await consumer.beginning_offsets([place])
            end = await consumer.end_offsets([place])
    except (TimeoutError, KafkaError) as error:
        raise StartupError(
            "Kafka does not answer: see that it runs and that INFERBUS_KAFKA_BOOTSTRAP is right"
        ) from error
    finally:
        await stop_client(consumer)
    return topic_id, int(first[place]), int(end[place])
