"""How desired state follows what gateways report; pure.

In: a model's deployment and the fleet. Out: which aliases serve what they want, and which versions
each pool shall go on holding. The caller writes that down under a new generation, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership


@dataclass(frozen=True, slots=True)
class Step:
    """What changes; falsy where nothing does.

    `serving`: alias and the version that it serves from now on. `pools`: pool and all versions
    that it shall hold from now on, ascending.
    """

    serving: tuple[tuple[str, int], ...] = ()
    pools: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.serving or self.pools)


def converge(deployment: m.Deployment, fleet: Membership) -> Step:
    """Decide for one model; call it after each change of the fleet or of the deployment.

    `serving := wanted` once every live gateway (and at least one) acts on the newest generation
    and pins `wanted`. A version that no alias names is dropped from a pool's list only once every
    live gateway acts on the newest generation and lists it no more. It never adds to a list more
    than what aliases name, so it comes to rest.
    """
    reports = _reports(deployment.model, fleet)
    current = bool(reports) and all(
        one is not None and one.generation >= deployment.generation for one in reports
    )
    serving = {alias.name: alias.serving for alias in deployment.aliases}
    if current:
        for alias in deployment.aliases:
            if alias.serving != alias.wanted and _all_pin(deployment, alias, reports):
                serving[alias.name] = alias.wanted
    named = {alias.wanted for alias in deployment.aliases} | set(serving.values())
    # What stops being named in this very step is still listed until gateways act on it.
    named |= {alias.serving for alias in deployment.aliases}
    listed = {
        version for one in reports if one is not None for version in (*one.pinned, *one.in_flight)
    }
    pools = []
    for pool in deployment.pools:
        held = set(pool.versions)
        wanted = (named | (held & listed if current else held)) - {0}
        if wanted != held:
            pools.append((pool.pool, tuple(sorted(wanted))))
    return Step(
        serving=tuple(
            (alias.name, serving[alias.name])
            for alias in deployment.aliases
            if serving[alias.name] != alias.serving
        ),
        pools=tuple(pools),
    )


def initial_pool(deployment: m.Deployment, pool: str, extra: Iterable[int] = ()) -> tuple[int, ...]:
    """Return what a pool holds when an alias has just moved: all it held, and all that is named."""
    held = {v for one in deployment.pools if one.pool == pool for v in one.versions}
    named = {v for alias in deployment.aliases for v in (alias.wanted, alias.serving)}
    return tuple(sorted((held | named | set(extra)) - {0}))


def _reports(model: str, fleet: Membership) -> list[m.GatewayModel | None]:
    """Return what each live gateway says of the model; None where it says nothing."""
    return [
        next((one for one in gateway.beat.gateway.models if one.model == model), None)
        for gateway in fleet.gateways()
    ]


def _all_pin(
    deployment: m.Deployment, alias: m.Alias, reports: list[m.GatewayModel | None]
) -> bool:
    """Tell whether all gateways pin what this alias wants.

    Beats list versions, not aliases: where another alias names `wanted` too, it is pinned for
    sure by this one only when `serving` is pinned no more, unless another names that as well.
    """
    others = {
        version
        for other in deployment.aliases
        if other.name != alias.name
        for version in (other.wanted, other.serving)
    }
    return all(
        one is not None
        and alias.wanted in one.pinned
        and (
            alias.wanted not in others or alias.serving in others or alias.serving not in one.pinned
        )
        for one in reports
    )
