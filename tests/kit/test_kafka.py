"""The kit's readers, beaters and dead letters on a real broker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError
from structlog.testing import capture_logs

from inferbus_kit.consume import PartitionReader, Record, StateReader
from inferbus_kit.dlq import DeadLetters
from inferbus_kit.heartbeat import Beater
from inferbus_kit.kafka import stop_client
from inferbus_kit.produce import Producer
from inferbus_kit.topics import create_topics
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from tests.support import servers


async def test_reader_commits_and_restarts(kafka_bootstrap: str, producer: Producer) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    for n in range(10):
        await (await producer.send(topic, 0, b"%d" % n))
    group = f"g-{secrets.token_hex(3)}"
    reader = PartitionReader(
        kafka_bootstrap, topic, 0, client_id="t", group=group, start="committed"
    )
    assert await reader.start() == 0
    assert len(await reader.read()) == 10
    assert await reader.commit(7)
    assert await reader.committed() == 7
    await reader.stop()
    again = PartitionReader(
        kafka_bootstrap, topic, 0, client_id="t", group=group, start="committed"
    )
    assert await again.start() == 7
    assert [record.value for record in await again.read()] == [b"7", b"8", b"9"]
    await again.stop()
    bounds = {(0, 10): 8}
    chosen = PartitionReader(
        kafka_bootstrap, topic, 0, client_id="t", start=lambda *between: bounds[between]
    )
    assert await chosen.start() == 8
    assert [record.value for record in await chosen.read()] == [b"8", b"9"]
    await chosen.stop()
    at_end = PartitionReader(kafka_bootstrap, topic, 0, client_id="t", start="end")
    assert await at_end.start() == 10
    await at_end.stop()


async def test_a_state_reader_has_heard_when_a_broker_answered_and_not_when_it_asked(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, config={"cleanup.policy": "compact"})
    reader = StateReader(kafka_bootstrap, topic, lambda _: None, client_id="t")
    await reader.start()
    began_s = reader.last_heard_monotonic_s
    async with asyncio.timeout(10):
        while reader.last_heard_monotonic_s == began_s:  # noqa: ASYNC110 -- of an empty topic
            await asyncio.sleep(0.05)
    # As where the partition has no leader: reading returns in time, with nothing.
    monkeypatch.setattr(reader._reader.client, "last_poll_timestamp", lambda _: 1)
    await asyncio.sleep(0.7)
    silent_s = reader.last_heard_monotonic_s
    await asyncio.sleep(1.5)
    assert reader.last_heard_monotonic_s == silent_s
    await reader.stop()


async def test_state_reader_is_at_the_end_when_started(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, config={"cleanup.policy": "compact"})
    for n in range(50):
        await (await producer.send(topic, 0, b"%d" % n, key=b"k%d" % (n % 3)))
    seen: dict[bytes, bytes] = {}

    def apply(record: Record) -> None:
        assert record.key is not None
        if record.value == b"bad":
            raise ValueError("cannot be decoded")
        seen[record.key] = record.value or b""

    state = StateReader(kafka_bootstrap, topic, apply, client_id="t")
    await state.start()
    try:
        assert seen == {b"k0": b"48", b"k1": b"49", b"k2": b"47"}
        await (await producer.send(topic, 0, b"bad", key=b"k0"))
        last = await (await producer.send(topic, 0, b"new", key=b"k9"))
        await state.reach(last.offset + 1)
        assert seen[b"k9"] == b"new"
        assert state.n_undecodable == 1
    finally:
        await state.stop()


async def test_a_state_reader_that_cannot_go_on_says_so(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, config={"cleanup.policy": "compact"})
    reasons: list[str] = []

    def apply(_record: Record) -> None:
        raise LookupError("a fault of ours")

    state = StateReader(kafka_bootstrap, topic, apply, client_id="t", on_failure=reasons.append)
    await state.start()
    try:
        await (await producer.send(topic, 0, b"one", key=b"k"))
        async with asyncio.timeout(10):
            while not reasons:  # noqa: ASYNC110 -- the callback is what is waited for
                await asyncio.sleep(0.02)
        assert bool(state.failed)
        assert reasons == [f"task state:{topic} failed"]
    finally:
        await state.stop()


async def test_a_beater_that_cannot_go_on_says_so(producer: Producer) -> None:
    reasons: list[str] = []

    def make() -> tuple[str, m.Heartbeat]:
        raise LookupError("a fault of ours")

    beater = Beater(producer, "t-0", "test", make, on_failure=reasons.append)
    await beater.start()
    await asyncio.sleep(0.05)
    assert beater.failed
    assert reasons == ["task heartbeat failed"]
    await beater.stop()


async def test_dead_letters_say_where_they_came_from_and_have_a_limit(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    await create_topics(kafka_bootstrap, [(topics.dead_letters(topic), 1, 1, {})])
    await (await producer.send(topic, 0, b"junk", headers=[("ce_id", b"1")]))
    record = (await servers.read_all(kafka_bootstrap, topic))[0]
    letters = DeadLetters(producer, "worker-0", per_minute=2)
    for _ in range(2):
        await letters.put(record, ValueError("not a frame"), ["first\n" * 2000, "last words"])
    assert letters.n_written == 2, "none of these waited for the minute to be over"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(letters.put(record, ValueError("again")), 1.0)
    found = await servers.read_all(kafka_bootstrap, topics.dead_letters(topic))
    assert len(found) == letters.n_written == 2
    headers = dict(found[0].headers)
    assert found[0].value == b"junk"
    assert headers["dlq_topic"] == topic.encode()
    assert headers["dlq_offset"] == b"0"
    assert headers["dlq_error"] == b"ValueError: not a frame"
    assert headers["ce_id"] == b"1"
    assert headers["dlq_log"].endswith(b"first\n\nlast words")
    assert len(headers["dlq_log"]) == 8192


async def test_letters_that_wait_for_the_limit_go_in_turn_and_say_so_once(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap)
    await create_topics(kafka_bootstrap, [(topics.dead_letters(topic), 1, 1, {})])
    await (await producer.send(topic, 0, b"junk"))
    record = (await servers.read_all(kafka_bootstrap, topic))[0]
    letters = DeadLetters(producer, "worker-0", per_minute=60)
    with capture_logs() as said:
        tasks = [
            asyncio.create_task(letters.put(record, ValueError(str(number))))
            for number in range(20_000)
        ]
        await asyncio.sleep(3.0)
        done = [number for number, task in enumerate(tasks) if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert done == list(range(len(done)))
    assert 60 <= len(done) < 1_000
    assert [one["event"] for one in said].count("dead_letter_limit") == 1
    n_written = letters.n_written
    await letters.put(record, ValueError("of another now"), still=lambda: False)
    assert letters.n_written == n_written


async def test_a_letter_has_room_for_itself_whatever_it_is_about(
    kafka_bootstrap: str, producer: Producer
) -> None:
    topic = await servers.fresh_topic(kafka_bootstrap, config={"max.message.bytes": "9000000"})
    await create_topics(kafka_bootstrap, [(topics.dead_letters(topic), 1, 1, {})])
    own = [("ce_id", b"1"), ("dlq_topic", b"forged"), *(("x", b"y" * 1023) for _ in range(80))]
    sent = await producer.send(topic, 0, b"v" * (5 << 20), key=b"k" * 5000, headers=own)
    await sent
    (record,) = await servers.read_all(kafka_bootstrap, topic)
    assert (len(record.key or b""), len(record.headers)) == (5000, len(own))
    await DeadLetters(producer, "worker-0").put(record, ValueError("e" * 5000))
    (letter,) = await servers.read_all(kafka_bootstrap, topics.dead_letters(topic))
    assert letter.key == b"k" * 4096
    assert letter.value == b"v" * (4 << 20)
    head = list(letter.headers)
    assert head[0] == ("ce_id", b"1")
    # 64 KiB, of which each takes 16 bytes beside its text; the forged one counted and dropped.
    assert [name for name, _ in head[1:-5]] == ["x"] * 62
    added = dict(head[-5:])
    assert added["dlq_topic"] == topic.encode()
    assert len(added["dlq_error"]) == 1000
    assert added["dlq_offset"] == b"0"


class _Client:
    """Its stop does as it is told."""

    def __init__(self, stop: Callable[[], Awaitable[object]]) -> None:
        self._stop = stop

    async def stop(self) -> None:
        await self._stop()


@pytest.mark.parametrize("steps", range(3))
async def test_a_cancellation_is_heard_while_a_client_stops(steps: int) -> None:
    client = _Client(asyncio.Event().wait)
    reader = PartitionReader("unused:1", "t", 0, client_id="t-0")
    reader._client = cast("AIOKafkaConsumer", client)
    stopping = asyncio.create_task(reader.stop())
    for _ in range(steps):
        await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait([stopping], timeout=5)
    assert stopping.cancelled()


async def test_a_client_that_hangs_or_fails_as_it_stops_keeps_nobody() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def refused() -> None:
        raise KafkaConnectionError

    async def fault() -> None:
        raise ZeroDivisionError

    for stop in (asyncio.Event().wait, cancelled, refused):
        await stop_client(_Client(stop), timeout_s=0.01)
    with pytest.raises(ZeroDivisionError):
        await stop_client(_Client(fault))
