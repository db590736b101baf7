"""What the gateway does between requests: places what waits, ends what is overdue, looks at leases.

In: the time and the fleet. Out: re-sends, records that end requests, answers of those that no
record ends.
"""

from __future__ import annotations

import asyncio
import time

from inferbus_gateway import errors
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.publish import Publisher
from inferbus_gateway.hot.replies import Replies
from inferbus_kit.health import Health
from inferbus_kit.metrics import GatewayMetrics
from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease, Membership

TICK_S = 0.05


class Upkeep:
    """Drives `Pending` by the clock and by the fleet.

    Invariants: every open attempt's lease is looked at on each tick and on each beat of its
    inbox; each request is ended by this gateway at most once.
    """

    def __init__(
        self,
        pending: Pending,
        publisher: Publisher,
        replies: Replies,
        fleet: Membership,
        metrics: GatewayMetrics,
    ) -> None:
        self._pending = pending
        self._publisher = publisher
        self._replies = replies
        self._fleet = fleet
        self._metrics = metrics
        self._n_attempts_failed = 0
        metrics.in_flight.set_function(lambda: len(pending))

    async def run(self, health: Health) -> None:
        """Tick until cancelled."""
        health.watch("upkeep", 5.0)
        while True:
            health.beat("upkeep")
            self.tick(time.monotonic())
            await asyncio.sleep(TICK_S)

    def beat_seen(self, pool: str, inbox: int) -> None:
        """Look at one inbox, whose owner has just said something; re-send at once what it lost."""
        lease = self._fleet.lease(pool, inbox)
        if lease is not None and self._look(lease, now_s := time.monotonic()):
            self._place_waiting(now_s)

    def tick(self, now_s: float) -> None:
        """Do what is due."""
        for pool, inbox in self._pending.inboxes():
            lease = self._fleet.lease(pool, inbox)
            if lease is not None:
                self._look(lease, now_s)
        if self._pending.n_waiting:
            self._place_waiting(now_s)
        due = self._pending.tick(now_s)
        for entry in due.no_worker:
            entry.waiter.refuse(
                entry, errors.NoWorkerError("no live worker holds this version; try again shortly")
            )
        for entry in due.overdue:
            self._end(entry, m.OUTCOME_DEADLINE_EXCEEDED, "deadline_exceeded")
        for entry in due.exhausted:
            code = "worker_lost" if entry.forwarded else "attempts_exhausted"
            self._end(entry, m.OUTCOME_FAILED, code)
        for entry in due.unknown:
            entry.waiter.give_up(entry)
        n_failed = self._pending.n_attempts_failed
        self._metrics.resends.labels("attempt_failed").inc(n_failed - self._n_attempts_failed)
        self._n_attempts_failed = n_failed

    def _place_waiting(self, now_s: float) -> None:
        nowhere: set[tuple[str, str, int]] = set()
        for entry in self._pending.to_place(now_s):
            wanted = (entry.pool, entry.request.model, entry.request.version)
            if wanted not in nowhere and not self._publisher.place(entry):
                nowhere.add(wanted)

    def _look(self, lease: InboxLease, now_s: float) -> bool:
        expired = self._fleet.expired(lease)
        lost = self._pending.lease_seen(lease, expired=expired, now_s=now_s)
        if lost:
            reason = "released" if lease.state == m.STATE_RELEASED else "expired"
            self._metrics.resends.labels(reason).inc(len(lost))
        return bool(lost)

    def _end(self, entry: Entry, outcome: m.Outcome, code: str) -> None:
        messages = {
            "deadline_exceeded": "no answer came before the deadline",
            "attempts_exhausted": "no worker could answer; each attempt failed",
            "worker_lost": "the worker was lost in the middle of its answer",
        }
        self._replies.end(entry, outcome, code, messages[code])
