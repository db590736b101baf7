"""Small real processes for tests of the launcher, and a look at what runs."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import psutil

from inferbus_dev.process import ChildSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


def spec(
    folder: Path, program: str, *, ready: Callable[[], Awaitable[bool]], ready_timeout_s: float = 5
) -> ChildSpec:
    """Return the spec of a Python program that sees its folder as the working directory."""
    return ChildSpec(
        role="program",
        index=0,
        argv=(sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{program}"),
        env=lambda: os.environ,
        log=folder / "logs" / "program-0.log",
        ready=ready,
        ready_timeout_s=ready_timeout_s,
        stop_timeout_s=0.5,
    )


def appears(path: Path) -> Callable[[], Awaitable[bool]]:
    """Return a probe that waits for a file."""

    async def probe() -> bool:
        return os.path.exists(path)  # noqa: ASYNC240, PTH110 -- a local stat

    return probe


def mentioning(text: str) -> list[psutil.Process]:
    """Return live processes that name `text` in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(text in part for part in process.info["cmdline"] or ())
    ]


def gone(pid: int, *, within_s: float = 5.0) -> bool:
    """Say whether a process ends in time; a zombie has ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False
