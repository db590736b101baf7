"""A worker that dies and does not come back while others live; part of a test under load.

In: a stack with two workers under load. Out: an assertion unless the other worker empties the inbox
of the dead one and releases it; then a new worker serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import httpx

from inferbus_dev.stack import Stack
from inferbus_kit.consume import PartitionReader, Record, StateReader
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from inferbus_schemas.membership import InboxLease, Membership
from inferbus_worker.hot.consume import group

POOL = "default"
RELEASED_S = 60.0
"""Its lease expires after 6 s, the rest is reading and two beats; a busy machine takes longer."""


async def a_worker_stays_dead(stack: Stack) -> None:
    """What stands in an inbox that nobody owns is ended by a worker that lives."""
    async with _fleet(stack) as fleet:
        (dead,) = [lease for lease in fleet.workers(POOL) if lease.instance.startswith("worker-0-")]
        # Removed in the same breath: the supervisor must not start it again.
        stack.kill("worker", 0, signal.SIGKILL)
        await stack.remove("worker", 0)
        released = await _released(fleet, dead)
    assert released.instance.startswith("worker-1-")
    assert await _committed(stack, dead.inbox) == released.end_offset
    assert await _n_adopted(stack) == 1
    assert await stack.add("worker") == 0
    await stack.wait_ready("worker", 0)


@contextlib.asynccontextmanager
async def _fleet(stack: Stack) -> AsyncIterator[Membership]:
    fleet = Membership()

    def apply(record: Record) -> None:
        beat = None if record.value is None else m.Heartbeat.FromString(record.value)
        key = (record.key or b"").decode()
        fleet.apply(key, beat, offset=record.offset, append_ms=record.timestamp)

    topic = topics.topic(topics.HEARTBEATS).name
    reader = StateReader(stack.kafka, topic, apply, client_id="chaos")
    await reader.start()
    try:
        yield fleet
    finally:
        await reader.stop()


async def _released(fleet: Membership, dead: InboxLease) -> InboxLease:
    """Wait until another life has released the inbox of a dead worker."""
    async with asyncio.timeout(RELEASED_S):
        while True:
            lease = fleet.lease(POOL, dead.inbox)
            if lease is not None and lease.life != dead.life and lease.state == m.STATE_RELEASED:
                return lease
            await asyncio.sleep(0.1)


async def _committed(stack: Stack, inbox: int) -> int | None:
    topic = topics.topic(topics.REQUESTS, POOL).name
    reader = PartitionReader(stack.kafka, topic, inbox, client_id="chaos", group=group(POOL))
    await reader.start()
    try:
        return await reader.committed()
    finally:
        await reader.stop()


async def _n_adopted(stack: Stack) -> float:
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{stack.metrics['worker-1']}/metrics")).text
    (line,) = [one for one in text.splitlines() if one.startswith("inferbus_adopted_inboxes_total")]
    return float(line.split(" ")[1])
