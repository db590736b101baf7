"""The worker at run time: its parts, its beat, and the loops that keep them going.

In: the parts that `wiring` built. Out: stages of the lifecycle, in the order of their start.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog

from inferbus_kit.consume import StateReader
from inferbus_kit.health import Health
from inferbus_kit.heartbeat import Beater
from inferbus_kit.http import HttpServer
from inferbus_kit.lifecycle import Lifecycle
from inferbus_kit.metrics import WorkerMetrics
from inferbus_kit.produce import Producer
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership
from inferbus_telemetry.spans import Tracing
from inferbus_worker.control.desired import Desired, Version
from inferbus_worker.control.holding import Key, versions_to_hold
from inferbus_worker.control.residents import Residents
from inferbus_worker.control.tenure import Tenure
from inferbus_worker.engines.child import memory_bytes
from inferbus_worker.errors import EngineError
from inferbus_worker.hot.cancellations import Cancellations
from inferbus_worker.hot.consume import Desk
from inferbus_worker.hot.emit import Emitter
from inferbus_worker.hot.letters import Letters
from inferbus_worker.hot.spent import Spent
from inferbus_worker.hot.tokens import TokenSender
from inferbus_worker.jobs.consume import JobLoop
from inferbus_worker.settings import WorkerSettings

_log = structlog.get_logger("worker")

_TICK_S = 0.1
_RECONCILE_S = 1.0
_FIRST_LOADS_S = 120.0
_PROBE_EVERY_S = 10.0
_PROBE_AGE_S = 30.0


@dataclass(frozen=True, slots=True)
class Process:
    """Everything a worker is made of; built once, by `wiring`."""

    settings: WorkerSettings
    health: Health
    metrics: WorkerMetrics
    server: HttpServer
    tracing: Tracing
    records: Producer
    control: Producer
    readers: tuple[StateReader, ...]
    beater: Beater
    emitter: Emitter
    spent: Spent
    letters: Letters
    token_records: Producer
    job_records: Producer
    jobs: JobLoop
    tokens: TokenSender
    cancellations: Cancellations
    desk: Desk
    desired: Desired
    fleet: Membership
    residents: Residents
    tenure: Tenure
    load: LoadReport
    changed: asyncio.Event


class LoadReport:
    """What the beat says of this worker's load.

    Invariants: `rows_per_s` is over the last full second or more.
    """

    def __init__(self, desk: Desk, residents: Residents) -> None:
        self._desk = desk
        self._residents = residents
        self._rows_done = 0
        self._at_s = time.monotonic()
        self.rows_per_s = 0.0

    def tick(self, now_s: float) -> None:
        """Move the window of the rate."""
        if now_s - self._at_s >= 1.0:
            self.rows_per_s = (self._desk.rows_done - self._rows_done) / (now_s - self._at_s)
            self._rows_done, self._at_s = self._desk.rows_done, now_s

    def fill(self, part: m.WorkerBeat) -> None:
        """Write backlog, queue age, memory and rate into a beat."""
        waiting = [
            oldest
            for executor in self._desk.executors.values()
            if (oldest := executor.oldest_s) is not None
        ]
        part.backlog_rows = self._desk.open_rows
        if waiting:
            part.queue_age_ms = max(0, int((time.monotonic() - min(waiting)) * 1000))
        residents = self._residents.beat()
        part.residents.extend(residents)
        part.memory_bytes = memory_bytes() + sum(one.memory_bytes for one in residents)
        part.rows_per_s = self.rows_per_s


def add_stages(process: Process, lifecycle: Lifecycle) -> None:
    """Add the worker's stages: listeners first, the inbox last, so that it is given up first."""
    worker = _Worker(process, lifecycle)
    lifecycle.add("metrics", start=process.server.start, stop=process.server.stop)
    lifecycle.add("tracing", stop=process.tracing.stop)
    lifecycle.add("records", start=process.records.start, stop=process.records.stop)
    lifecycle.add("emitter", stop=process.emitter.stop)
    lifecycle.add(
        "token-records", start=process.token_records.start, stop=process.token_records.stop
    )
    lifecycle.add("tokens", stop=process.tokens.stop)
    lifecycle.add("job-records", start=process.job_records.start, stop=process.job_records.stop)
    lifecycle.add(
        "cancellations", start=process.cancellations.start, stop=process.cancellations.stop
    )
    lifecycle.add("control", start=process.control.start, stop=process.control.stop)
    lifecycle.add("spent", start=process.spent.start, stop=process.spent.stop)
    lifecycle.add("letters", stop=process.letters.stop)
    lifecycle.add("state", start=worker.read_state, stop=worker.stop_reading_state)
    lifecycle.add("loops", start=worker.start_loops)
    lifecycle.add("beat", start=process.tenure.announce, stop=process.tenure.stop)
    lifecycle.add("versions", start=worker.first_loads, stop=process.residents.stop)
    lifecycle.add(
        "inbox",
        start=worker.join,
        stop=worker.drain,
        stop_timeout_s=process.settings.drain_timeout_s + 5.0,
    )
    lifecycle.add("jobs", start=process.jobs.start, stop=process.jobs.stop, stop_timeout_s=15.0)


class _Worker:
    """The loops of a worker and the steps of its start and stop."""

    def __init__(self, process: Process, lifecycle: Lifecycle) -> None:
        self._process = process
        self._lifecycle = lifecycle

    async def read_state(self) -> None:
        await asyncio.gather(*(reader.start() for reader in self._process.readers))

    async def stop_reading_state(self) -> None:
        await asyncio.gather(*(reader.stop() for reader in self._process.readers))

    async def start_loops(self) -> None:
        spawn = self._lifecycle.spawn
        spawn("reconcile", self._reconcile())
        spawn("tick", self._tick())
        spawn("probe", self._probe())

    async def first_loads(self) -> None:
        """Wait until what should be held is READY or has FAILED; a beat tells of it meanwhile."""
        process = self._process
        process.health.not_ready("versions", "loading the versions that it should hold")
        process.residents.hold(self._to_hold())
        try:
            async with asyncio.timeout(_FIRST_LOADS_S):
                await process.residents.settled()
        except TimeoutError:
            _log.warning("still_loading", after_s=_FIRST_LOADS_S)

    async def join(self) -> None:
        process = self._process
        process.health.not_ready("inbox", "joining: it has no inbox yet")
        await process.tenure.join()
        process.health.ready("start")

    async def drain(self) -> None:
        self._process.health.not_ready("stop", "draining")
        try:
            async with asyncio.timeout(self._process.settings.drain_timeout_s):
                await self._process.tenure.drain()
        except TimeoutError:
            _log.warning("drain_timed_out", open_requests=self._process.desk.n_open)

    def _to_hold(self) -> dict[Key, tuple[Version, int]]:
        """Return the versions to hold that are known, with the generation that asks for each."""
        process = self._process
        hold = versions_to_hold(
            process.desired.deployments,
            process.fleet,
            process.settings.pool,
            process.residents.held(),
        )
        versions = process.desired.versions
        return {key: (versions[key], hold[key]) for key in hold if key in versions}

    async def _reconcile(self) -> None:
        """Hold what should be held: at each change, and once a second."""
        process = self._process
        while True:
            process.changed.clear()
            process.residents.hold(self._to_hold())
            try:
                async with asyncio.timeout(_RECONCILE_S):
                    await process.changed.wait()
            except TimeoutError:
                continue

    async def _tick(self) -> None:
        process = self._process
        process.health.watch("tick", 5.0)
        while True:
            now_s = time.monotonic()
            process.residents.tick(now_s)
            process.load.tick(now_s)
            process.metrics.backlog_rows.set(process.desk.open_rows)
            self._judge(now_s)
            process.health.beat("tick")
            await asyncio.sleep(_TICK_S)

    def _judge(self, now_s: float) -> None:
        """Ready: nothing to hold, or a version that is READY and was proven lately."""
        process = self._process
        lately_s = now_s - _PROBE_AGE_S
        proven = any(host.proven_s > lately_s for host in process.residents.engines())
        if proven or not process.residents.held():
            process.health.ready("versions")
        else:
            process.health.not_ready("versions", "no version is READY and proven")

    async def _probe(self) -> None:
        """Send a golden sample through each engine that has had no work lately."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            for host in self._process.residents.engines():
                if time.monotonic() - host.proven_s < _PROBE_EVERY_S:
                    continue
                try:
                    await host.probe()
                except EngineError as error:
                    _log.warning("probe_failed", reason=str(error))
