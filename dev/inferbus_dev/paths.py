"""Where the launcher finds its own files and keeps what every run may share.

In: the environment. Out: folders. Nothing is created here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = Path(__file__).resolve().parents[2]
KAFKA_FILES = PROJECT / "dev" / "kafka"
STATE_FOLDER = ".inferbus"


def default_state_dir() -> Path:
    """Return the state folder of `make up`: `.inferbus` in the checkout."""
    return PROJECT / STATE_FOLDER


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Return the folder of jars and class-data archives that tests and `make up` share.

    `INFERBUS_CACHE` names another one, for example one that outlives the checkout.
    """
    chosen = environ.get("INFERBUS_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else default_state_dir() / "cache"
