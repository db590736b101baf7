"""The jars that all tests and `make up` share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from inferbus_dev import jars
from inferbus_dev.paths import KAFKA_FILES, cache_dir

if TYPE_CHECKING:
    from pathlib import Path


async def class_path() -> tuple[Path, ...]:
    """Return the broker's class path, fetched if this is the first run."""
    lock = KAFKA_FILES / "jgo.lock.toml"
    return await jars.class_path(lock, cache_dir(os.environ) / "jars", lambda _now: None)
