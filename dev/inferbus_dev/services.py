"""The services of Inferbus as child processes: which there are, what each is told.

In: the addresses of the servers and ports. Out: specs whose only configuration is environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inferbus_dev import loopback, process
from inferbus_dev.errors import DISK_FULL, LauncherError
from inferbus_dev.ports import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Mapping

POOL = "default"
# What `prepare` of a service says where its tables have a revision that it does not know.
NEWER = "those of a newer Inferbus"
# And where the first key is there and opens nothing any more.
DEAD_KEY = "INFERBUS_ADMIN_KEY was revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One kind of service. `prepare`: what its module runs before it serves; it owns tables."""

    name: str
    prepare: tuple[str, ...] = ()
    serves_http: bool = False
    serves_grpc: bool = False
    stop_timeout_s: float = 15.0

    @property
    def module(self) -> str:
        """The package that Python runs."""
        return f"inferbus_{self.name}"


ROLES = {
    role.name: role
    for role in (
        Role(name="registry", prepare=("migrate", "admin-key"), serves_http=True),
        Role(name="logger", prepare=("migrate",)),
        Role(name="worker", stop_timeout_s=30.0),
        Role(name="gateway", serves_http=True, serves_grpc=True, stop_timeout_s=30.0),
    )
}
# Requests stop coming first, what must still be answered and logged comes after.
STOP_ORDER = ("gateway", "worker", "logger", "registry", "kafka", "postgres", "valkey")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What every service of one stack is told; `admin_key` only the registry's preparation."""

    kafka: str
    postgres_url: str
    valkey_url: str
    objects: Path
    registry_url: str
    admin_key: str
    extra: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """Return the launcher's own environment and the addresses over it."""
        # Callers on this machine need no key here, unless the user says otherwise.
        return {
            "INFERBUS_AUTH": "local",
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "INFERBUS_KAFKA_BOOTSTRAP": self.kafka,
            "INFERBUS_POSTGRES_URL": self.postgres_url,
            "INFERBUS_VALKEY_URL": self.valkey_url,
            "INFERBUS_OBJECT_STORE_URL": self.objects.as_uri(),
            "INFERBUS_REGISTRY_URL": self.registry_url,
            "INFERBUS_POOL": POOL,
            **self.extra,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The ports and folder of one service process; None is the port of what it does not serve."""

    role: Role
    index: int
    metrics_port: int
    http_port: int | None
    grpc_port: int | None
    private: Path
    log: Path

    @property
    def metrics_url(self) -> str:
        """Where /livez, /readyz and /metrics are."""
        return f"http://{LOOPBACK}:{self.metrics_port}"

    @property
    def grpc(self) -> str:
        """Where the service answers gRPC, as host:port."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """Where the service answers its own requests."""
        return f"http://{LOOPBACK}:{self.http_port}"


def child(seat: Seat, place: Place) -> process.ChildSpec:
    """Return the spec of one service process."""
    name = f"{seat.role.name}-{seat.index}"

    def environment() -> Mapping[str, str]:
        seat.private.mkdir(parents=True, exist_ok=True)
        # A new name for each run: who follows a dead one must not be taken for it.
        told = {
            **place.environment(),
            "INFERBUS_INSTANCE": f"{name}-{secrets.token_hex(2)}",
            "INFERBUS_STATE_DIR": str(seat.private),
            "INFERBUS_HTTP_HOST": LOOPBACK,
            "INFERBUS_METRICS_PORT": str(seat.metrics_port),
        }
        if seat.http_port is not None:
            told["INFERBUS_HTTP_PORT"] = str(seat.http_port)
        if seat.grpc_port is not None:
            told["INFERBUS_GRPC_PORT"] = str(seat.grpc_port)
        return told

    async def ready() -> bool:
        answer = await loopback.get(seat.metrics_port, "/readyz")
        return answer is not None and answer.status == loopback.OK

    return process.ChildSpec(
        role=seat.role.name,
        index=seat.index,
        argv=(sys.executable, "-m", seat.role.module),
        env=environment,
        log=seat.log,
        ready=ready,
        stop_timeout_s=seat.role.stop_timeout_s,
    )


class FirstKeyError(LauncherError):
    """The key with which the registry is to begin was ended by somebody."""


def preparation(role: Role, place: Place) -> str:
    """Return a digest of all that `prepare` depends on: the migrations and the first key."""
    found = importlib.util.find_spec(role.module)
    assert found is not None  # noqa: S101 -- it is one of ours
    assert found.origin is not None  # noqa: S101
    first_key = place.admin_key if "admin-key" in role.prepare else ""
    digest = hashlib.sha256(repr((role.prepare, first_key)).encode())
    for path in sorted((Path(found.origin).parent / "migrations").rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


async def prepare(role: Role, place: Place, log: Path) -> None:
    """Bring the tables that a role owns to its version, with what must stand in them.

    Raises:
        FirstKeyError: the first key is there and was ended.
        LauncherError: that fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    since = process.rotate(log)
    told = {
        **place.environment(),
        "INFERBUS_INSTANCE": f"{role.name}-migrate",
        "INFERBUS_STATE_DIR": str(log.parent.parent / "run" / f"{role.name}-migrate"),
        "INFERBUS_ADMIN_KEY": place.admin_key,
    }
    with log.open("ab") as out:
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-m", role.module, *role.prepare, env=told, stdout=out, stderr=out
        )
    try:
        code = await run.wait()
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    if code != 0:
        dead = any(DEAD_KEY in line for line in process.last_lines(log, 20, since=since))
        why = why_not_prepared(role, log, since=since)
        raise FirstKeyError(why) if dead else LauncherError(why)


def why_not_prepared(role: Role, log: Path, *, since: int = 0) -> str:
    """Return one sentence on a preparation that failed, from what it said after byte `since`."""
    lines = process.last_lines(log, 20, since=since)
    if any("No space left on device" in line for line in lines):
        return DISK_FULL
    if any(NEWER in line for line in lines):
        return (
            f"The tables of {role.name} are {NEWER}: run that one, or move the state folder away "
            "or delete it (its models and logged predictions go with it), or name another folder "
            "with --state-dir (where INFERBUS_POSTGRES_URL is set, another database)."
        )
    said = f", it last said: {lines[-1][:300]}" if lines else ""
    return (
        f"The tables of {role.name} could not be made (its output stands in "
        f"{log.parent.name}/{log.name}{said})."
    )
