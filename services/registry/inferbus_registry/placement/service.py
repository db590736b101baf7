"""How far a rollout is: what is wanted, who holds it, who pins it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inferbus_registry import errors
from inferbus_registry.database import Database
from inferbus_registry.placement import desired
from inferbus_registry.placement.fleet import Fleet
from inferbus_schemas import messages as m
from inferbus_schemas import names
from inferbus_schemas.membership import Membership

_READINESS: dict[int, Literal["loading", "ready", "failed"]] = {
    m.READINESS_READY: "ready",
    m.READINESS_FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class AliasState:
    """An alias; it rolls until all live gateways pin what it wants. `serving` 0: nothing yet."""

    name: str
    wanted: int
    serving: int
    state: Literal["rolling", "serving"]


@dataclass(frozen=True, slots=True)
class PoolState:
    """What each worker of a pool holds."""

    pool: str
    versions: list[int]
    min_ready: int


@dataclass(frozen=True, slots=True)
class Holding:
    """A version on a worker."""

    version: int
    readiness: Literal["loading", "ready", "failed"]
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A live worker and what it holds of the model. `inbox` is None while it joins."""

    instance: str
    pool: str
    inbox: int | None
    versions: list[Holding]


@dataclass(frozen=True, slots=True)
class GatewayState:
    """A live gateway: the generation that it acts on and the versions that it uses."""

    instance: str
    generation: int
    pinned: list[int]
    in_flight: list[int]


@dataclass(frozen=True, slots=True)
class Rollout:
    """The whole picture of one model. Where `fleet_known` is false the fleet's lists are empty."""

    model: str
    generation: int
    aliases: list[AliasState]
    pools: list[PoolState]
    fleet_known: bool
    workers: list[WorkerState]
    gateways: list[GatewayState]


class RolloutService:
    """Shows desired beside reported state."""

    def __init__(self, database: Database, fleet: Fleet) -> None:
        self._database = database
        self._fleet = fleet

    async def rollout(self, model: str) -> Rollout:
        """Return how far a model's rollout is.

        Raises:
            ModelNotFoundError: no alias of such a model was ever set, or there is no such model.
        """
        try:
            names.check_model(model)
        except names.InvalidNameError as error:
            raise errors.InvalidRequestError(str(error)) from error
        async with self._database.read() as tx:
            state = await desired.deployment(tx, model)
        if not state.aliases:
            raise errors.ModelNotFoundError
        fleet = self._fleet.membership
        return Rollout(
            model=model,
            generation=state.generation,
            aliases=[_alias(alias) for alias in state.aliases],
            pools=[
                PoolState(pool.pool, list(pool.versions), pool.min_ready) for pool in state.pools
            ],
            fleet_known=fleet is not None,
            workers=[] if fleet is None else _workers(fleet, state),
            gateways=[] if fleet is None else _gateways(fleet, model),
        )


def _alias(alias: m.Alias) -> AliasState:
    serves = alias.wanted == alias.serving
    return AliasState(alias.name, alias.wanted, alias.serving, "serving" if serves else "rolling")


def _workers(fleet: Membership, state: m.Deployment) -> list[WorkerState]:
    found: list[WorkerState] = []
    for pool in state.pools:
        beats = [(lease.inbox, lease.beat) for lease in fleet.workers(pool.pool)]
        found += [_worker(beat, inbox, state.model) for inbox, beat in beats]
        joining = [one.beat for one in fleet.joining() if one.beat.worker.pool == pool.pool]
        found += [_worker(beat, None, state.model) for beat in joining]
    return found


def _worker(beat: m.Heartbeat, inbox: int | None, model: str) -> WorkerState:
    holdings = [
        Holding(
            version=one.version,
            readiness=_READINESS.get(one.readiness, "loading"),
            generation=one.generation,
            reason=one.reason,
        )
        for one in beat.worker.residents
        if one.model == model
    ]
    return WorkerState(beat.instance, beat.worker.pool, inbox, holdings)


def _gateways(fleet: Membership, model: str) -> list[GatewayState]:
    found: list[GatewayState] = []
    for member in fleet.gateways():
        used = next((one for one in member.beat.gateway.models if one.model == model), None)
        found.append(
            GatewayState(
                instance=member.beat.instance,
                generation=0 if used is None else used.generation,
                pinned=[] if used is None else sorted(used.pinned),
                in_flight=[] if used is None else sorted(used.in_flight),
            )
        )
    return found
