"""The forms of a key: as it is wished for, stored, published, told of, shown; pure.

In: a wish, or a row. Out: a row, a record of `access.keys`, a part of an event, a view.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from inferbus_registry.keys.repository import KeyRow
from inferbus_schemas import access
from inferbus_schemas import messages as m


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key as admins see it; what opens doors is not among it."""

    id: str
    name: str
    tenant: str
    scopes: list[str]
    requests_per_s: float
    burst: int
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: str | None
    tokens_per_min: int
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `key` is shown this once and stored nowhere."""

    key: str
    id: str
    name: str
    tenant: str
    scopes: list[str]
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new key shall be; `tenant` None is the caller's own, a limit of 0 is none."""

    name: str
    scopes: tuple[str, ...]
    tenant: str | None = None
    requests_per_s: float = 0.0
    burst: int = 0
    expires_in_s: int | None = None
    tokens_per_min: int = 0


def row_of(key: str, wish: Wish, now: datetime, who: str) -> KeyRow:
    """Return the row of a key that is wished for now."""
    life_s = wish.expires_in_s
    limited = wish.requests_per_s > 0
    return KeyRow(
        id=str(access.key_id(key)),
        name=wish.name,
        tenant=str(wish.tenant),
        scopes=sorted(set(wish.scopes)),
        sha256=access.key_sha256(key),
        requests_per_s=wish.requests_per_s,
        burst=(wish.burst or max(1, round(wish.requests_per_s))) if limited else 0,
        created_at=now,
        created_by=who,
        expires_at=None if life_s is None else now + timedelta(seconds=life_s),
        tokens_per_min=wish.tokens_per_min,
    )


def ended(row: KeyRow, now: datetime) -> bool:
    """Tell whether a key is good no more."""
    return row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now)


def _us(at: datetime | None) -> int:
    return 0 if at is None else round(at.timestamp() * 1_000_000)


def record_of(row: KeyRow) -> m.AccessKey:
    """Return what `access.keys` holds of a key."""
    return m.AccessKey(
        id=row.id,
        sha256=row.sha256,
        tenant=row.tenant,
        scopes=row.scopes,
        limits=m.Limits(
            requests_per_s=row.requests_per_s,
            burst=row.burst,
            tokens_per_min=row.tokens_per_min,
        ),
        expires_us=_us(row.expires_at),
        revoked=row.revoked_at is not None,
        created_us=_us(row.created_at),
    )


def event_part(row: KeyRow) -> dict[str, Any]:
    """Return what the history tells of a key."""
    return {
        "name": row.name,
        "tenant": row.tenant,
        "scopes": row.scopes,
        "requests_per_s": row.requests_per_s,
        "burst": row.burst,
        "tokens_per_min": row.tokens_per_min,
        "expires_at": None if row.expires_at is None else row.expires_at.isoformat(),
        "revoked": row.revoked_at is not None,
        "replaced_by": row.replaced_by,
    }


def view_of(row: KeyRow) -> KeyView:
    """Return what admins see of a key."""
    return KeyView(
        row.id,
        row.name,
        row.tenant,
        row.scopes,
        row.requests_per_s,
        row.burst,
        row.created_at,
        row.created_by,
        row.expires_at,
        row.revoked_at,
        row.replaced_by,
        row.tokens_per_min,
        row.last_used_at,
    )


def new_key_of(key: str, row: KeyRow) -> NewKey:
    """Return what the one who made a key sees of it, once."""
    return NewKey(key, row.id, row.name, row.tenant, row.scopes, row.expires_at)
