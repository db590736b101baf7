"""The identity of a topic: the UUID that Kafka gives it when it is made.

In: a started aiokafka consumer. Out: 16 bytes. aiokafka asks in versions of Metadata that do not
tell it yet, so version 12 is declared here with aiokafka's own protocol types.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_ID_BYTES = 16


class _Uuid:
    """Sixteen bytes as they are."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(_ID_BYTES)

    @classmethod
    def repr(cls, value: bytes) -> str:
        return value.hex()


class _MetadataResponseV12(Response):  # type: ignore[misc]  # aiokafka carries no types
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestV12(RequestStruct):  # type: ignore[misc]  # aiokafka carries no types
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponseV12
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestV12]):  # type: ignore[misc]  # as above
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataRequestV12]) -> _MetadataRequestV12:
        return request_struct_class([(bytes(_ID_BYTES), self._topic, {})], False, False, {})


async def topic_id(consumer: AIOKafkaConsumer, topic: str) -> bytes:
    """Return the topic's UUID, 16 bytes.

    Raises:
        KafkaError: no broker answered, or there is no such topic.
    """
    client: Any = consumer._client  # noqa: SLF001 -- no public way to send a request
    node = client.get_random_node()
    if node is None:
        raise UnknownTopicOrPartitionError(topic)
    response: Any = await client.send(node, _MetadataRequest(topic))
    (found,) = response.topics
    error_code, _, identity, *_ = found
    if error_code:
        error: KafkaError = for_code(error_code)(topic)
        raise error
    return bytes(identity)


async def partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    """Return the partitions of a topic; none where there is no such topic.

    Raises:
        KafkaError: no broker answered.
    """
    # Subscribing to a topic that is not there would wait for it without a word.
    if topic not in await consumer.topics():
        return set()
    await consumer._client._wait_on_metadata(topic)  # noqa: SLF001 -- as above
    return set(consumer.partitions_for_topic(topic) or ())


def connections(consumer: AIOKafkaConsumer) -> frozenset[object]:
    """Return the consumer's present connections to brokers, to be compared by identity.

    One that is gone says that a broker was away, if only for a moment.
    """
    client: Any = consumer._client  # noqa: SLF001 -- aiokafka reconnects without a word
    return frozenset(client._conns.values())  # noqa: SLF001
