"""Makes the topics of the catalogue on a broker.

In: names, partitions, replication and settings. Out: topics whose partitions all have a leader, so
that the first send does not meet NotLeader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from inferbus_kit.errors import StartupError
from inferbus_kit.kafka import client_options

LEADERS_TIMEOUT_S = 30.0
_NO_ERROR = 0
_TOPIC_ALREADY_EXISTS = 36


class TopicSpec(NamedTuple):
    """A topic to make; a plain tuple of the same four values does as well."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


async def create_topics(
    bootstrap: str,
    topics: Iterable[tuple[str, int, int, Mapping[str, str]]],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Create the topics that are missing, set those that exist right, wait for all leaders.

    Raises:
        StartupError: the broker refuses one, or a topic exists with fewer partitions.
    """
    specs = [TopicSpec(*topic) for topic in topics]
    admin = AIOKafkaAdminClient(**client_options(bootstrap))
    try:
        await admin.start()
        refused = await _create(admin, specs)
        existing = [spec for spec in specs if refused.get(spec.name) == _TOPIC_ALREADY_EXISTS]
        if existing:
            await admin.alter_configs(
                [
                    ConfigResource(ConfigResourceType.TOPIC, spec.name, configs=dict(spec.config))
                    for spec in existing
                ]
            )
        await _wait_for_leaders(admin, specs, on_progress)
    except (KafkaError, OSError) as error:
        raise StartupError(
            f"Kafka at {bootstrap} did not create the topics ({type(error).__name__}): see that "
            "it runs and start again."
        ) from error
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec]) -> dict[str, int]:
    """Return the error code of each topic that was not created."""
    if not specs:
        return {}
    answer = await admin.create_topics(
        [
            NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(spec.config))
            for spec in specs
        ]
    )
    refused: dict[str, int] = {}
    for name, code, *said in answer.topic_errors:
        if code not in {_NO_ERROR, _TOPIC_ALREADY_EXISTS}:
            why = said[0] if said and said[0] else f"error {code}"
            raise StartupError(
                f"Kafka refused to create the topic {name} ({why}): correct the catalogue in "
                "schemas/ and start again."
            )
        if code != _NO_ERROR:
            refused[name] = code
    return refused


async def _wait_for_leaders(
    admin: AIOKafkaAdminClient,
    specs: Sequence[TopicSpec],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    wanted = {spec.name: spec.partitions for spec in specs}
    try:
        async with asyncio.timeout(LEADERS_TIMEOUT_S):
            while wanted:
                found = await admin.describe_topics(list(wanted))
                for topic in found:
                    if _led(topic, wanted[topic["topic"]]):
                        del wanted[topic["topic"]]
                if on_progress is not None:
                    on_progress(len(specs) - len(wanted), len(specs))
                if wanted:
                    await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise StartupError(
            f"Kafka made the topics {', '.join(sorted(wanted))} but chose no leader for them in "
            f"{LEADERS_TIMEOUT_S:.0f} s: start again."
        ) from error


def _led(topic: Mapping[str, Any], partitions: int) -> bool:
    """Say whether every partition has a leader; raises when there are fewer than wanted."""
    if topic["error_code"] != _NO_ERROR:
        return False
    found = topic["partitions"]
    # An operator may have added some: `inferbus topics add-partitions`.
    if len(found) < partitions:
        raise StartupError(
            f"The topic {topic['topic']} has {len(found)} partitions and the catalogue says "
            f"{partitions}: delete the topic, or the state folder, and start again."
        )
    return all(part["error_code"] == _NO_ERROR and part["leader"] >= 0 for part in found)
