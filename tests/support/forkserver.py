"""Starts many processes of one service without paying its imports each time.

In: lines of JSON on stdin: {"start": {environment}, "log": path} or {"kill": pid} or
{"poll": pid}. Out: one line of JSON for each: {"pid": n}, {"status": n or null}. Each process is
a fork that has imported the service and has run none of it; all die with the server.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


class ForkServer:
    """A server for one package, such as `inferbus_logger`.

    Invariants: a process that ended keeps its pid until it is asked for, so that no other is ever
    killed in its place; after the block no process is left.
    """

    def __init__(self, package: str, *preload: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forkserver", package, *preload],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.communicate(timeout=30)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question).encode() + b"\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer

    def start(self, environment: dict[str, str], log: Path) -> int:
        """Start a process and return its pid."""
        pid: int = self._ask({"start": environment, "log": str(log)})["pid"]
        return pid

    def kill(self, pid: int) -> int:
        """Kill a process with SIGKILL; return its exit status, -9 unless it ended before."""
        status: int = self._ask({"kill": pid})["status"]
        return status

    def ended(self, pid: int) -> int | None:
        """Return the exit status of a process that has ended; None while it lives."""
        status: int | None = self._ask({"poll": pid})["status"]
        return status


def _serve(package: str, preload: list[str]) -> None:
    for name in preload:
        importlib.import_module(name)
    ends: dict[int, int | None] = {}
    try:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(_answer(package, json.loads(line), ends)) + "\n")
            sys.stdout.flush()
    finally:
        for pid in ends:
            _end(ends, pid, kill=True)


def _answer(
    package: str, question: dict[str, Any], ends: dict[int, int | None]
) -> dict[str, int | None]:
    if "start" in question:
        pid = _fork(package, question["start"], question["log"])
        ends[pid] = None
        return {"pid": pid}
    pid = question.get("kill") or question["poll"]
    return {"status": _end(ends, pid, kill="kill" in question)}


def _end(ends: dict[int, int | None], pid: int, *, kill: bool) -> int | None:
    """Return the exit status of a process, or None while it lives; its end is taken once."""
    if ends[pid] is None:
        if kill:
            os.kill(pid, signal.SIGKILL)
        ended, status = os.waitpid(pid, 0 if kill else os.WNOHANG)
        if ended:
            ends[pid] = os.waitstatus_to_exitcode(status)
    return ends[pid]


def _fork(package: str, environment: dict[str, str], log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    with Path(log).open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [package]
    runpy.run_module(package, run_name="__main__", alter_sys=True)
    os._exit(1)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
