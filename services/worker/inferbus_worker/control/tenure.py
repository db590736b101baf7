"""The worker's inbox: joins, claims, reads it, drains it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inferbus_kit.heartbeat import Beater
from inferbus_schemas import membership
from inferbus_schemas import messages as m
from inferbus_worker.hot.consume import Inbox


class Tenure:
    """Naive: lowest free inbox."""

    def __init__(
        self,
        pool: str,
        instance: str,
        fleet: membership.Membership,
        n_inboxes: Callable[[], int],
        open_inbox: Callable[[int], Inbox],
    ) -> None:
        self._pool = pool
        self._instance = instance
        self._fleet = fleet
        self._n_inboxes = n_inboxes
        self._open_inbox = open_inbox
        self.state = m.STATE_JOINING
        self.inbox: Inbox | None = None
        self.number: int | None = None
        self.epoch = 0
        self.end_offset = 0

    def key(self) -> str:
        if self.number is None:
            return membership.worker_key(self._instance)
        return membership.inbox_key(self._pool, self.number)

    async def join(self, beater: Beater, reach: Callable[[int], object]) -> None:
        offset = await beater.beat_now()
        await reach(offset + 1)
        for number in range(self._n_inboxes()):
            lease = self._fleet.lease(self._pool, number)
            free = lease is None or lease.state == m.STATE_RELEASED or self._fleet.expired(lease)
            if free:
                break
        self.epoch = max(0 if lease is None else lease.epoch + 1, self._fleet.position)
        self.number = number
        self.state = m.STATE_ACTIVE
        await beater.beat_now()
        self.inbox = self._open_inbox(number)
        await self.inbox.start()

    async def drain(self, beater: Beater) -> None:
        if self.inbox is None:
            return
        self.state = m.STATE_DRAINING
        await beater.beat_now()
        await asyncio.sleep(1.0)
        await beater.beat_now()
        end = await self.inbox.end_offset()
        while self.inbox.position < end or self.inbox.n_open:
            await asyncio.sleep(0.02)
        self.end_offset = await self.inbox.stop_reading()
        await self.inbox.stop()
        self.state = m.STATE_RELEASED
        await beater.beat_now()
