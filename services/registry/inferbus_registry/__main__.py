"""`python -m inferbus_registry` runs the service.

With `migrate` it makes its tables and ends; with `admin-key` it makes the first key, or a new one
where it was lost, and ends; with `topics` it makes the catalogue's topics and ends. One call may
name several.
"""

from __future__ import annotations

import asyncio
import sys

from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import run_process
from inferbus_kit.settings import load
from inferbus_telemetry.spans import configure_logs

_USAGE = "usage: python -m inferbus_registry [migrate] [admin-key] [topics]"


async def _migrate() -> None:
    from inferbus_registry.database import Database  # noqa: PLC0415 -- the service has no use for it
    from inferbus_registry.migrate import migrate  # noqa: PLC0415
    from inferbus_registry.settings import RegistrySettings  # noqa: PLC0415

    settings = load(RegistrySettings)
    configure_logs(settings.log_level, role="registry-migrate", instance=settings.instance)
    database = Database(settings.postgres_url, "registry-migrate")
    try:
        revision = await migrate(database)
    finally:
        await database.stop()
    sys.stdout.write(f"registry tables are at revision {revision}\n")


async def _admin_key() -> None:
    from inferbus_registry.database import Database  # noqa: PLC0415 -- the service has no use for it
    from inferbus_registry.keys.service import KeyService  # noqa: PLC0415
    from inferbus_registry.settings import RegistrySettings  # noqa: PLC0415

    settings = load(RegistrySettings)
    given = settings.admin_key.get_secret_value()
    database = Database(settings.postgres_url, "registry-admin-key")
    try:
        key = await KeyService(database, settings.operator_tenant).ensure_admin(given)
    finally:
        await database.stop()
    sys.stdout.write("the admin key is there\n" if given else f"{key}\n")


async def _topics() -> None:
    from inferbus_kit.topics import create_topics  # noqa: PLC0415 -- the service has no use for it
    from inferbus_registry.settings import RegistrySettings  # noqa: PLC0415
    from inferbus_schemas import topics  # noqa: PLC0415

    settings = load(RegistrySettings)
    profile: topics.Profile = "production" if "," in settings.kafka_bootstrap else "one-machine"
    wanted = topics.to_create((settings.pool,), profile)
    await create_topics(
        settings.kafka_bootstrap,
        [(one.name, one.partitions, one.replication, one.config) for one in wanted],
    )
    sys.stdout.write(f"{len(wanted)} topics are there\n")


_ONE_SHOTS = {"migrate": _migrate, "admin-key": _admin_key, "topics": _topics}


def main(arguments: list[str]) -> int:
    """Run what the arguments ask for; return the exit code."""
    if arguments and set(arguments) <= set(_ONE_SHOTS):
        try:
            for word in arguments:
                asyncio.run(_ONE_SHOTS[word]())
        except InferbusError as error:
            sys.stderr.write(f"inferbus registry: {error}\n")
            return 1
        return 0
    if arguments:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    from inferbus_registry.wiring import build  # noqa: PLC0415 -- migrate needs none of it

    run_process("registry", build)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
