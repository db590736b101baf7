"""One child process: its start, its log, its end.

In: a `ChildSpec`. Out: a live process whose output goes to a log file and which is gone, with all
that it started, when `stop` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    Environment = Callable[[], Mapping[str, str]]

LOG_LIMIT_BYTES = 16 * 1024 * 1024
# In the environment of every child and of all that it starts: whose they are.
MARK = "INFERBUS_CHILD_OF"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run and how to tell that it serves.

    Invariants: `argv[0]` is a program, no shell is involved; `env` is asked anew for each run;
    `ready` returns True once the child serves and may be asked again at any time.
    """

    role: str
    index: int
    argv: tuple[str, ...]
    env: Environment
    log: Path
    ready: Callable[[], Awaitable[bool]]
    ready_timeout_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 15.0
    dies_with_launcher: bool = True
    as_user: int | None = None
    on_end: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """The child's name in logs and messages, for example `worker-0`."""
        return f"{self.role}-{self.index}"


class Child:
    """One run of a spec.

    Invariants: the process leads a session of its own, so that Ctrl-C reaches the launcher alone;
    after `stop` or `ended` no process of that session is left.
    """

    def __init__(self, spec: ChildSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self._process = process
        self.pid: int = process.pid
        self.started = start_time(process.pid)

    @classmethod
    async def spawn(cls, spec: ChildSpec) -> Child:
        """Start the process; its output is appended to the spec's log."""
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        rotate(spec.log)
        # Popen runs on this thread: the death signal follows the thread that starts a child.
        dies = spec.dies_with_launcher and _LIBC is not None
        with spec.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                env={**spec.env(), MARK: str(spec.log)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()) if dies else None,
                user=spec.as_user,
                group=spec.as_user,
                extra_groups=None if spec.as_user is None else [],
            )
        return cls(spec, process)

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for the end, clear away what it started, return the exit code (-N: signal N)."""
        code = await self._process.wait()
        end_session(self.pid, self.spec.log)
        if self.spec.on_end is not None:
            self.spec.on_end()
        return code

    async def stop(self) -> int:
        """End the process: the spec's signal, then SIGKILL after its timeout."""
        self.signal(self.spec.stop_signal)
        try:
            async with asyncio.timeout(self.spec.stop_timeout_s):
                await self._process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
        return await self.ended()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process is still there."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start_time(pid: int) -> float:
    """Return when a process started (Unix seconds), 0 when it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def end_session(leader: int, log: Path) -> list[int]:
    """Kill what is left of the session that `leader` led and return the pids.

    Session ids are pids and may be reused, so a process must also carry the mark of our child.
    """
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                os.getsid(process.pid) == leader
                and process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(MARK) == str(log)
            ):
                os.kill(process.pid, signal.SIGKILL)
                left.append(process.pid)
    return left


def rotate(log: Path) -> int:
    """Keep one older log beside one that has grown over its limit; return its size, in bytes."""
    with contextlib.suppress(FileNotFoundError):
        if (size := log.stat().st_size) <= LOG_LIMIT_BYTES:
            return size
        log.replace(log.with_suffix(".old.log"))
    return 0


def last_lines(log: Path, count: int = 3, *, since: int = 0) -> list[str]:
    """Return the last non-empty lines of a log, written after byte `since`."""
    try:
        with log.open("rb") as content:
            content.seek(max(since, log.stat().st_size - 64 * 1024))
            lines = content.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line.strip() for line in lines if line.strip()][-count:]


def _die_with_parent(launcher: int) -> Callable[[], None]:
    def ask_kernel() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:  # it died before the kernel was asked
            os._exit(1)

    return ask_kernel
