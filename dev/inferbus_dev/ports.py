"""Ports on the loopback address: checks fixed ones and finds free ones.

A free port stays unbound until its server has started, and again while it restarts. So that no
other launcher of this user chooses it meanwhile, its number is claimed until this process ends: a
lock on that byte of a file which all of them share. The system drops a dead process's locks.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import secrets
import socket
import tempfile
from pathlib import Path

from inferbus_dev.errors import LauncherError

LOOPBACK = "127.0.0.1"
HIGHEST = 65_535
# Below the range from which Linux (32768) and macOS (49152) take ports for outgoing connections,
# so that no client grabs a port between this check and the server's bind.
FREE_RANGE = range(15_000, 30_000)
_claimed: set[int] = set()


def is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    return _refusal(port) is None


def free_port(*, taken: set[int] | None = None) -> int:
    """Return a random port that nobody uses or claims, and add it to `taken`; it is ours now."""
    for _ in range(1_000):
        port = secrets.choice(FREE_RANGE)
        if (taken is None or port not in taken) and is_free(port) and _claim(port):
            if taken is not None:
                taken.add(port)
            return port
    raise LauncherError(
        f"No free port was found between {FREE_RANGE.start} and {FREE_RANGE.stop}: "
        "stop some of the programs that listen there."
    )


def demand_range(base: int, count: int) -> range:
    """Return the ports from `base` on; raises a sentence where some of them are none."""
    found = range(base, base + count)
    if base < 1 or found[-1] > HIGHEST:
        raise LauncherError(
            f"--port-base {base} leaves no {count} ports: choose one from 1 to "
            f"{HIGHEST - count + 1} (for example `make up ARGS='--port-base 9080'`)."
        )
    return found


def demand_free(port: int, purpose: str) -> None:
    """Raise a sentence that names the port and the flag when nothing can listen on it."""
    if (refusal := _refusal(port)) is not None:
        raise LauncherError(why_refused(port, purpose, refusal))


def why_refused(port: int, purpose: str, refusal: OSError) -> str:
    """Return one sentence on a port that could not be bound."""
    where = f"Port {port} on {LOOPBACK}, where {purpose} should listen,"
    if refusal.errno in {errno.EACCES, errno.EPERM}:
        what = "is one that this user may not take: choose"
    else:
        what = "is taken: stop the program that uses it, or choose"
    other = port - port % 10 + 1000
    example = other if other < HIGHEST - 10 else 9080
    return (
        f"{where} {what} other ports with --port-base (for example "
        f"`make up ARGS='--port-base {example}'`)."
    )


def _claim(port: int) -> bool:
    """Say whether this port is ours from now on."""
    if port in _claimed:  # A process's second lock on a byte would be granted.
        return False
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except BlockingIOError:
        return False
    _claimed.add(port)
    return True


@functools.cache
def _claims() -> int:
    """Open the file of claims for good: closing it would drop every lock."""
    place = Path(tempfile.gettempdir()) / f"inferbus-ports-{os.getuid()}.lock"
    try:
        return os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LauncherError(
            f"The file {place.name} in the folder for temporary files cannot be opened "
            f"({error.strerror}): remove it, or name another folder with TMPDIR."
        ) from error


def _refusal(port: int) -> OSError | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error
    return None
