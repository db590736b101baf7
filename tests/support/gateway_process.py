"""A gateway in a process of its own.

In: a broker and a folder. Out: its addresses, and its end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inferbus_dev.ports import free_port
from tests.support import forkserver


@dataclass(slots=True)
class GatewayProcess:
    """A gateway in a process of its own."""

    process: forkserver.Forked
    instance: str
    port: int
    metrics_port: int
    grpc_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, timeout_s: float = 40.0) -> int:
        """End it as a supervisor does; return its exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()


def spawn(bootstrap: str, folder: Path, **env: str) -> GatewayProcess:
    """Start a gateway in a process of its own."""
    name = f"gateway-{secrets.token_hex(3)}"
    taken: set[int] = set()
    port, metrics_port, grpc_port = (free_port(taken=taken) for _ in range(3))
    log = folder / f"{name}.log"
    told = {
        **os.environ,
        "INFERBUS_KAFKA_BOOTSTRAP": bootstrap,
        "INFERBUS_STATE_DIR": str(folder),
        "INFERBUS_INSTANCE": name,
        "INFERBUS_HTTP_PORT": str(port),
        "INFERBUS_METRICS_PORT": str(metrics_port),
        "INFERBUS_AUTH": "local",
        "INFERBUS_SUBMISSION_TENANTS": "",
        "INFERBUS_GRPC_PORT": str(grpc_port),
        **env,
    }
    process = forkserver.run("inferbus_gateway", told, log)
    return GatewayProcess(process, name, port, metrics_port, grpc_port, log)


@contextlib.contextmanager
def running(bootstrap: str, folder: Path) -> Iterator[GatewayProcess]:
    """Run a gateway for tests that do not stop it."""
    made = spawn(bootstrap, folder)
    try:
        yield made
    finally:
        made.kill()
