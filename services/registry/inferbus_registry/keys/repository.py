"""Rows of keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import tables

_keys = tables.keys


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key by its digest. Times are UTC; a limit of 0 is none."""

    id: str
    name: str
    tenant: str
    scopes: list[str]
    sha256: bytes
    requests_per_s: float
    burst: int
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    replaced_by: str | None = None
    tokens_per_min: int = 0
    last_used_at: datetime | None = None


async def get(tx: AsyncConnection, key_id: str) -> KeyRow | None:
    """Return one key."""
    found = await tx.execute(select(_keys).where(_keys.c.id == key_id))
    row = found.mappings().one_or_none()
    return None if row is None else KeyRow(**row)


async def page(tx: AsyncConnection, tenant: str | None, after: str, limit: int) -> list[KeyRow]:
    """Return keys by id, those after `after` first; of one tenant, or of all."""
    wanted = select(_keys).where(_keys.c.id > after)
    if tenant is not None:
        wanted = wanted.where(_keys.c.tenant == tenant)
    found = await tx.execute(wanted.order_by(_keys.c.id).limit(limit))
    return [KeyRow(**row) for row in found.mappings()]


async def count(tx: AsyncConnection, tenant: str) -> int:
    """Return how many keys a tenant has, with those that have ended."""
    found = await tx.execute(select(func.count()).where(_keys.c.tenant == tenant))
    return int(found.scalar_one())


async def delete_ended(tx: AsyncConnection, before: datetime, limit: int) -> list[KeyRow]:
    """Delete keys that had ended before this time; return them as they were."""
    over = or_(_keys.c.revoked_at < before, _keys.c.expires_at < before)
    chosen = select(_keys.c.id).where(over).order_by(_keys.c.id).limit(limit)
    found = await tx.execute(delete(_keys).where(_keys.c.id.in_(chosen)).returning(_keys))
    return [KeyRow(**row) for row in found.mappings()]


async def add(tx: AsyncConnection, row: KeyRow) -> None:
    """Write a new key."""
    await tx.execute(insert(_keys).values(**asdict(row)))


async def change(tx: AsyncConnection, key_id: str, **fields: Any) -> KeyRow:
    """Change fields of a key and return it."""
    found = await tx.execute(
        update(_keys).where(_keys.c.id == key_id).values(**fields).returning(_keys)
    )
    return KeyRow(**found.mappings().one())


async def note_uses(tx: AsyncConnection, uses: Mapping[str, datetime]) -> None:
    """Note when keys were used, where that is later than what stands there."""
    at: BindParameter[datetime] = bindparam("at")
    await tx.execute(
        update(_keys)
        .where(
            _keys.c.id == bindparam("key_id"),
            or_(_keys.c.last_used_at.is_(None), _keys.c.last_used_at < at),
        )
        .values(last_used_at=at),
        [{"key_id": key_id, "at": used_at} for key_id, used_at in sorted(uses.items())],
    )
