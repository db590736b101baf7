"""What a model's desired state becomes as the fleet follows it; pure.

In: the newest deployment and who is there. Out: the next deployment, where it differs.
"""

from __future__ import annotations

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership


def converge(deployment: m.Deployment, membership: Membership) -> m.Deployment | None:
    """Return the next desired state, without a generation, or None where nothing changes.

    An alias serves what it wants once every live gateway, and there is one at least, acts on this
    generation and pins that version, and no live worker is still to load it: until then gateways
    may fall back, so that a worker that leaves in the middle of a swap takes nothing with it. Each
    pool holds what aliases want and serve, and what some
    live gateway still pins or has in flight; it gives a version up only when every live gateway
    acts on this generation, and while none lives, nothing.
    """
    gateways = [member.beat.gateway for member in membership.gateways()]
    said = [_about(gateway, deployment.model) for gateway in gateways]
    follow = bool(said) and all(one.generation >= deployment.generation for one in said)
    aliases = [
        m.Alias(
            name=alias.name,
            wanted=alias.wanted,
            serving=alias.wanted
            if follow
            and _pinned(deployment, alias, said)
            and _loaded(deployment, alias.wanted, membership)
            else alias.serving,
        )
        for alias in deployment.aliases
    ]
    named = {version for alias in aliases for version in (alias.wanted, alias.serving) if version}
    used = {version for one in said for version in (*one.pinned, *one.in_flight)}
    pools = [
        m.PoolVersions(
            pool=pool.pool,
            versions=sorted(named | used | (set() if follow else set(pool.versions))),
            min_ready=pool.min_ready,
        )
        for pool in deployment.pools
    ]
    if aliases == list(deployment.aliases) and all(
        new.versions == sorted(old.versions)
        for new, old in zip(pools, deployment.pools, strict=True)
    ):
        return None
    return m.Deployment(model=deployment.model, aliases=aliases, pools=pools)


def _about(gateway: m.GatewayBeat, model: str) -> m.GatewayModel:
    """Return what a gateway says of the model; one that says nothing acts on generation 0."""
    for said in gateway.models:
        if said.model == model:
            return said
    return m.GatewayModel(model=model)


def _loaded(deployment: m.Deployment, version: int, membership: Membership) -> bool:
    """Tell whether each live worker that shall hold the version has loaded it or given it up."""
    done = {m.READINESS_READY, m.READINESS_FAILED}
    return all(
        any(
            one.model == deployment.model and one.version == version and one.readiness in done
            for one in worker.beat.worker.residents
        )
        for pool in deployment.pools
        for worker in membership.workers(pool.pool)
    )


def _pinned(deployment: m.Deployment, alias: m.Alias, said: list[m.GatewayModel]) -> bool:
    """Tell whether all gateways pin what the alias wants.

    Beats list versions, not aliases. Where another alias names the wanted version too, this one
    still means its old version as long as that is pinned and no other alias accounts for it.
    """
    others = {
        version
        for other in deployment.aliases
        if other.name != alias.name
        for version in (other.wanted, other.serving)
    }
    shared = alias.wanted in others and alias.serving not in others
    return all(
        alias.wanted in one.pinned and not (shared and alias.serving in one.pinned) for one in said
    )
