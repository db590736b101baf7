"""Connections to Postgres, and which of its errors mean what.

In: a URL. Out: a connection whose half-open twin cannot hold a lock for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from inferbus_kit.errors import StartupError

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic in its stubs only

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 30.0
AUDIT_TIMEOUT_S: Final = 600.0
_SERVER_SETTINGS: Final = {
    # A sink that was stopped inside a transaction must not hold its partitions for long.
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "5s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "timezone": "UTC",
}

UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
"""The connection is gone; whether a COMMIT that was under way took hold is unknown."""

REFUSED_ROW: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.RaiseError,
    OverflowError,
    ValueError,
    TypeError,
)
"""Postgres, or the encoding of its protocol, does not take a value. Asked for after UNAVAILABLE:
an `InterfaceError` of asyncpg may be a ValueError too."""


async def connect(
    postgres_url: str, name: str, command_timeout_s: float = COMMAND_TIMEOUT_S
) -> Connection:
    """Open a connection that `pg_stat_activity` shows as `name`.

    Raises:
        any of UNAVAILABLE.
    """
    return await asyncpg.connect(
        postgres_url,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=command_timeout_s,
        server_settings={"application_name": name, **_SERVER_SETTINGS},
    )


async def close(connection: Connection | None) -> None:
    """Close within two seconds, or cut."""
    if connection is None or connection.is_closed():
        return
    try:
        await connection.close(timeout=2.0)
    except UNAVAILABLE:
        connection.terminate()


async def open_for_command(postgres_url: str, name: str) -> Connection:
    """Open a connection for one command of an operator.

    Raises:
        StartupError: one sentence on what to do.
    """
    try:
        connection = await connect(postgres_url, name, AUDIT_TIMEOUT_S)
    except (*UNAVAILABLE, asyncpg.PostgresError) as error:
        raise StartupError(
            "Postgres does not answer: see that it runs and that INFERBUS_POSTGRES_URL is right"
        ) from error
    if await connection.fetchval("SELECT to_regclass('log.sink_offsets')") is None:
        await close(connection)
        raise StartupError("the log has no tables yet: run `python -m inferbus_logger migrate`")
    return connection
