"""The tables that migrations make are those that the code believes in; twice is once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from os import environ
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from inferbus_dev.services import NEWER
from inferbus_kit.errors import StartupError
from inferbus_registry import errors, tables
from inferbus_registry.database import Database
from inferbus_registry.migrate import head, migrate
from inferbus_registry.models.service import ModelService, Placement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection


@pytest.fixture
async def database(postgres_database: str) -> AsyncIterator[Database]:
    made = Database(postgres_database, "test")
    yield made
    await made.stop()


def differences(connection: Connection) -> list[Any]:
    options = {
        "version_table_schema": tables.SCHEMA,
        "include_schemas": True,
        "compare_server_default": True,
        "include_name": lambda name, kind, _: kind != "schema" or name == tables.SCHEMA,
    }
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, tables.metadata))


async def test_migrations_make_the_tables_of_the_code(database: Database) -> None:
    assert await migrate(database) == head()
    async with database.read() as tx:
        assert await tx.run_sync(differences) == []


async def test_migrating_at_once_and_again_is_harmless(
    database: Database, postgres_database: str
) -> None:
    others = [Database(postgres_database, "test") for _ in range(3)]
    try:
        done = await asyncio.gather(*(migrate(one) for one in (database, *others)))
        assert set(done) == {head()}
        assert await migrate(database) == head()
    finally:
        for one in others:
            await one.stop()


async def test_tables_of_a_newer_version_are_one_sentence(database: Database) -> None:
    await migrate(database)
    async with database.write() as tx:
        await tx.execute(text("UPDATE registry.alembic_version SET version_num = '9999'"))
    with pytest.raises(StartupError, match=rf"{NEWER} \(.*9999'\): run that one, or name") as said:
        await migrate(database)
    assert "\n" not in str(said.value)


async def test_tables_that_are_missing_are_one_sentence(database: Database) -> None:
    with pytest.raises(errors.DatabaseNotMigratedError, match="inferbus_registry migrate"):
        await ModelService(database, Placement("default", 1)).page("", 10)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE registry.events SET who = 'x'",
        "DELETE FROM registry.events",
        "TRUNCATE registry.events",
    ],
)
async def test_the_history_cannot_be_altered(
    database: Database, postgres_database: str, statement: str
) -> None:
    await migrate(database)
    connection = await asyncpg.connect(postgres_database)
    try:
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["migrate"], 1, "Postgres does not answer"),
        (["nonsense"], 2, "usage"),
    ],
)
def test_the_command_fails_in_one_sentence(arguments: list[str], code: int, said: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "inferbus_registry", *arguments],
        env={**environ, "INFERBUS_POSTGRES_URL": "postgresql://x@127.0.0.1:1/x"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == code
    assert said in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
