"""Rows of desired state: what each alias wants and serves, what each pool holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import tables

_aliases = tables.aliases
_pools = tables.pools


@dataclass(frozen=True, slots=True)
class AliasRow:
    """An alias of a model. `serving` is 0 before the first version serves."""

    model: str
    alias: str
    wanted: int
    serving: int


@dataclass(frozen=True, slots=True)
class PoolRow:
    """The versions of a model that each worker of a pool holds, ascending."""

    model: str
    pool: str
    versions: tuple[int, ...]
    min_ready: int


async def aliases(tx: AsyncConnection, model: str) -> list[AliasRow]:
    """Return a model's aliases by name."""
    found = await tx.execute(
        select(_aliases).where(_aliases.c.model == model).order_by(_aliases.c.alias)
    )
    return [AliasRow(**row) for row in found.mappings()]


async def put_wanted(tx: AsyncConnection, model: str, alias: str, wanted: int) -> None:
    """Make an alias want a version; what it serves stays."""
    change = upsert(_aliases).values(model=model, alias=alias, wanted=wanted, serving=0)
    await tx.execute(
        change.on_conflict_do_update(
            index_elements=["model", "alias"], set_={"wanted": change.excluded.wanted}
        )
    )


async def drop_aliases(tx: AsyncConnection, model: str) -> None:
    """Take all aliases of a model away; what pools hold stays until nobody uses it."""
    await tx.execute(delete(_aliases).where(_aliases.c.model == model))


async def set_serving(tx: AsyncConnection, model: str, alias: str, serving: int) -> None:
    """Say which version all gateways pin for an alias."""
    await tx.execute(
        update(_aliases)
        .where(_aliases.c.model == model, _aliases.c.alias == alias)
        .values(serving=serving)
    )


async def pools(tx: AsyncConnection, model: str) -> list[PoolRow]:
    """Return what the pools hold of a model."""
    found = await tx.execute(select(_pools).where(_pools.c.model == model).order_by(_pools.c.pool))
    return [
        PoolRow(row["model"], row["pool"], tuple(row["versions"]), row["min_ready"])
        for row in found.mappings()
    ]


async def put_pool(
    tx: AsyncConnection, model: str, pool: str, versions: Iterable[int], min_ready: int
) -> None:
    """Say which versions of a model each worker of a pool holds."""
    change = upsert(_pools).values(
        model=model, pool=pool, versions=sorted(set(versions)), min_ready=min_ready
    )
    await tx.execute(
        change.on_conflict_do_update(
            index_elements=["model", "pool"],
            set_={name: change.excluded[name] for name in ("versions", "min_ready")},
        )
    )


async def placed_models(tx: AsyncConnection) -> list[str]:
    """Return the models that some pool holds."""
    found = await tx.execute(select(_pools.c.model).distinct().order_by(_pools.c.model))
    return list(found.scalars())
