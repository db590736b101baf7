"""Ports on the loopback address: checks fixed ones and finds free ones."""

from __future__ import annotations

import secrets
import socket

from inferbus_dev.errors import LauncherError

LOOPBACK = "127.0.0.1"
# Below the range from which Linux (32768) and macOS (49152) take ports for outgoing connections,
# so that no client grabs a port between this check and the server's bind.
FREE_RANGE = range(15_000, 30_000)


def is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(*, taken: set[int] | None = None) -> int:
    """Return a random port on which nothing listens, and add it to `taken`."""
    for _ in range(1_000):
        port = secrets.choice(FREE_RANGE)
        if (taken is None or port not in taken) and is_free(port):
            if taken is not None:
                taken.add(port)
            return port
    raise LauncherError(
        f"No free port was found between {FREE_RANGE.start} and {FREE_RANGE.stop}: "
        "stop some of the programs that listen there."
    )


def demand_free(port: int, purpose: str) -> None:
    """Raise a sentence that names the port and the flag when something listens on it."""
    if not is_free(port):
        raise LauncherError(
            f"Port {port} on {LOOPBACK}, where {purpose} should listen, is taken: stop the program "
            "that uses it, or choose other ports with --port-base (for example "
            f"`make up ARGS='--port-base {port - port % 10 + 1000}'`)."
        )
