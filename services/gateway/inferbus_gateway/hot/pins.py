"""Which version an alias means on this gateway now; pure.

In: desired state and the fleet. Out: one version per alias. A gateway pins `wanted` once enough
live workers report it READY, and then stays; until then it pins `serving`. It goes back to
`serving` only where nobody holds `wanted` any more and somebody holds `serving`.
"""

from __future__ import annotations

from collections.abc import Iterable

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership


class Pins:
    """The pinned version of each alias.

    Invariants: a pin moves only to `wanted` or back to `serving` of the newest deployment; once
    `wanted` is pinned it stays until another one is wanted, unless its last worker goes while
    `serving` still has some (a rolling restart in the middle of a swap); generations only grow.
    """

    def __init__(self) -> None:
        self._deployments: dict[str, m.Deployment] = {}
        self._pinned: dict[tuple[str, str], int] = {}

    def deployment(self, model: str) -> m.Deployment | None:
        """Return the newest deployment of a model."""
        return self._deployments.get(model)

    @property
    def models(self) -> list[str]:
        """The deployed models, by name."""
        return sorted(self._deployments)

    @property
    def generation(self) -> int:
        """The highest generation that was read."""
        return max((one.generation for one in self._deployments.values()), default=0)

    def apply(self, deployment: m.Deployment) -> bool:
        """Take a deployment; tell whether it is newer than the one that is held."""
        old = self._deployments.get(deployment.model)
        if old is not None and deployment.generation <= old.generation:
            return False
        self._deployments[deployment.model] = deployment
        return True

    def forget(self, model: str) -> None:
        """Drop a model whose deployment ended."""
        self._deployments.pop(model, None)
        for key in [key for key in self._pinned if key[0] == model]:
            del self._pinned[key]

    def refresh(self, fleet: Membership) -> bool:
        """Move pins to what the fleet can serve now; tell whether one moved."""
        before = dict(self._pinned)
        for model, deployment in self._deployments.items():
            names = {alias.name for alias in deployment.aliases}
            for alias in deployment.aliases:
                self._refresh(fleet, deployment, alias)
            for key in [key for key in self._pinned if key[0] == model and key[1] not in names]:
                del self._pinned[key]
        return before != self._pinned

    def _refresh(self, fleet: Membership, deployment: m.Deployment, alias: m.Alias) -> None:
        key = (deployment.model, alias.name)
        if self._pinned.get(key) == alias.wanted and not self._deserted(fleet, deployment, alias):
            return
        if self._ready(fleet, deployment, alias.wanted):
            self._pinned[key] = alias.wanted
        elif alias.serving:
            self._pinned[key] = alias.serving
        else:
            self._pinned.pop(key, None)

    @staticmethod
    def _deserted(fleet: Membership, deployment: m.Deployment, alias: m.Alias) -> bool:
        """Tell whether only `serving` can be served."""
        if alias.serving in {0, alias.wanted}:
            return False
        held = {
            version
            for pool in deployment.pools
            for version in (alias.wanted, alias.serving)
            if fleet.holders(pool.pool, deployment.model, version)
        }
        return held == {alias.serving}

    @staticmethod
    def _ready(fleet: Membership, deployment: m.Deployment, version: int) -> bool:
        for pool in deployment.pools:
            holders = fleet.holders(pool.pool, deployment.model, version)
            if version in pool.versions and len(holders) >= max(1, pool.min_ready):
                return True
        return False

    def pinned(self, model: str, alias: str) -> int | None:
        """Return the version that an alias means now; None where nothing serves yet."""
        return self._pinned.get((model, alias))

    def pool_of(self, model: str, version: int) -> str | None:
        """Return a pool that shall hold the version."""
        deployment = self._deployments.get(model)
        for pool in deployment.pools if deployment is not None else ():
            if version in pool.versions:
                return pool.pool
        return None

    def versions(self, model: str) -> list[int]:
        """Return the versions of a model that pools shall hold."""
        deployment = self._deployments.get(model)
        pools = deployment.pools if deployment is not None else ()
        return sorted({version for pool in pools for version in pool.versions})

    def beat(self, in_flight: Iterable[tuple[str, int]]) -> list[m.GatewayModel]:
        """Return what the beat says: generation acted on, versions pinned and in flight."""
        flying: dict[str, set[int]] = {}
        for model, version in in_flight:
            flying.setdefault(model, set()).add(version)
        out = []
        for model in sorted(set(self._deployments) | set(flying)):
            deployment = self._deployments.get(model)
            out.append(
                m.GatewayModel(
                    model=model,
                    generation=0 if deployment is None else deployment.generation,
                    pinned=sorted({v for (name, _), v in self._pinned.items() if name == model}),
                    in_flight=sorted(flying.get(model, ())),
                )
            )
        return out
