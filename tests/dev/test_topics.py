"""Topics of the catalogue on a real broker."""

from __future__ import annotations

import secrets

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from inferbus_dev.errors import LauncherError
from inferbus_dev.topics import create_topics
from tests.support import servers


async def _config(bootstrap: str, topic: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}


async def test_the_catalogue_can_be_made_twice(kafka_bootstrap: str) -> None:
    prefix = f"t{secrets.token_hex(4)}."
    first = await servers.fresh_topics(kafka_bootstrap, prefix)
    assert await servers.fresh_topics(kafka_bootstrap, prefix) == first
    made = await _config(kafka_bootstrap, first["inferbus.inference.predictions.v1"])
    assert made["message.timestamp.type"] == "LogAppendTime"


async def test_settings_of_a_topic_that_exists_are_set_right(kafka_bootstrap: str) -> None:
    name = await servers.fresh_topic(kafka_bootstrap, config={"retention.ms": "900000"})
    await create_topics(kafka_bootstrap, [(name, 1, 1, {"retention.ms": "800000"})])
    assert (await _config(kafka_bootstrap, name))["retention.ms"] == "800000"


async def test_other_partitions_than_the_catalogue_says(kafka_bootstrap: str) -> None:
    name = await servers.fresh_topic(kafka_bootstrap, partitions=2)
    with pytest.raises(LauncherError, match=rf"{name} has 2 partitions and the catalogue says 3"):
        await create_topics(kafka_bootstrap, [(name, 3, 1, {})])


async def test_a_setting_that_kafka_refuses(kafka_bootstrap: str) -> None:
    with pytest.raises(LauncherError, match=r"Kafka refused to create the topic t\.refused"):
        await create_topics(kafka_bootstrap, [("t.refused", 1, 1, {"cleanup.policy": "burn"})])


async def test_no_topic_comes_of_itself(kafka_bootstrap: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, request_timeout_ms=1_000)
    await producer.start()
    try:
        partitions = await producer.client.fetch_all_metadata()
        missing = f"test.{secrets.token_hex(4)}"
        assert not partitions.partitions_for_topic(missing)
        await producer.client.add_topic(missing)
        assert not producer.client.cluster.partitions_for_topic(missing)
    finally:
        await producer.stop()


async def test_nobody_there_is_one_sentence() -> None:
    with pytest.raises(LauncherError, match="see that it runs") as raised:
        await create_topics("127.0.0.1:9", [("t", 1, 1, {})])
    assert "\n" not in str(raised.value)
