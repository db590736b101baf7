"""Drives the lease: its beats, its looks at Kafka, the inboxes that it opens and closes.

In: the heartbeats as they are read. Out: this worker's records in them, and inboxes that are read
exactly while the lease says so. All decisions are `lease.Lease`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Health
from inferbus_kit.heartbeat import INTERVAL_S, Beater
from inferbus_kit.lifecycle import cancel
from inferbus_kit.metrics import WorkerMetrics
from inferbus_schemas import messages as m
from inferbus_worker.control import lease as leases
from inferbus_worker.control.survey import Sight, Survey
from inferbus_worker.errors import NoTopicError
from inferbus_worker.hot.consume import Inbox
from inferbus_worker.hot.loops import Loops

_log = structlog.get_logger("tenure")

_STEP_S = 0.05
_LOOK_EVERY_S = 1.5
_SIGHT_AGE_S = 5.0
_RETRY_S = 0.5


class _Opened:
    """An inbox from `StartReading` to `Close`."""

    __slots__ = ("inbox", "opening", "stopped")

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.opening: asyncio.Task[None] | None = None
        self.stopped = False

    def reading(self) -> leases.Reading:
        """Return how far it is, as the lease wants to know it."""
        inbox = self.inbox
        return leases.Reading(inbox.position, inbox.committed, inbox.n_open, self.stopped)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a tenure works with."""

    beater: Beater
    survey: Survey
    health: Health
    metrics: WorkerMetrics
    open_inbox: Callable[[int], Inbox]
    compose: Callable[[leases.WriteBeat], m.Heartbeat]
    request_topic: str
    loops: Loops


class Tenure:
    """This worker's place in the fleet.

    Invariants: actions of the lease are begun in its order; none of them holds up the next step;
    beats are written one after another.
    """

    def __init__(self, lease: leases.Lease, around: Surroundings) -> None:
        self._lease = lease
        self._around = around
        self._opened: dict[int, _Opened] = {}
        self._sight: Sight | None = None
        self._sight_s = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._stepped = asyncio.Event()
        self._joined = False
        self.heard = asyncio.Event()
        """Set by whoever applies heartbeats, so that a step follows at once."""

    async def announce(self) -> None:
        """Beat from now on: before the versions are loaded, so that others see it come."""
        await self._around.survey.start()
        self._loops.append(self._around.loops.start("beat", self._beat()))

    async def join(self) -> None:
        """Begin to look for an inbox; `health` tells when there is one."""
        self._joined = True
        self._loops.append(self._around.loops.start("look", self._look()))
        self._loops.append(self._around.loops.start("lease", self._step()))

    async def drain(self) -> None:
        """Finish and release what this worker holds; the caller bounds the time."""
        if self._joined:
            self._lease.drain()
            while not self._lease.done:
                self._stepped.clear()
                await self._stepped.wait()
            # The release and the tombstone are the last words: wait until they are written.
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        """End all loops and close what is still open."""
        for task in [*self._loops, *self._tasks]:
            await cancel(task)
        if not self._joined:
            await self._write(leases.Tombstone(self._lease.joining().key))
        for opened in list(self._opened.values()):
            await opened.inbox.stop()
        await self._around.survey.stop()

    def beats(self) -> list[leases.WriteBeat]:
        """Return what to beat now; before the lease begins, that this worker is joining."""
        if self._joined:
            return self._lease.beats()
        return [self._lease.joining()]

    async def _beat(self) -> None:
        while True:
            started_s = time.monotonic()
            for said in self.beats():
                await self._write(said)
            await asyncio.sleep(max(0.05, INTERVAL_S - (time.monotonic() - started_s)))

    async def _write(self, said: leases.WriteBeat | leases.Tombstone) -> None:
        try:
            beat = None if isinstance(said, leases.Tombstone) else self._around.compose(said)
            await self._around.beater.write(said.key, beat)
        except (TimeoutError, KafkaError, InferbusError) as error:
            _log.warning("beat_failed", error=repr(error))

    async def _look(self) -> None:
        while True:
            if self._lease.wants_behind:
                try:
                    self._sight = await self._around.survey.look()
                    self._sight_s = time.monotonic()
                    self.heard.set()
                except NoTopicError as error:
                    self._around.health.not_ready("inbox", str(error))
                except (TimeoutError, KafkaError) as error:
                    _log.warning("look_failed", error=repr(error))
                    await asyncio.sleep(_RETRY_S)
                    continue
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _step(self) -> None:
        self._around.health.watch("lease", 5.0)
        while not self._lease.done:
            self.heard.clear()
            for action in self._lease.step(self._facts()):
                self._begin(action)
            self._tell_health()
            self._around.health.beat("lease")
            self._stepped.set()
            try:
                async with asyncio.timeout(_STEP_S):
                    await self.heard.wait()
            except TimeoutError:
                continue
        self._around.health.unwatch("lease")
        self._stepped.set()

    def _facts(self) -> leases.Facts:
        sight = self._sight
        fresh = sight is not None and time.monotonic() - self._sight_s < _SIGHT_AGE_S
        return leases.Facts(
            n_inboxes=0 if sight is None else sight.n_inboxes,
            behind=sight.behind if sight is not None and fresh else None,
            readings={number: opened.reading() for number, opened in self._opened.items()},
        )

    def _tell_health(self) -> None:
        health, lease = self._around.health, self._lease
        if lease.active:
            health.ready("inbox")
        elif lease.no_inbox_free:
            health.not_ready(
                "inbox",
                "no inbox is free: add some with `inferbus topics add-partitions "
                "inference.requests --total N`",
            )
        elif lease.inbox is None and self._sight is not None:
            health.not_ready("inbox", "joining: it has no inbox yet")

    def _begin(self, action: leases.Action) -> None:
        if isinstance(action, leases.WriteBeat | leases.Tombstone):
            self._spawn(self._write(action))
        elif isinstance(action, leases.StartReading):
            opened = self._opened[action.inbox] = _Opened(self._around.open_inbox(action.inbox))
            opened.opening = self._spawn(self._open(opened))
            if action.inbox != self._lease.inbox:
                self._around.metrics.adopted.inc()
            _log.info("inbox_opened", inbox=action.inbox, own=action.inbox == self._lease.inbox)
        elif isinstance(action, leases.ReadEnd):
            self._spawn(self._read_end(action.inbox))
        elif isinstance(action, leases.StopReading):
            self._spawn(self._stop_reading(self._opened[action.inbox], commit=action.commit))
        elif (closed := self._opened.pop(action.inbox, None)) is not None:
            _log.info("inbox_closed", inbox=action.inbox)
            self._spawn(closed.inbox.stop())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._around.loops.start("lease-action", work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open(self, opened: _Opened) -> None:
        while not opened.stopped:
            try:
                await opened.inbox.start()
            except (InferbusError, KafkaError, TimeoutError) as error:
                _log.warning("open_failed", inbox=opened.inbox.inbox, error=repr(error))
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _read_end(self, number: int) -> None:
        while (opened := self._opened.get(number)) is not None:
            try:
                self._lease.end_found(number, await opened.inbox.end_offset())
            except (InferbusError, KafkaError, TimeoutError) as error:
                _log.warning("end_unknown", inbox=number, error=repr(error))
                await asyncio.sleep(_RETRY_S)
            else:
                self.heard.set()
                return

    async def _stop_reading(self, opened: _Opened, *, commit: bool) -> None:
        await cancel(opened.opening)
        await opened.inbox.stop_reading(commit=commit)
        opened.stopped = True
        self.heard.set()
