"""The history: every change is one event, written in the transaction of the change.

In: who did what, before and after. Out: rows that nobody can alter; current state is their fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import tables

What = Literal[
    "version_registered",
    "alias_moved",
    "alias_serving",
    "pool_holds",
    "key_created",
    "key_rotated",
    "key_revoked",
    "key_deleted",
    "alias_removed",
]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as `<tenant>/<principal>`, and in which request."""

    who: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one model or one key. `before` is None where there was nothing."""

    id: int
    at: datetime
    who: str
    what: str
    model: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    generation: int
    request_id: str
    key_id: str | None = None


async def append(
    tx: AsyncConnection,
    caller: Caller,
    what: What,
    model: str | None = None,
    *,
    key_id: str | None = None,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    generation: int,
) -> None:
    """Write one event, about a model or about a key."""
    await tx.execute(
        insert(tables.events).values(
            who=caller.who,
            what=what,
            model=model,
            key_id=key_id,
            before=before,
            after=after,
            generation=generation,
            request_id=caller.request_id,
        )
    )


async def last_removed(tx: AsyncConnection, model: str) -> dict[str, int]:
    """Return what the aliases wanted that the last unloading of a model took away."""
    removed = (tables.events.c.model == model, tables.events.c.what == "alias_removed")
    newest = select(func.max(tables.events.c.generation)).where(*removed).scalar_subquery()
    found = await tx.execute(
        select(tables.events.c.before).where(*removed, tables.events.c.generation == newest)
    )
    return {before["alias"]: before["wanted"] for before in found.scalars()}


async def history(
    tx: AsyncConnection, model: str | None, after_id: int, limit: int, *, key_id: str | None = None
) -> list[Event]:
    """Return the events of a model or of a key with higher ids than `after_id`, oldest first."""
    columns = tables.events.c
    subject = columns.model == model if key_id is None else columns.key_id == key_id
    found = await tx.execute(
        select(tables.events)
        .where(subject, columns.id > after_id)
        .order_by(tables.events.c.id)
        .limit(limit)
    )
    return [Event(**row) for row in found.mappings()]


def fold(events: Iterable[Event]) -> dict[str, dict[str, int]]:
    """Return what each alias wanted and served after these events of one model.

    With the events up to a time this answers what an alias meant then.
    """
    aliases: dict[str, dict[str, int]] = {}
    for event in events:
        if event.what == "alias_removed" and event.before is not None:
            aliases.pop(event.before["alias"], None)
        elif event.what in {"alias_moved", "alias_serving"} and event.after is not None:
            after = event.after
            aliases[after["alias"]] = {"wanted": after["wanted"], "serving": after["serving"]}
    return aliases
