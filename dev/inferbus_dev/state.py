"""The state folder: who owns it, which format it has, what runs from it.

In: a folder. Out: a lock that one launcher holds, `stack.json` for tools and for the next start,
and the end of what a killed launcher left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

import psutil

from inferbus_dev import process
from inferbus_dev.errors import LauncherError
from inferbus_schemas import access

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FORMAT = "1"
# Clock adjustments move the start times that the kernel reports; a pid does not come back so soon.
START_TOLERANCE_S = 1.0
SERVERS = ("kafka", "postgres", "valkey")
_END_SERVICES_S = 10.0
_END_SERVERS_S = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """One process as `stack.json` records it. Pid and start time together name it for good.

    `metrics` is the base URL of its /livez, /readyz and /metrics, empty where it has none.
    """

    role: str
    index: int
    pid: int
    started: float
    metrics: str = ""


class StateDir:
    """The folder `.inferbus/` of one stack.

    Invariants: between `open` and `close` no other launcher has this folder; `stack.json` is whole
    at every moment, and absent after a clean stop.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> StateDir:
        """Take the folder for this process; raises when another launcher has it."""
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise LauncherError(
                f"Inferbus already runs from the folder {path.name}: stop that `make up` with "
                "Ctrl-C first, or give this one a folder of its own with --state-dir and other "
                "ports with --port-base."
            ) from error
        try:
            _check_format(path)
        except LauncherError:
            lock.close()
            raise
        return cls(path, lock)

    @property
    def logs(self) -> Path:
        """The folder of each process's output."""
        return self.path / "logs"

    def log(self, name: str) -> Path:
        """Return the log file of one process."""
        return self.logs / f"{name}.log"

    @property
    def objects(self) -> Path:
        """The folder that serves as object store."""
        return self.path / "objects"

    def private(self, name: str) -> Path:
        """Return the folder that one service process has for itself."""
        return self.path / "run" / name

    def admin_key(self) -> str:
        """Return the key with which the registry of this folder begins; made at the first call."""
        place = self.path / "admin-key"
        if not place.exists():
            fresh = self.path / "admin-key.new"
            write_private(fresh, access.make_key(os.urandom(access.KEY_ENTROPY_BYTES)))
            fresh.replace(place)
        return place.read_text("utf-8").strip()

    def forget_admin_key(self) -> None:
        """Have the next call of `admin_key` make another one."""
        (self.path / "admin-key").unlink(missing_ok=True)

    def write(self, addresses: Mapping[str, Any], running: Iterable[Running]) -> None:
        """Put a new `stack.json` in place of the old one."""
        processes = [
            {name: value for name, value in asdict(one).items() if value != ""} for one in running
        ]
        fresh = self.path / "stack.json.new"
        write_private(fresh, json.dumps({**addresses, "processes": processes}, indent=2))
        fresh.replace(self.path / "stack.json")

    def end_leftovers(self) -> list[Running]:
        """End every process of a launcher that was killed, and return those that still lived."""
        recorded = [one for one in _recorded(self.path) if one.role != "launcher"]
        ended: list[Running] = []
        services = [one for one in recorded if one.role not in SERVERS]
        servers = [one for one in recorded if one.role in SERVERS]
        for group, patience_s in ((services, _END_SERVICES_S), (servers, _END_SERVERS_S)):
            ended += _end(group, patience_s)
        for one in recorded:
            process.end_session(one.pid, self.log(f"{one.role}-{one.index}"))
        self.clear()
        return ended

    def clear(self) -> None:
        """Remove `stack.json`: nothing runs."""
        (self.path / "stack.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Let another launcher have the folder."""
        self._lock.close()


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text + "\n")


def _check_format(path: Path) -> None:
    marker = path / "format"
    if marker.exists():
        found = marker.read_text("utf-8").strip()
    elif any((path / name).exists() for name in (*SERVERS, "stack.json")):
        found = "unknown"
    else:
        marker.write_text(FORMAT + "\n", "utf-8")
        return
    if found != FORMAT:
        raise LauncherError(
            f"The state folder {path.name} has format {found} and this Inferbus needs {FORMAT}: "
            "move it away or delete it (its models and logged predictions go with it), or name "
            "another folder with --state-dir."
        )


def _recorded(path: Path) -> list[Running]:
    try:
        stack = json.loads((path / "stack.json").read_text("utf-8"))
        return [
            Running(entry["role"], entry["index"], entry["pid"], entry["started"])
            for entry in stack["processes"]
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def _end(group: list[Running], patience_s: float) -> list[Running]:
    alive = [(one, found) for one in group if (found := _find(one)) is not None]
    for one, found in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Postgres waits for its clients on SIGTERM; SIGINT is its fast stop.
            found.send_signal(signal.SIGINT if one.role == "postgres" else signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    for _, found in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                found.wait(timeout=max(0.0, deadline - time.monotonic()))
            except psutil.TimeoutExpired:
                found.kill()
                found.wait(timeout=_END_SERVICES_S)
    return [one for one, _ in alive]


def _find(one: Running) -> psutil.Process | None:
    try:
        found = psutil.Process(one.pid)
        if abs(found.create_time() - one.started) > START_TOLERANCE_S:
            return None
    except psutil.NoSuchProcess:
        return None
    return None if found.status() == psutil.STATUS_ZOMBIE else found
