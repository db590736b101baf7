"""Clients that others wrote, each with packages of its own in an environment of its own.

In: the name of a lock in `tests/conformance/clients`. Out: its Python, made when first asked for;
our own packages are not in it. Two generated packages `inference` cannot share a process, and what
the clients need clashes with what we need.
"""

from __future__ import annotations

import asyncio
import ctypes.util
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "tests" / "conformance" / "clients"
PROGRAMS = ROOT / "tests" / "conformance" / "programs"
_HOME = ROOT / ".venv" / "clients"


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str


@functools.cache
def environment(name: str) -> Path:
    """Return the folder of a client's environment, with exactly what its lock says in it."""
    lock = LOCKS / f"{name}.txt"
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    folder, stamp = _HOME / name, _HOME / name / "inferbus-stamp"
    _HOME.mkdir(parents=True, exist_ok=True)
    with (_HOME / f"{name}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            _uv("venv", "--python", sys.executable, str(folder))
            _uv("pip", "sync", "--system-certs", "-p", str(folder / "bin" / "python"), str(lock))
            stamp.write_text(wanted)
    return folder


def wanted(name: str) -> set[str]:
    """Return what a client's environment is made of, before that of others is added."""
    lines = (LOCKS / f"{name}.in").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def path_of(home: Path) -> dict[str, str]:
    """Return the variable with which a shell finds the programs of an environment."""
    return {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def programs_of(home: Path) -> dict[str, str]:
    """Return the same, and where its programs find their libraries."""
    libraries = [str(path) for path in home.glob("lib/python*/site-packages/nvidia/*/lib")]
    return {**path_of(home), "LD_LIBRARY_PATH": os.pathsep.join(libraries)}


NO_PERF = (
    "this perf_analyzer is a program for Linux on x86-64"
    if (sys.platform, platform.machine()) != ("linux", "x86_64")
    else "perf_analyzer needs a library: apt install libb64-0d"
    if ctypes.util.find_library("b64") is None
    else ""
)
"""Why it cannot run here, if it cannot."""
NO_KSERVE = "kserve is for Python 3.13 at most" if sys.version_info >= (3, 14) else ""
NO_MLSERVER = "mlserver is for Python 3.12 at most" if sys.version_info >= (3, 13) else ""
NO_KCAT = "" if shutil.which("kcat") else "kcat is not installed: apt install kcat"
NO_PROMTOOL = (
    "" if shutil.which("promtool") else "promtool is not installed: apt install prometheus"
)
LACKING = frozenset({NO_PERF, NO_KSERVE, NO_MLSERVER, NO_KCAT, NO_PROMTOOL} - {""})
"""Why tests are skipped here: the only reasons that `--strict-skips` takes."""


def _uv(*arguments: str) -> None:
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run([uv, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the environment of a client cannot be made:\n{done.stderr}"


async def run(
    name: str, program: str, *arguments: str, env: Mapping[str, str] | None = None
) -> Done:
    """Run a program of `tests/conformance/programs` with a client's Python."""
    home = await asyncio.to_thread(environment, name)
    return await call(home / "bin" / "python", PROGRAMS / program, *arguments, env=env)


async def call(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    given: bytes = b"",
    timeout_s: float = 120.0,
) -> Done:
    """Run any program, in a folder if it leaves files; it is ended when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=folder,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())
