"""What a gateway tells of keys that were used: once a minute each, in bounded beats, keys alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferbus_gateway.control.key_uses import EVERY_S, MAX_PER_BEAT, KeyUses
from inferbus_gateway.hot.access import Access
from inferbus_kit.consume import PartitionReader
from inferbus_schemas import access, topics
from inferbus_schemas import messages as m
from inferbus_schemas.access import Keyring
from tests.gateway.key_records import bearer, record
from tests.gateway.test_gateway_keys import ask, put_key
from tests.support.gateway_side import GatewaySide
from tests.support.scripted_worker import prediction


def test_a_key_is_told_once_a_minute() -> None:
    used: set[str] = set()
    uses = KeyUses(used)
    assert uses.due(1000.0) == []
    used.update(("key:a", "key:b", "token:somebody"))
    assert [(one.id, one.used_us) for one in uses.due(1000.0)] == [
        ("a", 1_000_000_000),
        ("b", 1_000_000_000),
    ]
    assert not used
    used.update(("key:a", "key:c"))
    assert [one.id for one in uses.due(1000.0 + EVERY_S - 1)] == ["c"]
    used.add("key:a")
    assert [one.id for one in uses.due(1000.0 + EVERY_S)] == ["a"]


def test_what_is_too_much_for_a_beat_stands_in_the_next() -> None:
    used = {f"key:{number:04}" for number in range(2 * MAX_PER_BEAT + 1)}
    uses = KeyUses(used)
    told = [uses.due(1000.0 + second) for second in range(4)]
    assert [len(one) for one in told] == [MAX_PER_BEAT, MAX_PER_BEAT, 1, 0]
    assert len({one.id for beat in told for one in beat}) == 2 * MAX_PER_BEAT + 1


def test_only_what_opens_something_was_used() -> None:
    keys = Keyring()
    known = Access(keys, local=True)
    keys.apply(record(1, "models:read"))
    known.check(None, b"localhost", "127.0.0.1", access.MODELS_READ)
    assert known.used == set()
    for _ in range(3):
        known.check(bearer(1), b"", "", access.MODELS_READ)
    assert known.used == {f"key:{access.key_id(bearer(1).decode().split()[1])}"}


@pytest.fixture
async def side(kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[GatewaySide]:
    made = GatewaySide(kafka_bootstrap, tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.mark.slow
async def test_a_beat_tells_of_it(side: GatewaySide) -> None:
    key = access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))
    await put_key(side, key, f"infer:{side.model}")
    await side.worker(lambda request: [prediction(request)])
    topic = topics.topic(topics.HEARTBEATS).name
    reader = PartitionReader(side.bootstrap, topic, 0, client_id="t", start="end")
    await reader.start()
    gateway = await side.gateway(key=key)
    assert (await ask(side, gateway, key)).status_code == 200
    told: list[str] = []

    async def read() -> list[str]:
        for one in await reader.read(timeout_ms=200):
            beat = m.Heartbeat.FromString(one.value or b"")
            told.extend(use.id for use in beat.gateway.key_uses)
        return told

    assert await side.until_async(read, bool) == [access.key_id(key)]
    await reader.stop()
