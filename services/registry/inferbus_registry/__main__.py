"""`python -m inferbus_registry` runs the service; with `migrate` it makes the tables and ends."""

from __future__ import annotations

import asyncio
import sys

from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import run_process
from inferbus_kit.settings import load
from inferbus_kit.telemetry import configure_logs

_USAGE = "usage: python -m inferbus_registry [migrate]"


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


def main(arguments: list[str]) -> int:
    """Run what the arguments ask for; return the exit code."""
    if arguments == ["migrate"]:
        try:
            asyncio.run(_migrate())
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
