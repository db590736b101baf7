"""Brings the tables of schema `registry` to the version of this code; safe to run at any time."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text

from inferbus_kit.errors import StartupError
from inferbus_registry import errors, tables
from inferbus_registry.database import Database


def config() -> Config:
    """Return alembic's configuration, made in memory: the scripts lie beside this module."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return made


def head() -> str | None:
    """Return the revision that this code needs."""
    return ScriptDirectory.from_config(config()).get_current_head()


def current(connection: Connection) -> str | None:
    """Return the revision that the database has; None before the first."""
    options = {"version_table_schema": tables.SCHEMA}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def _upgrade(connection: Connection) -> None:
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {tables.SCHEMA}"))
    with_connection = config()
    with_connection.attributes["connection"] = connection
    command.upgrade(with_connection, "head")


async def migrate(database: Database) -> str | None:
    """Upgrade to the newest revision and return it.

    Raises:
        StartupError: Postgres does not answer, or a newer version made the tables.
    """
    try:
        # The lock of all writes: two that migrate at once run one after another.
        async with database.write(wait_s=60) as connection:
            await connection.run_sync(_upgrade)
            return await connection.run_sync(current)
    except errors.DatabaseUnavailableError as error:
        raise StartupError(
            "Postgres does not answer; check INFERBUS_POSTGRES_URL and that it runs"
        ) from error
    except CommandError as error:
        raise StartupError(
            f"the tables are those of a newer Inferbus ({error}): run that one, or name another "
            "database in INFERBUS_POSTGRES_URL"
        ) from error
