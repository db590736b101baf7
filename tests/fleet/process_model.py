"""What the simulated processes share: records, faults to allow, classes to try, a life.

In: the state topics. Out: records, under names that end with the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferbus_gateway.hot.pending import Pending
from inferbus_gateway.hot.pins import Pins
from inferbus_registry.placement.convergence import converge
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership
from inferbus_worker.control import lease as leases
from inferbus_worker.control.holding import Key, versions_to_hold
from tests.fleet.kafka_model import Tail

if TYPE_CHECKING:
    from tests.fleet.whole_fleet import World

POOL, MODEL, ALIAS = "default", "iris", "champion"
BEATS, DEPLOYMENTS = "beats", "deployments"
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Work:
    """A request as a frame carries it."""

    id: bytes
    version: int
    attempt: int
    ttl_s: float
    reply: int


@dataclass(frozen=True, slots=True)
class Said:
    """A prediction record."""

    id: bytes
    attempt: int
    outcome: int
    version: int
    by: str


@dataclass(frozen=True, slots=True)
class Classes:
    """What is tried; tests put broken ones here."""

    membership: type[Membership] = Membership
    lease: type[leases.Lease] = leases.Lease
    pending: type[Pending] = Pending
    pins: type[Pins] = Pins
    adoption: bool = True
    hold: Callable[..., dict[Key, int]] = versions_to_hold
    converge: Callable[[m.Deployment, Membership], m.Deployment | None] = converge


@dataclass(frozen=True, slots=True)
class Faults:
    """What may happen; rates are per tick.

    `drains`: rolling restarts; `swaps`: aliases move; `slow_frames`: share of first attempts whose
    frame hangs for `slow_s`; `spare_the_last`: only workers beside another one are killed, and they
    stay away for long.
    """

    drains: float = 0.0
    kills: float = 0.0
    pauses: float = 0.0
    away: float = 0.0
    loss: float = 0.0
    gateway_faults: bool = False
    swaps: float = 0.02
    slow_frames: float = 0.0
    slow_s: float = 2.5
    engine_s: tuple[float, ...] = (0.005, 0.02, 0.1, 0.1, 0.4, 2.5)
    spare_the_last: bool = False
    deadline_s: float = DEADLINE_S

    @property
    def harmless(self) -> bool:
        """Whether no request may end in anything but OK."""
        if self.away or self.loss or self.gateway_faults or self.pauses:
            return False
        return self.spare_the_last or not self.kills


CALM = Faults(drains=0.02, swaps=0.02, slow_frames=0.01, deadline_s=24.0)
PROMPT = Faults(
    drains=0.03,
    swaps=0.0,
    slow_frames=0.15,
    slow_s=3.0,
    engine_s=(0.02, 0.2),
    deadline_s=10.0,
)
LONELY = Faults(kills=0.02, swaps=0.0, engine_s=(0.02, 0.2), spare_the_last=True, deadline_s=11.0)
DEATHS = Faults(drains=0.005, kills=0.006, pauses=0.01, slow_frames=0.01)
EVERYTHING = Faults(
    drains=0.005, kills=0.005, pauses=0.008, away=0.002, loss=0.03, gateway_faults=True
)
HURRIED = Faults(
    drains=0.005,
    kills=0.006,
    pauses=0.01,
    away=0.006,
    loss=0.03,
    gateway_faults=True,
    deadline_s=4.0,
)


class Process:
    """One life of a process: it ticks unless it is paused or dead."""

    def __init__(self, world: World, instance: str) -> None:
        self.world, self.broker, self.rng = world, world.broker, world.rng
        self.instance, self.life = instance, world.rng.getrandbits(64)
        self.fleet = world.classes.membership()
        self.beats = Tail(world.broker, BEATS)
        self.news = Tail(world.broker, DEPLOYMENTS)
        self.deployments: dict[str, m.Deployment] = {}
        self.name = f"{instance}/{self.life}"
        self.alive = True
        self.paused_until_s = 0.0
        self.next_beat_s = 0.0

    def tick(self) -> None:
        """Do what is due."""

    def follow(self) -> None:
        """Read the state topics."""
        for _, _, _, said in self.news.read():
            have = self.deployments.get(said.model)
            if have is None or said.generation > have.generation:
                self.deployments[said.model] = said
                self.deployed(said)
        for offset, append_s, key, beat in self.beats.read():
            self.fleet.apply(key, beat, offset=offset, append_ms=int(append_s * 1000))
            self.heard(beat)

    def deployed(self, said: m.Deployment) -> None:
        """Act on a newer deployment."""

    def heard(self, beat: m.Heartbeat | None) -> None:
        """Act on a beat."""

    def write(self, log: str, key: str, value: Any, answer: Callable[[int | None], None]) -> None:
        """Produce; a dead process hears no answer, a paused one when it goes on."""

        def answered(offset: int | None) -> None:
            if not self.alive:
                return
            if self.broker.now_s < self.paused_until_s:
                self.broker.at(self.paused_until_s, lambda: answered(offset))
            else:
                answer(offset)

        self.broker.produce(self.name, log, key, value, answered)

    def beat_due(self) -> bool:
        if self.broker.now_s < self.next_beat_s:
            return False
        self.next_beat_s = self.broker.now_s + 1.0
        return True


def nobody_waits(_offset: int | None) -> None:
    """Take an answer that nobody waits for."""
