"""`inferbus topics`: what the bus carries, for people: list, tail as JSON, more inboxes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter

from inferbus_cli import places
from inferbus_cli.errors import CommandError
from inferbus_schemas import names
from inferbus_schemas import topics as catalogue
from inferbus_schemas.access import LOCAL_TENANT

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord
    from aiokafka.admin import AIOKafkaAdminClient
    from google.protobuf.message import Message

app = App(name="topics", help="Look into the topics of the bus.")

_TOPIC_EXISTS = 36
"""Kafka's error code."""
_ID_BYTES = 16
_JSON = "application/json"
_LETTERS = catalogue.dead_letters("")
_NO_RIGHT = "Kafka does not let this name read the topic; ask its operator for the ACL."
_GROWING = {catalogue.REQUESTS}
"""Only inboxes may grow: other topics' keys would move to other partitions."""


@app.command(name="list")
def list_topics(
    *, pool: str = "default", tenant: str = LOCAL_TENANT, kafka: str | None = None
) -> None:
    """List the topics of the catalogue with their partitions on the broker.

    Args:
        pool: Pool whose topics to show.
        tenant: Tenant whose topics to show.
        kafka: Brokers as host:port, comma-separated.
    """
    entries = [
        catalogue.topic(name, _pool(pool), _tenant(tenant)) for name in catalogue.catalogue()
    ]

    async def counts(admin: AIOKafkaAdminClient) -> dict[str, int]:
        found = await admin.describe_topics([entry.name for entry in entries])
        return {one["topic"]: len(one["partitions"]) for one in found if not one["error_code"]}

    have = _run(_with_admin(places.kafka(kafka), counts))
    for entry in entries:
        n_partitions = have.get(entry.name)
        state = "missing" if n_partitions is None else f"{n_partitions} partitions"
        print(f"{entry.name:<42} {state:<14} {entry.kind:<8} {entry.description}")


@app.command
def tail(
    topic: str,
    *,
    pool: str = "default",
    tenant: str = LOCAL_TENANT,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    from_beginning: Annotated[bool, Parameter(negative="")] = False,
    count: int | None = None,
    kafka: str | None = None,
) -> None:
    """Follow a topic and print each record decoded, until Ctrl-C.

    Args:
        topic: Name in the catalogue, such as inference.predictions, or on the broker; with `.dlq`
            behind it, the topic's dead letters.
        pool: Pool of a topic that each pool has.
        tenant: Tenant of a topic that each tenant has.
        as_json: One JSON object a line instead of a line for people.
        from_beginning: Start at the oldest record, not at the end.
        count: Stop after so many records.
        kafka: Brokers as host:port, comma-separated.
    """
    entry = _entry(topic, pool, tenant)
    if count is not None and count < 1:
        raise CommandError("--count must be at least 1.")

    async def follow() -> None:
        left = count
        async for record in _records(
            places.kafka(kafka), entry.name, from_beginning=from_beginning
        ):
            shown = _decoded(entry, record)
            print(json.dumps(shown) if as_json else _line(shown), flush=True)
            if left is not None:
                left -= 1
                if left == 0:
                    return

    _run(follow())


@app.command
def add_partitions(
    topic: str, *, total: int, pool: str = "default", kafka: str | None = None
) -> None:
    """Give a pool more inboxes, so that more workers can join it.

    Args:
        topic: inference.requests; the other topics must keep their partitions.
        total: How many partitions there shall be.
        pool: The pool.
        kafka: Brokers as host:port, comma-separated.
    """
    entry = _entry(topic, pool)
    if entry.name not in {catalogue.topic(name, _pool(pool)).name for name in _GROWING}:
        raise CommandError(
            f"{entry.name} must keep its partitions, since records would change places; "
            "only inference.requests may grow."
        )

    async def grow(admin: AIOKafkaAdminClient) -> int:
        from aiokafka.admin import NewPartitions  # noqa: PLC0415 -- only here

        found = (await admin.describe_topics([entry.name]))[0]
        have = len(found["partitions"])
        if found["error_code"] or total <= have:
            return have
        answer = await admin.create_partitions({entry.name: NewPartitions(total_count=total)})
        code, said = answer.topic_errors[0][1], answer.topic_errors[0][2]
        if code:
            raise CommandError(f"Kafka refuses more partitions: {said or f'error {code}'}")
        return have

    have = _run(_with_admin(places.kafka(kafka), grow))
    if have == 0:
        raise CommandError(f"The broker has no topic {entry.name}; start the stack first.")
    if total <= have:
        raise CommandError(f"{entry.name} has {have} partitions; they only grow: ask for more.")
    print(f"{entry.name}: {have} -> {total} partitions")


@app.command
def add_tenant(
    tenant: str,
    *,
    profile: Literal["one-machine", "production"] = "one-machine",
    kafka: str | None = None,
) -> None:
    """Make the topics that a tenant's programs write to, and read.

    Args:
        tenant: The tenant; name it too in INFERBUS_SUBMISSION_TENANTS of the gateways, which read
            what it writes, and in INFERBUS_ANSWER_TENANTS of the loggers, for what it reads.
        profile: Partitions and replicas for one machine or for a cluster of three brokers.
        kafka: Brokers as host:port, comma-separated.
    """
    wanted = {one.name: one for one in catalogue.to_create((), profile, (_tenant(tenant),))}
    others = {one.name for one in catalogue.to_create((), profile, ())}
    own = [one for name, one in wanted.items() if name not in others]

    async def make(admin: AIOKafkaAdminClient) -> None:
        from aiokafka.admin import NewTopic  # noqa: PLC0415 -- only here

        found = await admin.create_topics(
            [
                NewTopic(one.name, one.partitions, one.replication, topic_configs=one.config)
                for one in own
            ]
        )
        for name, code, said in (each[:3] for each in found.topic_errors):
            if code not in {0, _TOPIC_EXISTS}:
                raise CommandError(f"Kafka refuses the topic {name}: {said or f'error {code}'}")

    _run(_with_admin(places.kafka(kafka), make))
    for one in own:
        print(f"{one.name}: {one.partitions} partitions")


def _pool(name: str) -> str:
    try:
        return names.check_pool(name)
    except names.InvalidNameError as error:
        raise CommandError(f"{name!r} is {error}") from error


def _tenant(name: str) -> str:
    try:
        return names.check_tenant(name)
    except names.InvalidNameError as error:
        raise CommandError(f"{name!r} is {error}") from error


def _entry(topic: str, pool: str, tenant: str = LOCAL_TENANT) -> catalogue.Topic:
    """Return a topic, or one of dead letters, by its name in the catalogue or on the broker."""
    of_letters = topic.endswith(_LETTERS)
    base = topic.removesuffix(_LETTERS)
    for short, general in catalogue.catalogue().items():
        named = re.fullmatch(_pattern(general.name), base)
        if (named is None and base != short) or (of_letters and not general.dead_letters):
            continue
        told = {} if named is None else named.groupdict()  # The name says itself whose it is.
        entry = catalogue.topic(
            short, _pool(told.get("pool", pool)), _tenant(told.get("tenant", tenant))
        )
        letters = catalogue.dead_letters(entry.name)
        return msgspec.structs.replace(entry, name=letters) if of_letters else entry
    known = ", ".join(catalogue.catalogue())
    raise CommandError(f"There is no topic {topic!r}; the catalogue has {known}.")


def _pattern(name: str) -> str:
    """Return what matches a topic's names on the broker, whosever they are."""
    for who in ("pool", "tenant"):
        name = name.replace(f"{{{who}}}", f"(?P<{who}>.+)")
    return name


def _decoded(entry: catalogue.Topic, record: ConsumerRecord) -> dict[str, Any]:
    """Return a record as JSON can hold it: Protobuf's own JSON form, names as in the .proto.

    What says that it is JSON, as a submission may, is shown as it was written.
    Two kinds of bytes are shown as they are written everywhere else: ids as UUIDs, digests in hex.
    """
    from inferbus_guard.batches import why_unreadable  # noqa: PLC0415 -- only where tailed

    headers = {
        name: None if value is None else value.decode("utf-8", "replace")
        for name, value in record.headers
    }
    value = None if record.value is None else _value(entry, record.value, headers)
    if (why := why_unreadable(record.headers)) is not None:
        headers, value = {}, {"unreadable": why}
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp,
        "key": None if record.key is None else _key(record.key),
        "headers": headers,
        "value": value,
    }


def _key(key: bytes) -> str:
    """Return a key as text; one that is none, of the length of an id, is an id."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        pass
    return str(uuid.UUID(bytes=key)) if len(key) == _ID_BYTES else key.decode("utf-8", "replace")


def _value(entry: catalogue.Topic, raw: bytes, headers: dict[str, str | None]) -> Any:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 -- only where tailed
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    from inferbus_schemas import messages  # noqa: PLC0415

    if (headers.get("content-type") or "").partition(";")[0].strip().lower() == _JSON:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(raw)
    kind: type[Message] = getattr(messages, entry.message.rpartition(".")[2])
    try:
        said = kind.FromString(raw)
    except DecodeError:
        return {"undecodable_bytes": len(raw)}
    value = MessageToDict(said, preserving_proto_field_name=True)
    _show_ids(said, value)
    return value


def _show_ids(said: Message, shown: dict[str, Any]) -> None:
    """Write the ids and digests of a message, and of those within it, as people know them."""
    for field, value in said.ListFields():
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            within = value if field.is_repeated else [value]
            into = shown[field.name] if field.is_repeated else [shown[field.name]]
            for one, form in zip(within, into, strict=True):
                _show_ids(one, form)
        elif field.type != field.TYPE_BYTES or field.is_repeated:
            continue
        elif field.name.endswith("_sha256"):
            shown[field.name] = value.hex()
        elif field.name == "id" or field.name.endswith("_id"):
            with contextlib.suppress(ValueError):  # an id of another length stays as it is
                shown[field.name] = str(uuid.UUID(bytes=value))


def _line(shown: dict[str, Any]) -> str:
    body = json.dumps(shown["value"], ensure_ascii=False)
    why = shown["headers"].get("dlq_error")
    place = f"{shown['partition']}:{shown['offset']} {shown['key'] or '-'}"
    return _plain(f"{place} {body}" if why is None else f"{place} {why} {body}")


def _plain(text: str) -> str:
    """Return text of one line that steers no terminal: programs of tenants wrote it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


async def _records(
    bootstrap: str, topic: str, *, from_beginning: bool
) -> AsyncIterator[ConsumerRecord]:
    """Yield a topic's records from all partitions, without end."""
    from aiokafka import AIOKafkaConsumer, TopicPartition  # noqa: PLC0415 -- half a second

    from inferbus_guard.batches import guard  # noqa: PLC0415
    from inferbus_kit.kafka import client_options  # noqa: PLC0415

    consumer: AIOKafkaConsumer = AIOKafkaConsumer(
        **client_options(bootstrap), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        await consumer.start()
        guard(consumer)
        # aiokafka learns of a topic's partitions only once it was asked for the topic.
        await consumer._client.add_topic(topic)  # noqa: SLF001 -- it has no public way
        numbers = consumer.partitions_for_topic(topic)
        if topic in consumer._client.cluster.unauthorized_topics:  # noqa: SLF001 -- likewise
            raise CommandError(_NO_RIGHT)
        if not numbers:
            raise CommandError(
                f"The broker has no topic {topic}; start the stack first, or make a tenant's with "
                "`inferbus topics add-tenant`."
            )
        places_ = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(places_)
        if from_beginning:
            await consumer.seek_to_beginning(*places_)
        else:
            await consumer.seek_to_end(*places_)
        async for record in consumer:
            yield record
    finally:
        await consumer.stop()


async def _with_admin(bootstrap: str, work: Any) -> Any:
    from aiokafka.admin import AIOKafkaAdminClient  # noqa: PLC0415 -- half a second

    from inferbus_kit.kafka import client_options  # noqa: PLC0415

    admin: AIOKafkaAdminClient = AIOKafkaAdminClient(**client_options(bootstrap))
    try:
        await admin.start()
        return await work(admin)
    finally:
        await admin.close()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine against Kafka; trouble becomes a sentence."""
    import logging  # noqa: PLC0415 -- aiokafka says on stderr what the sentence says

    from aiokafka.errors import KafkaError, TopicAuthorizationFailedError  # noqa: PLC0415

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(work)
    except BrokenPipeError:
        # Who read it has enough; nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return None
    except TopicAuthorizationFailedError as error:
        raise CommandError(_NO_RIGHT) from error
    except (KafkaError, OSError, TimeoutError) as error:
        raise CommandError(
            "Kafka does not answer: start the stack with `make up`, or set "
            "INFERBUS_KAFKA_BOOTSTRAP (and INFERBUS_KAFKA_SECURITY_PROTOCOL, where it asks who "
            "comes)."
        ) from error
