"""Whether the registry can work: its database answers and has the tables of this code."""

from __future__ import annotations

import asyncio

import structlog
from prometheus_client import Gauge

from inferbus_kit.health import Health
from inferbus_kit.lifecycle import cancel
from inferbus_registry import errors, migrate
from inferbus_registry.database import Database
from inferbus_registry.versions import repository

_log = structlog.get_logger("readiness")

LOOP = "readiness"
_EVERY_S = 2.0
_SILENCE_LIMIT_S = 60.0
_PART = "postgres"


class Readiness:
    """Asks the database and tells `Health`; a database that is away never ends the process."""

    def __init__(self, database: Database, health: Health, versions: Gauge) -> None:
        self._database = database
        self._health = health
        self._versions = versions
        self._head = migrate.head()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._health.watch(LOOP, _SILENCE_LIMIT_S)
        await self._look()
        self._task = asyncio.create_task(self._run(), name=LOOP)

    async def stop(self) -> None:
        await cancel(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        self._health.beat(LOOP)
        try:
            async with self._database.read() as tx:
                if await tx.run_sync(migrate.current) != self._head:
                    raise errors.DatabaseNotMigratedError
                self._versions.set(await repository.count(tx))
        except errors.RegistryError as error:
            self._health.not_ready(_PART, str(error))
        else:
            self._health.ready(_PART)
