"""What a worker is told, from `INFERBUS_*`."""

from __future__ import annotations

import os

from pydantic import Field

from inferbus_kit.settings import Pool, Settings


class WorkerSettings(Settings):
    """A worker's settings beside those that every process has."""

    pool: Pool = Field(
        default="default", description="Workers of one pool share topics and hardware."
    )
    object_store_url: str = Field(
        default="", description="Where version files are, such as file:///path or s3://bucket."
    )
    engine_slots: int = Field(
        default=2,
        ge=1,
        description="Engines that share the cores: each gets cores / slots threads unless its "
        "manifest says how many.",
    )
    engine_address_space_bytes: int = Field(
        default=16 << 30,
        ge=0,
        description="Address space of an engine process (Linux); 0: no limit.",
    )
    drain_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="Longest time to finish what was read when the worker stops.",
    )

    @property
    def engine_threads(self) -> int:
        """Threads of an engine whose manifest does not say how many."""
        return max(1, (os.cpu_count() or 1) // self.engine_slots)
