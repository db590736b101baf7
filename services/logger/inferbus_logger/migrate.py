"""Brings the schema `log` to this version's shape.

In: the database's URL. Out: tables; a second run changes nothing, and two runs at once take turns.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from inferbus_kit.errors import StartupError

LOCK_KEY: Final = 0x696E6665726C6F67
"""Of the advisory lock that a migration holds: "inferlog"."""


async def migrate(postgres_url: str) -> None:
    """Upgrade to the newest version.

    Raises:
        StartupError: the database does not answer or refuses, or a newer version made the tables.
    """
    url = make_url(postgres_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade)
    except (OSError, TimeoutError, SQLAlchemyError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise StartupError(
            "the tables of the log could not be made: see that INFERBUS_POSTGRES_URL names a "
            "Postgres that runs and a user who may create schemas, then run this again"
        ) from error
    except CommandError as error:
        raise StartupError(
            f"the tables are those of a newer Inferbus ({error}): run that one, or name another "
            "database in INFERBUS_POSTGRES_URL"
        ) from error
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    # Of the session, not of a transaction: alembic ends transactions of its own.
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
    try:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS log"))
        connection.commit()
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
        connection.commit()
