"""Starts many processes of one program without paying its imports each time.

In: lines of JSON on stdin, `{"start": ...}`, `{"kill": pid}` or `{"poll": pid}`. Out: one line of
JSON for each: `{"pid": n}`, `{"status": n or null}`. Each process is a fork that has imported the
program and has run none of it; all die with the server. Whole stacks start as they do for users.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]

PRELOAD = {
    "inferbus_gateway": ("wiring",),
    "inferbus_worker": ("wiring",),
    "inferbus_registry": ("wiring", "migrate"),
    "inferbus_logger": ("app", "wiring", "commands"),
    "inferbus_cli": ("http", "models", "keys", "predict", "jobs", "predictions", "topics"),
    "schemathesis.cli": ("commands.run.executor",),
}
"""Packages, and the modules of theirs that take long to import."""
_LATE = {
    "inferbus_cli": ("httpcore", "certifi"),
    "schemathesis.cli": (
        "schemathesis.engine.core",
        "schemathesis.engine.run.unit._hypothesis_executor",
        "schemathesis.generation.hypothesis.builder",
        "schemathesis.specs.openapi.schemas",
        "rich.progress",
        "pyrate_limiter",
    ),
}
"""What they import only once they run."""


class ForkServer:
    """A server for one program, such as `inferbus_logger`; `python` is the one that has it.

    Invariants: a process that ended keeps its pid until it is asked for, so that no other is ever
    killed in its place; after the block no process is left.
    """

    def __init__(self, package: str, python: str | Path = sys.executable) -> None:
        self._server = subprocess.Popen(
            [python, "-m", "tests.support.forkserver", package],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._asking = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what still runs, and the server."""
        self._server.communicate(timeout=30)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with self._asking:
            self._server.stdin.write(json.dumps(question).encode() + b"\n")
            self._server.stdin.flush()
            answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer

    def start(
        self,
        environment: Mapping[str, str],
        log: Path,
        *,
        arguments: Sequence[str] = (),
        errors: Path | None = None,
        cwd: Path | None = None,
    ) -> int:
        """Start a process and return its pid; where `errors` is given, stderr goes there."""
        start = {
            "environment": dict(environment),
            "arguments": list(arguments),
            "out": str(log),
            "errors": str(errors or log),
            "cwd": str(cwd or ROOT),
        }
        pid: int = self._ask({"start": start})["pid"]
        return pid

    def kill(self, pid: int) -> int:
        """Kill a process with SIGKILL; return its exit status, -9 unless it ended before."""
        status: int = self._ask({"kill": pid})["status"]
        return status

    def ended(self, pid: int) -> int | None:
        """Return the exit status of a process that has ended; None while it lives."""
        status: int | None = self._ask({"poll": pid})["status"]
        return status


class Forked:
    """A process of a fork server, with what tests use of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server

    def poll(self) -> int | None:
        """Return the exit status, None while it lives."""
        return self._server.ended(self.pid)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still lives.
        """
        until_s = time.monotonic() + timeout_s
        while (status := self.poll()) is None:
            if time.monotonic() > until_s:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout_s)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._server.kill(self.pid)


@functools.cache
def server(package: str, python: str | Path = sys.executable) -> ForkServer:
    """Return the server of one of `PRELOAD`, which lives as long as this process."""
    made = ForkServer(package, python)
    atexit.register(made.close)
    return made


def run(
    package: str,
    environment: Mapping[str, str],
    log: Path,
    *,
    arguments: Sequence[str] = (),
    errors: Path | None = None,
    cwd: Path | None = None,
    python: str | Path = sys.executable,
) -> Forked:
    """Start `python -m package` as a fork; see `ForkServer.start`."""
    one = server(package, python)
    pid = one.start(environment, log, arguments=arguments, errors=errors, cwd=cwd)
    return Forked(one, pid)


def done(
    package: str,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    python: str | Path = sys.executable,
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m package arguments` as a fork to its end and return what it said."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        process = run(
            package,
            environment,
            out,
            arguments=arguments,
            errors=errors,
            cwd=cwd,
            python=python,
        )
        code = process.wait(timeout_s)
        return subprocess.CompletedProcess(arguments, code, out.read_text(), errors.read_text())


def _serve(package: str) -> None:
    for name in (*(f"{package}.{one}" for one in PRELOAD[package]), *_LATE.get(package, ())):
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
        pid = _fork(package, question["start"])
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


def _fork(package: str, start: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for number, path in ((1, start["out"]), (2, start["errors"])):
        with Path(path).open("ab") as out:
            os.dup2(out.fileno(), number)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.chdir(start["cwd"])
    os.environ.clear()
    os.environ.update(start["environment"])
    sys.argv = [package, *start["arguments"]]
    code = 1
    try:
        runpy.run_module(package, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
