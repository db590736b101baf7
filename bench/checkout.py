"""Clones of this repository at a commit, for benchmarks that start it or compare with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def clone(commit: str) -> Iterator[Path]:
    """Yield a folder with a clone of this repository at a commit, not yet set up.

    Raises:
        subprocess.CalledProcessError: there is no such commit here.
    """
    with tempfile.TemporaryDirectory(prefix="inferbus-bench-") as made:
        folder = Path(made) / "inferbus"
        for argv in (
            ["git", "clone", "--quiet", "--no-checkout", str(_ROOT), str(folder)],
            ["git", "-C", str(folder), "checkout", "--quiet", "--detach", commit],
        ):
            subprocess.run(argv, check=True)
        yield folder


def resolved(commit: str) -> str:
    """Return the short id of a commit."""
    return subprocess.run(
        ["git", "-C", str(_ROOT), "rev-parse", "--short", commit],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def environment() -> dict[str, str]:
    """Return this process's environment without what would lead a clone to another checkout."""
    left_out = {"VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    return {name: value for name, value in os.environ.items() if name not in left_out}
