"""Keys that ended long ago are deleted everywhere; a tenant has only so many."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from inferbus_registry.errors import KeyNotFoundError, TooManyKeysError
from inferbus_registry.events import Caller
from inferbus_registry.keys.forms import Wish
from inferbus_registry.keys.service import KeyService
from inferbus_registry.keys.sweep import KeySweep
from inferbus_schemas import access, topics
from inferbus_schemas import messages as m

if TYPE_CHECKING:
    from tests.support.registry import Parts


async def follow(parts: Parts, ring: access.Keyring) -> dict[str, m.AccessKey | None]:
    """Let a gateway's keyring follow the topic; return the last record of each key."""
    last: dict[str, m.AccessKey | None] = {}
    for key, record, _ in await parts.records(topics.KEYS):
        last[key] = record
        if record is None:
            ring.forget(key)
        else:
            ring.apply(record)
    return last


async def test_keys_are_deleted_a_month_after_their_end_and_gateways_forget_them(
    parts: Parts,
) -> None:
    service = KeyService(parts.database, "local")
    by = await service.find(await service.ensure_admin(""))
    assert by is not None
    caller = Caller("x", "y")

    async def make(name: str, expires_in_s: int | None = None) -> str:
        wish = Wish(name, ("models:read",), expires_in_s=expires_in_s)
        return (await service.create(caller, by, wish)).id

    kept, revoked, expired = await make("kept"), await make("revoked"), await make("expired", 60)
    await service.revoke(caller, by, revoked)
    sweep = KeySweep(service)
    now = datetime.now(UTC)
    await sweep.sweep(now + timedelta(days=29))
    assert {one.name for one in await service.page(by, None, "", 10)} == {
        "admin", "kept", "revoked", "expired",
    }  # fmt: skip
    await parts.lead()
    await parts.settled()
    ring = access.Keyring()
    await follow(parts, ring)
    assert len(ring) == 4

    await sweep.sweep(now + timedelta(days=31))
    assert {one.name for one in await service.page(by, None, "", 10)} == {"admin", "kept"}
    await parts.settled()
    ring = access.Keyring()
    last = await follow(parts, ring)
    assert len(ring) == 2
    assert {key for key, value in last.items() if value is None} == {revoked, expired}
    for ended in (revoked, expired):
        with pytest.raises(KeyNotFoundError):
            await service.get(by, ended)
        told = await service.history(by, ended, 0, 10)
        assert [told[0].what, told[-1].what] == ["key_created", "key_deleted"]
        with pytest.raises(KeyNotFoundError):
            await service.history(replace(by, tenant="other"), ended, 0, 10)
    assert [one.what for one in await service.history(by, kept, 0, 10)] == ["key_created"]


async def test_a_leader_publishes_no_key_again_that_was_deleted(parts: Parts) -> None:
    service = KeyService(parts.database, "local")
    by = await service.find(await service.ensure_admin(""))
    assert by is not None
    made = await service.create(Caller("x", "y"), by, Wish("short", ("models:read",)))
    await service.revoke(Caller("x", "y"), by, made.id)
    leader = await parts.lead()
    await parts.settled()
    await KeySweep(service).sweep(datetime.now(UTC) + timedelta(days=31))
    await parts.settled()
    assert (await follow(parts, access.Keyring()))[made.id] is None
    await leader.stop()
    await parts.lead("r-1")
    await service.create(Caller("x", "y"), by, Wish("next", ("models:read",)))
    await parts.settled()
    ring = access.Keyring()
    assert (await follow(parts, ring))[made.id] is None
    assert len(ring) == 2


async def test_a_tenant_has_only_so_many_keys(parts: Parts) -> None:
    service = KeyService(parts.database, "local", max_tenant_keys=3)
    by = await service.find(await service.ensure_admin(""))
    assert by is not None
    caller, wish = Caller("x", "y"), Wish("one", ("models:read",))
    first = await service.create(caller, by, wish)
    await service.rotate(caller, by, first.id, 0, None)
    with pytest.raises(TooManyKeysError, match="3 keys"):
        await service.create(caller, by, wish)
    with pytest.raises(TooManyKeysError):
        await service.rotate(caller, by, by.name.removeprefix("key:"), 0, None)
    await service.create(caller, by, replace(wish, tenant="other"))
    await KeySweep(service).sweep(datetime.now(UTC) + timedelta(days=31))
    await service.create(caller, by, wish)
