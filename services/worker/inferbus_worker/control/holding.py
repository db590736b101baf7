"""Which versions a worker holds: those that it should, and those that it may not drop yet; pure.

In: the newest deployments, who is there, and what the worker holds. Out: the versions to hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership

Key = tuple[str, int]
"""A version: model and number."""


def versions_to_hold(
    deployments: Mapping[str, m.Deployment],
    membership: Membership,
    pool: str,
    held: Iterable[Key],
) -> dict[Key, int]:
    """Return the versions to hold, each with the generation that asks for it.

    A version that the newest generation does not name for this pool is kept, with generation 0, as
    long as some live gateway does not act on that generation of its model yet (a gateway whose beat
    does not tell of the model acts on none), or still pins the version or has it in flight. Where a
    model's deployment has ended, only pins and requests in flight keep a version. While no gateway
    lives, nobody can say what it still pins: everything is kept. A version that an unfinished job
    is pinned to is held, with generation 0, whether or not it was held before.

    Args:
        deployments: the newest deployment of each model.
        membership: the fold of the heartbeats, read to its end once at least.
        pool: this worker's pool.
        held: what this worker holds or loads now.
    """
    hold = {
        (model, version): deployment.generation
        for model, deployment in deployments.items()
        for part in deployment.pools
        if part.pool == pool
        for version in part.versions
    }
    gateways = [member.beat.gateway for member in membership.gateways()]
    for gateway in gateways:
        for one in gateway.job_versions:
            if one.pool == pool:
                hold.setdefault((one.model, one.version), 0)
    for model, version in held:
        newest = deployments.get(model)
        generation = 0 if newest is None else newest.generation
        if (model, version) not in hold and (
            not gateways or any(_needs(gateway, model, version, generation) for gateway in gateways)
        ):
            hold[model, version] = 0
    return hold


def _needs(gateway: m.GatewayBeat, model: str, version: int, generation: int) -> bool:
    for said in gateway.models:
        if said.model == model:
            return (
                said.generation < generation or version in said.pinned or version in said.in_flight
            )
    return generation > 0
