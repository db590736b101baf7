"""The history: every change is one event, written in the transaction of the change.

In: who did what, before and after. Out: rows that nobody can alter; current state is their fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import tables

What = Literal["version_registered", "alias_moved", "alias_serving", "pool_holds"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and in which request. Until authentication exists everyone is `local`."""

    who: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one model. `before` is None where there was nothing."""

    id: int
    at: datetime
    who: str
    what: str
    model: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    generation: int
    request_id: str


async def append(
    tx: AsyncConnection,
    caller: Caller,
    what: What,
    model: str,
    *,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    generation: int,
) -> None:
    """Write one event."""
    await tx.execute(
        insert(tables.events).values(
            who=caller.who,
            what=what,
            model=model,
            before=before,
            after=after,
            generation=generation,
            request_id=caller.request_id,
        )
    )


async def history(tx: AsyncConnection, model: str, after_id: int, limit: int) -> list[Event]:
    """Return a model's events with higher ids than `after_id`, oldest first."""
    found = await tx.execute(
        select(tables.events)
        .where(tables.events.c.model == model, tables.events.c.id > after_id)
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
        if event.what in {"alias_moved", "alias_serving"} and event.after is not None:
            after = event.after
            aliases[after["alias"]] = {"wanted": after["wanted"], "serving": after["serving"]}
    return aliases
