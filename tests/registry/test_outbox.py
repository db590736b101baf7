"""The outbox: nothing that was committed is lost, order is kept, strangers are undone."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from sqlalchemy import insert, text

from inferbus_registry import tables
from inferbus_registry.outbox import repository
from inferbus_registry.outbox.relay import _NEXT
from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m
from tests.support import registry, servers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.registry import Parts

TIMEOUT_S = 20.0


async def write(parts: Parts, model: str, version: int = 1) -> int:
    """Commit one deployment and return its generation."""
    async with parts.database.write() as tx:
        return await repository.append(tx, topics.DEPLOYMENTS, model, wish(model, version))


def wish(model: str, version: int = 1) -> m.Deployment:
    return m.Deployment(model=model, aliases=[m.Alias(name="champion", wanted=version)])


async def until(parts: Parts, true: Callable[[list[tuple[str, Any, Any]]], bool]) -> list[Any]:
    """Read the deployments until they are as they should be, a few times a second."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await parts.records(topics.DEPLOYMENTS)
            if true(found):
                return found
            await asyncio.sleep(0.2)


def last(found: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    return {key: body for key, body, _ in found}


async def produce(parts: Parts, key: str, body: bytes | None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=parts.bus.bootstrap, acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(
            parts.bus.topics[topics.DEPLOYMENTS], body, key=key.encode(), partition=0
        )
    finally:
        await producer.stop()


async def test_rows_come_out_in_order_with_their_envelope(parts: Parts) -> None:
    generations = [await write(parts, f"m{n % 3}", n + 1) for n in range(12)]
    await parts.lead()
    found = await until(parts, lambda records: len(records) >= 12)
    assert [body.generation for _, body, _ in found] == generations
    assert generations == sorted(set(generations))
    for _, _, headers in found:
        envelope.check(headers, topics.topic(topics.DEPLOYMENTS).ce_type)
    assert len({dict(headers)["ce_id"] for *_, headers in found}) == 12


async def test_a_commit_is_published_at_once(parts: Parts) -> None:
    await parts.lead()
    await write(parts, "warm")
    await until(parts, lambda records: "warm" in last(records))
    started = asyncio.get_running_loop().time()
    await write(parts, "m")
    await parts.settled()
    took = asyncio.get_running_loop().time() - started
    assert took < 0.9  # the relay's own tick is 1 s


async def test_an_earlier_transaction_that_commits_later_is_not_lost(parts: Parts) -> None:
    await parts.lead()
    first_wrote, commit_first = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with parts.database.write() as tx:
            await repository.append(tx, topics.DEPLOYMENTS, "first", wish("first"))
            first_wrote.set()
            await commit_first.wait()

    slow = asyncio.create_task(first())
    await first_wrote.wait()
    quick = asyncio.create_task(write(parts, "second"))
    # The relay gets every chance to run past the open transaction.
    await asyncio.sleep(2.5)
    assert await parts.records(topics.DEPLOYMENTS) == []
    commit_first.set()
    await asyncio.gather(slow, quick)
    found = await until(parts, lambda records: len(records) >= 2)
    assert [key for key, *_ in found] == ["first", "second"]


async def test_without_the_lock_the_same_would_be_lost(parts: Parts) -> None:
    """The relay's query over transactions that take no lock: why the lock is there."""
    row = {"topic": topics.DEPLOYMENTS, "message": b""}
    engine = parts.database.engine
    relay = await asyncpg.connect(parts.url)
    try:
        async with engine.connect() as first:
            await first.execute(insert(tables.outbox).values(key="first", **row))
            async with engine.begin() as second:
                await second.execute(insert(tables.outbox).values(key="second", **row))
            seen = await relay.fetch(_NEXT, 100)
            await relay.execute(
                "UPDATE registry.outbox_cursor SET published_id = $1", seen[-1]["id"]
            )
            await first.commit()
        late = await relay.fetch(_NEXT, 100)
    finally:
        await relay.close()
    assert [row["key"] for row in [*seen, *late]] == ["second"]


async def test_many_writers_at_once_lose_nothing(parts: Parts) -> None:
    await parts.lead()
    generations = await asyncio.gather(*(write(parts, f"m{n}") for n in range(40)))
    await parts.settled()
    found = await parts.records(topics.DEPLOYMENTS)
    assert [body.generation for _, body, _ in found] == sorted(generations)


async def test_another_leader_takes_over(parts: Parts) -> None:
    await parts.lead("r-a")
    await write(parts, "before")
    await parts.settled()
    await parts.lead("r-b")
    async with parts.database.write() as tx:
        killed = await tx.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'r-a-leader' AND datname = current_database()"
            )
        )
        assert killed.scalar_one()
        await repository.append(tx, topics.DEPLOYMENTS, "between", wish("between"))
    await parts.leaders[0].stop()
    await write(parts, "after")
    found = await until(parts, lambda records: {"between", "after"} <= last(records).keys())
    firsts = list(dict.fromkeys(key for key, *_ in found))
    assert firsts == ["before", "between", "after"]


async def test_only_one_leads(parts: Parts) -> None:
    for name in ("r-a", "r-b", "r-c"):
        await parts.lead(name)
    await asyncio.gather(*(write(parts, f"m{n}") for n in range(10)))
    await parts.settled()
    await asyncio.sleep(1.5)
    assert len(await parts.records(topics.DEPLOYMENTS)) == 10


async def test_a_strangers_record_is_undone(parts: Parts) -> None:
    generation = await write(parts, "m", 1)
    await parts.lead()
    await parts.settled()
    await produce(
        parts, "m", m.Deployment(model="m", generation=generation - 1).SerializeToString()
    )
    found = await until(parts, lambda records: len(records) >= 3)
    assert [body.generation for _, body, _ in found] == [generation, generation - 1, generation]


async def test_a_strangers_higher_generation_is_outdone(parts: Parts) -> None:
    generation = await write(parts, "m", 1)
    await parts.lead()
    await parts.settled()
    await produce(
        parts, "m", m.Deployment(model="m", generation=generation + 500).SerializeToString()
    )
    found = await until(parts, lambda records: last(records)["m"].generation > generation + 500)
    assert last(found)["m"].aliases[0].wanted == 1
    assert await write(parts, "other") > generation + 501


@pytest.mark.parametrize("body", [None, b"\xff\xff\xff", b""], ids=["tombstone", "noise", "empty"])
async def test_what_is_no_message_is_overwritten(parts: Parts, body: bytes | None) -> None:
    generation = await write(parts, "m", 1)
    await parts.lead()
    await parts.settled()
    place = TopicPartition(parts.bus.topics[topics.DEPLOYMENTS], 0)
    await produce(parts, "m", body)
    consumer = AIOKafkaConsumer(bootstrap_servers=parts.bus.bootstrap)
    await consumer.start()
    try:
        consumer.assign([place])
        consumer.seek(place, 2)
        async with asyncio.timeout(TIMEOUT_S):
            record = await consumer.getone()
    finally:
        await consumer.stop()
    assert m.Deployment.FromString(record.value or b"").generation == generation


async def test_a_topic_that_was_lost_is_filled_again(parts: Parts) -> None:
    for n in range(5):
        await write(parts, f"m{n}")
    await write(parts, "m0", 2)
    leader = await parts.lead()
    await parts.settled()
    await leader.stop()
    names = await servers.fresh_topics(parts.bus.bootstrap)
    fresh = {short: names[topics.topic(short).name] for short in parts.bus.topics}
    parts.bus = type(parts.bus)(parts.bus.bootstrap, fresh)
    await parts.lead("r-later")
    found = await until(parts, lambda records: len(last(records)) == 5)
    assert last(found)["m0"].aliases[0].wanted == 2


async def test_generations_go_on_when_the_database_was_set_back(
    parts: Parts, postgres_url: str
) -> None:
    for n in range(30):
        await write(parts, f"m{n}")
    leader = await parts.lead()
    await parts.settled()
    await leader.stop()
    async with servers.fresh_database(postgres_url) as url:
        names = {topics.topic(short).name: real for short, real in parts.bus.topics.items()} | {
            topics.topic(topics.HEARTBEATS).name: parts.heartbeats
        }
        async with registry.parts(parts.bus.bootstrap, names, url) as later:
            assert await write(later, "m3", 7) < 30
            await later.lead("r-restored")
            found = await until(
                later,
                lambda records: (
                    last(records)["m3"].aliases[0].wanted == 7
                    and last(records)["m3"].generation > 30
                ),
            )
            assert await write(later, "new") > last(found)["m3"].generation


async def test_unknown_keys_are_left_alone(parts: Parts) -> None:
    await write(parts, "m")
    await parts.lead()
    await parts.settled()
    stranger = f"x-{secrets.token_hex(2)}"
    await produce(parts, stranger, m.Deployment(model=stranger, generation=1).SerializeToString())
    await asyncio.sleep(2.0)
    assert len(await parts.records(topics.DEPLOYMENTS)) == 2
