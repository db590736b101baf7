"""Postgres as the registry uses it: reads, and writes that come one after another.

In: a URL. Out: connections inside a transaction. What Postgres or the network says in trouble
becomes one of three errors of our own; everything else is a bug and passes through.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from enum import IntEnum

import structlog
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from inferbus_registry import errors

_log = structlog.get_logger("database")

_MISSING_TABLE = {"42P01", "3F000", "42703"}
_BUSY = {"55P03", "40P01"}
_GONE = ("08", "53", "57")


class Lock(IntEnum):
    """Advisory locks of the registry, held on its own database."""

    WRITE = 0x1F0B_0001
    LEADER = 0x1F0B_0002


class Database:
    """A small pool of connections.

    Invariants: every write transaction first takes one advisory transaction lock, so writes run
    one after another: ids of the outbox and generations commit in the order in which they were
    drawn, and a reader that has seen an id has seen every lower one.
    """

    def __init__(self, url: str, application: str) -> None:
        settings = {
            "application_name": application[:63],
            "idle_in_transaction_session_timeout": "30s",
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
        }
        self.engine = create_async_engine(
            make_url(url).set(drivername="postgresql+asyncpg"),
            pool_size=4,
            max_overflow=4,
            pool_timeout=5,
            pool_pre_ping=True,
            connect_args={"timeout": 5, "command_timeout": 15, "server_settings": settings},
        )

    async def stop(self) -> None:
        await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection whose statements see one snapshot.

        Raises:
            DatabaseUnavailableError, DatabaseNotMigratedError: see there.
        """
        with _translated():
            async with self.engine.connect() as connection:
                await connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection

    @contextlib.asynccontextmanager
    async def write(self, wait_s: int = 5) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in the one write transaction that runs at this time.

        Args:
            wait_s: how long to wait for the transaction before ours.

        Raises:
            DatabaseUnavailableError, DatabaseNotMigratedError, BusyError: see there.
        """
        with _translated():
            async with self.engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL lock_timeout = '{wait_s:d}s'"))
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": int(Lock.WRITE)}
                )
                yield connection


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, TimeoutError, PoolTimeoutError) as error:
        _log.warning("database_unavailable", error=repr(error))
        raise errors.DatabaseUnavailableError from error
    except DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", "") or "")
        if isinstance(error, ProgrammingError) and state in _MISSING_TABLE:
            raise errors.DatabaseNotMigratedError from error
        if state in _BUSY:
            raise errors.BusyError from error
        if error.connection_invalidated or not state or state.startswith(_GONE):
            _log.warning("database_unavailable", error=repr(error.orig))
            raise errors.DatabaseUnavailableError from error
        raise
