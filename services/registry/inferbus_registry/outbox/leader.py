"""One registry of all leads: it publishes and moves rollouts on; the others wait.

In: an advisory lock on a Postgres session of its own. Out: `lead` runs while the lock is held;
the session ends with it, so a dead leader's lock is free as soon as Postgres sees it gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import asyncpg
import structlog
from aiokafka.errors import KafkaError
from prometheus_client import Gauge
from sqlalchemy import make_url

from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Health
from inferbus_kit.lifecycle import cancel
from inferbus_registry.database import Lock

_log = structlog.get_logger("leader")

LOOP = "leader"
RETRY_S = 1.0
_SILENCE_LIMIT_S = 60.0

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Lead = Callable[[Session], Awaitable[None]]
Spawn = Callable[[str, Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Runs a task whose failure ends the process, as `Lifecycle.spawn` does."""

TROUBLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    KafkaError,
    InferbusError,
)
"""What Postgres, Kafka or the network may do to a leader: it steps down and tries again.

An internal error is what asyncpg says of a connection that was cut while a statement was given up.
"""


class Leader:
    """Runs `lead` while this process holds the lock.

    Invariants: `lead` gets the session that holds the lock, and reads through it what it
    publishes: a session that is gone reads nothing. A leader that was stalled past its session
    may still deliver what it had read; the next leader's repair outlives such a record.
    """

    def __init__(
        self,
        url: str,
        application: str,
        lead: Lead,
        *,
        spawn: Spawn,
        health: Health,
        leading: Gauge,
    ) -> None:
        self._dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._application = f"{application}-leader"[:63]
        self._lead = lead
        self._spawn = spawn
        self._health = health
        self._leading = leading
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._health.watch(LOOP, _SILENCE_LIMIT_S)
        self._task = self._spawn(LOOP, self._run())

    async def stop(self) -> None:
        await cancel(self._task)

    async def _run(self) -> None:
        while True:
            self._health.beat(LOOP)
            try:
                async with self._session() as session:
                    await self._wait_and_lead(session)
            except TROUBLE as error:
                _log.warning("leader_stepped_down", error=repr(error))
            finally:
                self._leading.set(0)
            await asyncio.sleep(RETRY_S)

    async def _wait_and_lead(self, session: Session) -> None:
        while not await session.fetchval("SELECT pg_try_advisory_lock($1)", int(Lock.LEADER)):
            self._health.beat(LOOP)
            await asyncio.sleep(RETRY_S)
        self._leading.set(1)
        _log.info("leading")
        await self._lead(session)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Session]:
        session: Session = await asyncpg.connect(
            self._dsn,
            timeout=5,
            command_timeout=10,
            server_settings={
                "application_name": self._application,
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "2",
                "tcp_keepalives_count": "3",
            },
        )
        try:
            yield session
        finally:
            # Closing politely waits for the server; a leader that stops must let go at once.
            session.terminate()
