"""The outbox table: what is to be published, and what the topics must hold in the end.

In: a message of desired state inside a write transaction. Out: its generation, and rows that the
relay reads in the order of their ids, which is the order of the commits.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import tables
from inferbus_schemas import messages as m
from inferbus_schemas import topics

CHANNEL = "registry_outbox"
"""Postgres tells listeners on this channel that the outbox has grown."""

Message = m.ModelVersion | m.Deployment | m.AccessKey
MESSAGES: dict[str, type[Message]] = {
    topics.VERSIONS: m.ModelVersion,
    topics.DEPLOYMENTS: m.Deployment,
    topics.KEYS: m.AccessKey,
}
"""The topics that the registry owns, by short name, and what they carry."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What the last record of a key must be: its generation and the sha256 of its bytes."""

    key: str
    generation: int
    sha256: bytes


async def append(tx: AsyncConnection, topic: str, key: str, message: Message) -> int:
    """Number `message`, write it to the outbox and to the state; return its generation.

    `tx` must be a write transaction of `Database`; `topic` is a short name of the catalogue.
    """
    number = int((await tx.execute(select(tables.generation.next_value()))).scalar_one())
    message.generation = number
    body = message.SerializeToString(deterministic=True)
    added = await tx.execute(
        insert(tables.outbox)
        .values(topic=topic, key=key, message=body)
        .returning(tables.outbox.c.id)
    )
    row = {
        "topic": topic,
        "key": key,
        "generation": number,
        "message": body,
        "outbox_id": added.scalar_one(),
    }
    change = upsert(tables.state).values(row)
    await tx.execute(
        change.on_conflict_do_update(
            index_elements=["topic", "key"],
            set_={name: change.excluded[name] for name in ("generation", "message", "outbox_id")},
        )
    )
    await tx.execute(text(f"NOTIFY {CHANNEL}"))
    return number


async def append_end(tx: AsyncConnection, topic: str, key: str) -> int:
    """Write to the outbox that there is no such key any more; return the generation of that.

    In the outbox it is a message without bytes, on the topic a tombstone.
    """
    number = int((await tx.execute(select(tables.generation.next_value()))).scalar_one())
    await tx.execute(insert(tables.outbox).values(topic=topic, key=key, message=b""))
    await tx.execute(
        delete(tables.state).where(tables.state.c.topic == topic, tables.state.c.key == key)
    )
    await tx.execute(text(f"NOTIFY {CHANNEL}"))
    return number


async def generation(tx: AsyncConnection, topic: str, key: str) -> int:
    """Return the generation of a key's last message; 0 where there is none."""
    found = await tx.execute(
        select(tables.state.c.generation).where(
            tables.state.c.topic == topic, tables.state.c.key == key
        )
    )
    return int(found.scalar_one_or_none() or 0)


async def reissue(tx: AsyncConnection, topic: str, key: str, above: int) -> int | None:
    """Give a key's last message a generation over `above`; None where there is no such key.

    Readers apply only a higher generation, so this is what undoes a record of another writer.
    """
    found = await tx.execute(
        select(tables.state.c.message).where(
            tables.state.c.topic == topic, tables.state.c.key == key
        )
    )
    body = found.scalar_one_or_none()
    if body is None:
        return None
    await raise_generation(tx, above)
    return await append(tx, topic, key, MESSAGES[topic].FromString(body))


async def raise_generation(tx: AsyncConnection, above: int) -> None:
    """Make every generation from now on higher than `above`."""
    sequence = f"{tables.SCHEMA}.generation"
    await tx.execute(
        text(
            f"SELECT setval('{sequence}', greatest(last_value, :above)) FROM {sequence}"  # noqa: S608 -- names of our own
        ),
        {"above": above},
    )


async def desired(tx: AsyncConnection, topic: str) -> list[Desired]:
    """Return every key of a topic whose last message is published."""
    cursor = select(tables.outbox_cursor.c.published_id).scalar_subquery()
    found = await tx.execute(
        select(
            tables.state.c.key, tables.state.c.generation, func.sha256(tables.state.c.message)
        ).where(tables.state.c.topic == topic, tables.state.c.outbox_id <= cursor)
    )
    return [Desired(*row) for row in found.all()]


async def messages(tx: AsyncConnection, topic: str) -> list[bytes]:
    """Return the last message of every key of a topic."""
    found = await tx.execute(
        select(tables.state.c.message)
        .where(tables.state.c.topic == topic)
        .order_by(tables.state.c.key)
    )
    return [bytes(body) for body in found.scalars()]


async def message(tx: AsyncConnection, topic: str, key: str) -> bytes | None:
    """Return a key's last message."""
    found = await tx.execute(
        select(tables.state.c.message).where(
            tables.state.c.topic == topic, tables.state.c.key == key
        )
    )
    body = found.scalar_one_or_none()
    return None if body is None else bytes(body)
