"""The leader's second duty: desired state follows what the fleet reports, step by step.

In: the newest desired state of every model and the heartbeats. Out: where `converge` says so, new
desired state with its events, in one transaction each.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from inferbus_registry import events
from inferbus_registry.database import Database
from inferbus_registry.outbox import repository as outbox
from inferbus_registry.placement import desired, repository
from inferbus_registry.placement.convergence import converge
from inferbus_registry.placement.fleet import Fleet
from inferbus_schemas import messages as m
from inferbus_schemas import topics

_log = structlog.get_logger("rollouts")

_EVERY_S = 0.5
_US = events.Caller(who="registry", request_id="")


class Convergence:
    """Moves rollouts on while this process leads.

    Invariants: a step is taken only from the state that was looked at: one that changed in the
    meantime is looked at again; nothing is decided while the fleet is not known.
    """

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet

    async def run(self) -> None:
        """Look and step until the database fails; what failed is raised."""
        while True:
            await self.step()
            await asyncio.sleep(_EVERY_S)

    async def step(self) -> None:
        """Look at every model once."""
        fleet = self._fleet.membership
        if fleet is None:
            return
        async with self._database.read() as tx:
            bodies = await outbox.messages(tx, topics.DEPLOYMENTS)
        for body in bodies:
            now = m.Deployment.FromString(body)
            following = converge(now, fleet)
            if following is not None:
                await self._apply(now, following)

    async def _apply(self, now: m.Deployment, following: m.Deployment) -> None:
        model = now.model
        async with self._database.write() as tx:
            if await outbox.generation(tx, topics.DEPLOYMENTS, model) != now.generation:
                return
            for alias in following.aliases:
                await repository.set_serving(tx, model, alias.name, alias.serving)
            for pool in following.pools:
                await repository.put_pool(tx, model, pool.pool, pool.versions, pool.min_ready)
            generation = await desired.announce(tx, model)
            await _record(tx, now, following, generation)
        _log.info("rollout_moved", model=model, generation=generation)


async def _record(
    tx: AsyncConnection, now: m.Deployment, following: m.Deployment, generation: int
) -> None:
    """Write an event for each alias and each pool that changed."""
    changes: list[tuple[events.What, dict[str, Any], dict[str, Any]]] = [
        ("alias_serving", _alias(old), _alias(new))
        for old, new in zip(now.aliases, following.aliases, strict=True)
    ]
    changes += [
        ("pool_holds", _pool(old), _pool(new))
        for old, new in zip(now.pools, following.pools, strict=True)
    ]
    for what, before, after in changes:
        if before != after:
            await events.append(
                tx, _US, what, now.model, before=before, after=after, generation=generation
            )


def _alias(alias: m.Alias) -> dict[str, Any]:
    return {"alias": alias.name, "wanted": alias.wanted, "serving": alias.serving}


def _pool(pool: m.PoolVersions) -> dict[str, Any]:
    return {"pool": pool.pool, "versions": sorted(pool.versions)}
