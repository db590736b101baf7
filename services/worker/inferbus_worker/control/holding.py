"""Which versions a worker loads, keeps and unloads; pure.

In: the newest deployments, the fleet, what is resident. Out: versions to load, to keep, to unload.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership

Key = tuple[str, int]
"""A version: model and number."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with versions. The three sets are disjoint."""

    load: frozenset[Key]
    keep: frozenset[Key]
    unload: frozenset[Key]

    @property
    def hold(self) -> frozenset[Key]:
        """All that this worker shall have."""
        return self.load | self.keep


def plan(
    pool: str,
    deployments: Mapping[str, m.Deployment],
    fleet: Membership,
    residents: Set[Key],
) -> Plan:
    """Decide for a worker of `pool`.

    A version that the newest generation names for this pool is loaded. One that it names nowhere
    is unloaded only once every live gateway acts on that generation and lists the version no
    more; while no gateway lives, nobody can say that nothing waits for it, so it stays.

    Args:
        pool: the worker's pool.
        deployments: the newest deployment of each model; a model that is missing has ended.
        fleet: read at least as far as the deployments, or the decision is only more careful.
        residents: versions that are loaded or loading.
    """
    named = {
        (model, version)
        for model, deployment in deployments.items()
        for version in named_versions(deployment, pool)
    }
    gone = {
        key
        for key in residents
        if key not in named and _unused(key, deployments.get(key[0]), fleet)
    }
    return Plan(
        load=frozenset(named - residents),
        keep=frozenset(residents - gone),
        unload=frozenset(gone),
    )


def named_versions(deployment: m.Deployment, pool: str) -> set[int]:
    """Return the versions that a deployment names for a pool.

    Those of the pool's list and, where the model is in that pool at all, what its aliases want and
    serve: a list that lags behind the aliases must not cost the version that serves.
    """
    lists = [set(part.versions) for part in deployment.pools if part.pool == pool]
    if not lists:
        return set()
    aliases = {v for alias in deployment.aliases for v in (alias.wanted, alias.serving) if v}
    return aliases.union(*lists)


def _unused(key: Key, deployment: m.Deployment | None, fleet: Membership) -> bool:
    model, version = key
    gateways = fleet.gateways()
    for gateway in gateways:
        said = next((one for one in gateway.beat.gateway.models if one.model == model), None)
        if said is None:
            if deployment is not None:
                return False
        elif (
            version in said.pinned
            or version in said.in_flight
            or (deployment is not None and said.generation < deployment.generation)
        ):
            return False
    return bool(gateways)
