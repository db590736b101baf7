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
from inferbus_registry.placement.convergence import Step, converge
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
            if step := converge(now, fleet):
                await self._apply(now, step)

    async def _apply(self, now: m.Deployment, step: Step) -> None:
        model = now.model
        async with self._database.write() as tx:
            if await outbox.generation(tx, topics.DEPLOYMENTS, model) != now.generation:
                return
            min_ready = {pool.pool: pool.min_ready for pool in now.pools}
            for alias, serving in step.serving:
                await repository.set_serving(tx, model, alias, serving)
            for pool, versions in step.pools:
                await repository.put_pool(tx, model, pool, versions, min_ready[pool])
            generation = await desired.announce(tx, model)
            await _record(tx, now, step, generation)
        _log.info("rollout_moved", model=model, generation=generation)


async def _record(tx: AsyncConnection, now: m.Deployment, step: Step, generation: int) -> None:
    """Write an event for each alias and each pool that changed."""
    aliases = {alias.name: alias for alias in now.aliases}
    changes: list[tuple[events.What, dict[str, Any], dict[str, Any]]] = []
    for name, serving in step.serving:
        before = {"alias": name, "wanted": aliases[name].wanted, "serving": aliases[name].serving}
        changes.append(("alias_serving", before, {**before, "serving": serving}))
    pools = {pool.pool: sorted(pool.versions) for pool in now.pools}
    for name, versions in step.pools:
        held = {"pool": name, "versions": pools[name]}
        changes.append(("pool_holds", held, {**held, "versions": list(versions)}))
    for what, before, after in changes:
        await events.append(
            tx, _US, what, now.model, before=before, after=after, generation=generation
        )
