"""Keys in the database and on the topic: known by their digest, ended for good, last used when."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from inferbus_dev.services import DEAD_KEY
from inferbus_kit.errors import StartupError
from inferbus_registry.database import Database
from inferbus_registry.events import Caller
from inferbus_registry.keys.service import KeyService
from inferbus_registry.keys.sweep import KeySweep
from inferbus_registry.keys.uses import KeyUses
from inferbus_registry.migrate import migrate
from inferbus_schemas import access
from inferbus_schemas import messages as m

if TYPE_CHECKING:
    from tests.support.registry import Parts


def an_id(key: str) -> str:
    return str(access.key_id(key))


async def test_of_what_gateways_tell_the_latest_is_noted(parts: Parts) -> None:
    service = KeyService(parts.database, "local")
    key_id = an_id(await service.ensure_admin(""))
    uses = KeyUses(service)

    async def noted(*used_us: int) -> int:
        uses.heard(m.KeyUse(id=key_id, used_us=one) for one in used_us)
        uses.heard([m.KeyUse(id="0" * 16, used_us=5)])
        newest, uses._newest = uses._newest, {}
        await service.note_uses(newest)
        connection = await asyncpg.connect(parts.url)
        try:
            at: datetime = await connection.fetchval(
                "SELECT last_used_at FROM registry.keys WHERE id = $1", key_id
            )
        finally:
            await connection.close()
        return round(at.timestamp() * 1e6)

    now_us = 1_790_000_000_000_000
    assert await noted(now_us) == now_us
    assert await noted(now_us - 60_000_000) == now_us, "it never goes back"
    assert await noted(now_us + 3, now_us + 1, -1, 1 << 62, 0) == now_us + 3


async def test_keys_reach_the_topic_by_their_digest_alone(parts: Parts) -> None:
    service = KeyService(parts.database, "local")
    key = await service.ensure_admin("")
    assert await service.ensure_admin(key) == key
    connection = await asyncpg.connect(parts.url)
    try:
        rows = await connection.fetch("SELECT message FROM registry.outbox")
        dump = str(await connection.fetch("SELECT * FROM registry.keys"))
        dump += str(await connection.fetch("SELECT * FROM registry.events"))
    finally:
        await connection.close()
    assert len(rows) == 1
    record = m.AccessKey.FromString(rows[0]["message"])
    assert record.sha256 == access.key_sha256(key)
    assert key.split("_", 2)[2] not in dump + str(rows[0]["message"])
    ring = access.Keyring()
    ring.apply(record)
    found = ring.find(key, time.time())
    assert found is not None
    assert found.scopes == frozenset(access.ALL_SCOPES)


async def test_an_admin_key_that_has_ended_is_no_admin_key(postgres_database: str) -> None:
    database = Database(postgres_database, "test")
    try:
        await migrate(database)
        service = KeyService(database, "local")
        key = await service.ensure_admin("")
        found = await service.find(key)
        assert found is not None
        await service.revoke(Caller("x", "y"), found, an_id(key))
        with pytest.raises(StartupError, match=DEAD_KEY):
            await service.ensure_admin(key)
        with pytest.raises(StartupError, match="no key"):
            await service.ensure_admin("secret")
        await KeySweep(service).sweep(datetime.now(UTC) + timedelta(days=31))
        with pytest.raises(StartupError, match=DEAD_KEY):
            await service.ensure_admin(key)
    finally:
        await database.stop()
