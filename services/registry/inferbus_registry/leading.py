"""What the leader does: it publishes the outbox, moves rollouts on and deletes keys of long ago."""

from __future__ import annotations

import asyncio

from inferbus_kit.health import Health
from inferbus_kit.lifecycle import cancel
from inferbus_kit.metrics import RegistryMetrics
from inferbus_registry.database import Database
from inferbus_registry.keys.service import KeyService
from inferbus_registry.keys.sweep import KeySweep
from inferbus_registry.outbox.leader import Session
from inferbus_registry.outbox.relay import Bus, Relay
from inferbus_registry.placement.fleet import Fleet
from inferbus_registry.placement.rollouts import Convergence


class Leading:
    """One leadership after another.

    Invariants: when one of the parts fails the others are ended and the failure raised, so
    that a leader always does the whole of its work.
    """

    def __init__(
        self,
        bus: Bus,
        database: Database,
        fleet: Fleet,
        keys: KeyService,
        *,
        instance: str,
        health: Health,
        metrics: RegistryMetrics,
        check_s: float,
    ) -> None:
        self._bus = bus
        self._database = database
        self._fleet = fleet
        self._keys = keys
        self._instance = instance
        self._health = health
        self._metrics = metrics
        self._check_s = check_s

    async def lead(self, session: Session) -> None:
        """Lead until something fails; what failed is raised."""
        relay = Relay(
            self._bus,
            self._database,
            session,
            instance=self._instance,
            health=self._health,
            metrics=self._metrics,
            check_s=self._check_s,
        )
        convergence = Convergence(self._database, self._fleet)
        sweep = KeySweep(self._keys)
        work = [
            asyncio.create_task(relay.run(), name="relay"),
            asyncio.create_task(convergence.run(), name="convergence"),
            asyncio.create_task(sweep.run(), name="key-sweep"),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                await cancel(task)
