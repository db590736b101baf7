"""The leader's third duty: keys that ended long ago are deleted, in the database and on the topic.

In: the time. Out: fewer rows, and tombstones, so that neither the topic nor what each gateway
holds of it grows with every key that ever was.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from inferbus_registry.keys.service import KeyService

_log = structlog.get_logger("key-sweep")

_EVERY_S = 3600.0
_KEPT = timedelta(days=30)


class KeySweep:
    """Deletes keys while this process leads."""

    def __init__(self, keys: KeyService) -> None:
        self._keys = keys

    async def run(self) -> None:
        """Sweep every hour until the database fails; what failed is raised."""
        while True:
            await self.sweep(datetime.now(UTC))
            await asyncio.sleep(_EVERY_S)

    async def sweep(self, now: datetime) -> None:
        """Delete every key that had ended thirty days before `now`."""
        n_deleted = 0
        while n := await self._keys.delete_ended(now - _KEPT):
            n_deleted += n
        if n_deleted:
            _log.info("keys_deleted", n=n_deleted)
