"""A model's desired state as the bus carries it: whole, under a new generation."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry.outbox import repository as outbox
from inferbus_registry.placement import repository
from inferbus_schemas import messages as m
from inferbus_schemas import topics


async def deployment(tx: AsyncConnection, model: str) -> m.Deployment:
    """Return the desired state that the tables say, with its last generation."""
    return m.Deployment(
        model=model,
        generation=await outbox.generation(tx, topics.DEPLOYMENTS, model),
        aliases=[
            m.Alias(name=row.alias, wanted=row.wanted, serving=row.serving)
            for row in await repository.aliases(tx, model)
        ],
        pools=[
            m.PoolVersions(pool=row.pool, versions=row.versions, min_ready=row.min_ready)
            for row in await repository.pools(tx, model)
        ],
    )


async def announce(tx: AsyncConnection, model: str) -> int:
    """Publish what the tables say now, through the outbox; return the new generation."""
    return await outbox.append(tx, topics.DEPLOYMENTS, model, await deployment(tx, model))
