"""How long `make up` takes in a fresh clone until real models answer, and Ctrl-C until it ended.

The first start makes the environment and builds the models, the later ones find them there. Wheels
and jars come from this machine's caches where it has them: the result says nothing of a network.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.checkout import clone, environment
from bench.record import store
from inferbus_dev.ports import free_port

STARTS = 4
SECOND_START_BUDGET_S = 20.0
_WITHIN_S = 600.0
_SERVING = b"Try it:"


def _until_serving(process: subprocess.Popen[bytes], said: bytearray) -> None:
    """Read the launcher's lines until it serves.

    Raises:
        RuntimeError: it ended, or took longer than ten minutes.
    """
    assert process.stdout is not None
    ends = time.monotonic() + _WITHIN_S
    while _SERVING not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, ends - time.monotonic()))
        piece = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not piece:
            raise RuntimeError(
                f"make up did not serve: {bytes(said[-2000:]).decode(errors='replace')}"
            )
        said += piece


def start_and_stop(folder: Path, port: int) -> dict[str, float]:
    """Run `make up` until it serves, then stop it as Ctrl-C does; return both times in seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        ["make", "up", f"ARGS=--port-base {port}"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _until_serving(process, bytearray())
        serving = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        while process.stdout is not None and process.stdout.read(65536):
            pass
        process.wait(_WITHIN_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    return {
        "serving_s": round(serving - began, 1),
        "stopped_s": round(time.monotonic() - serving, 1),
    }


def main() -> None:
    """Measure and store."""
    found = []
    with clone("HEAD") as folder:
        for _ in range(STARTS):
            found.append(start_and_stop(folder, free_port()))
            sys.stderr.write(f"start {len(found)}: {json.dumps(found[-1])}\n")
    later = [each["serving_s"] for each in found[1:]]
    figures = {
        "starts": found,
        "later_start_budget_s": SECOND_START_BUDGET_S,
        "later_starts_within_budget": max(later) <= SECOND_START_BUDGET_S,
    }
    path = store("startup", figures)
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
