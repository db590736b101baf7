"""What an engine's host is given, and whom it tells.

In: a version's folder and what it may take. Out: calls of a `Listener`, who has the batches.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from inferbus_schemas.manifest import Manifest
from inferbus_worker.engines import wire
from inferbus_worker.engines.process import Death


class Listener(Protocol):
    """Who gives an engine its work."""

    def on_up(self) -> None:
        """The engine takes work from now on."""

    def on_done(self, token: Any, done: wire.Done, body: memoryview) -> None:
        """A batch was answered."""

    def on_down(self, tokens: list[Any], death: asyncio.Future[Death]) -> None:
        """The process is gone; these batches, oldest first, were not answered.

        How it ended is known a little later: `death` always gets a result.
        """

    def on_stopped(self, tokens: list[Any]) -> None:
        """The host was stopped or gives up; these batches were not answered."""

    def on_failed(self, reason: str) -> None:
        """It died and cannot be brought back, or nobody would see it die."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to load and what it may take."""

    manifest: Manifest
    raw_manifest: bytes
    folder: Path
    scratch: Path
    threads: int
    max_address_space_bytes: int
