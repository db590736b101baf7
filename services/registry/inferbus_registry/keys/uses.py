"""When keys were last used: heard in gateways' beats and at this registry's own door; coarse.

In: ids and times, as they come. Out: one statement every few seconds, where there was any. What is
lost with a process or a beat is a minute of a date that people look at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

import structlog

from inferbus_kit.lifecycle import Fail, cancel, watched
from inferbus_registry import errors
from inferbus_registry.keys.service import KeyService
from inferbus_schemas import access
from inferbus_schemas import messages as m

_log = structlog.get_logger("key-uses")

_EVERY_S = 2.0
_MAX_HELD = 10_000
_LATEST_US = 1 << 52
"""In the year 2112; what is later is no time that a clock of ours shows."""


class KeyUses:
    """Gathers uses and writes the latest of each key.

    Invariants: at most `_MAX_HELD` keys are held; a database that is away costs nobody anything.
    """

    def __init__(self, keys: KeyService, fail: Fail | None = None) -> None:
        self._keys = keys
        self._fail = fail
        self._newest: dict[str, datetime] = {}
        self._task: asyncio.Task[None] | None = None

    def heard(self, uses: Iterable[m.KeyUse]) -> None:
        """Take what a gateway's beat says."""
        for one in uses:
            if 0 < one.used_us < _LATEST_US:
                self._note(one.id, datetime.fromtimestamp(one.used_us / 1e6, UTC))

    async def find(self, key: str) -> access.Principal | None:
        """Return whom a key stands for, and note that it was used; raises as the service does."""
        found = await self._keys.find(key)
        key_id = access.key_id(key)
        if found is not None and key_id is not None:
            self._note(key_id, datetime.now(UTC))
        return found

    def _note(self, key_id: str, at: datetime) -> None:
        before = self._newest.get(key_id)
        if (before is None and len(self._newest) < _MAX_HELD) or (
            before is not None and at > before
        ):
            self._newest[key_id] = at

    async def start(self) -> None:
        self._task = watched(asyncio.create_task(self._run(), name="key-uses"), self._fail)

    async def stop(self) -> None:
        await cancel(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            if not self._newest:
                continue
            uses, self._newest = self._newest, {}
            try:
                await self._keys.note_uses(uses)
            except errors.RegistryError as error:
                _log.warning("uses_not_noted", error=str(error))
                for key_id, at in uses.items():
                    self._note(key_id, at)
