"""Versions on this worker: loads what should be held, unloads what should not.

In: the set of versions to hold. Out: executors for the hot path, and what the beat says of each
version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel
from inferbus_kit.metrics import WorkerMetrics
from inferbus_schemas import messages as m
from inferbus_schemas.generation import TASK as GENERATION
from inferbus_schemas.generation import LlamaSettings
from inferbus_worker.artifacts import Artifacts
from inferbus_worker.control.desired import Version
from inferbus_worker.control.holding import Key
from inferbus_worker.engines.contract import EngineSpec
from inferbus_worker.engines.host import EngineHost
from inferbus_worker.hot.consume import Desk
from inferbus_worker.hot.emit import Served
from inferbus_worker.hot.execute import Executor, VersionMetrics
from inferbus_worker.hot.generate import Generator
from inferbus_worker.hot.generation_metrics import GenerationMetrics
from inferbus_worker.hot.letters import Letters
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.tokens import TokenSender

_log = structlog.get_logger("residents")

_LOADS_AT_ONCE = 2
_RETRY_S = (2.0, 5.0, 15.0, 60.0)
_UNLOAD_GRACE_S = 60.0


@dataclass(slots=True, eq=False)
class _Resident:
    """One version and how far it is. `task` is its load or unload."""

    version: Version
    generation: int
    host: EngineHost | None = None
    executor: Executor | Generator | None = None
    task: asyncio.Task[None] | None = None
    reason: str = ""
    n_failures: int = 0
    retry_s: float = 0.0
    leaving: bool = False
    n_restarts_counted: int = field(default=0)

    @property
    def readiness(self) -> int:
        if self.reason:
            return m.READINESS_FAILED
        up = self.host is not None and self.host.up and self.executor is not None
        return m.READINESS_READY if up else m.READINESS_LOADING


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What each engine may take: threads where its manifest does not say, address space."""

    threads: int
    address_space_bytes: int


class Residents:
    """The versions of this worker.

    Invariants: a version is given requests only after its engine has proven its golden samples;
    a new version loads beside the old one; a version that is unloaded first takes no requests,
    then finishes those that it has; one that failed is tried again, ever more rarely; a load or
    unload that ends by a fault of ours ends the worker, which would else hold it half for ever.
    """

    def __init__(
        self,
        desk: Desk,
        artifacts: Artifacts,
        letters: Letters,
        loops: Loops,
        tokens: TokenSender,
        *,
        instance: str,
        scratch: Path,
        limits: EngineLimits,
        metrics: WorkerMetrics,
        spans: Spans,
        changed: Callable[[], None],
    ) -> None:
        self._desk = desk
        self._artifacts = artifacts
        self._letters = letters
        self._loops = loops
        self._tokens = tokens
        self._instance = instance
        self._scratch = scratch
        self._limits = limits
        self._metrics = metrics
        self._spans = spans
        self._changed = changed
        self._residents: dict[Key, _Resident] = {}
        self._loads = asyncio.Semaphore(_LOADS_AT_ONCE)
        self._stopped = False

    def hold(self, wanted: Mapping[Key, tuple[Version, int]]) -> None:
        """Bring the residents towards `wanted` (version and generation by key); never waits."""
        if self._stopped:
            return
        now_s = time.monotonic()
        for key, (version, generation) in wanted.items():
            resident = self._residents.get(key)
            if resident is None:
                resident = self._residents[key] = _Resident(version, generation)
                self._begin_load(key, resident)
                self._changed()
            resident.generation = max(resident.generation, generation)
            if resident.reason and resident.task is None and now_s >= resident.retry_s:
                self._begin_load(key, resident)
        for key, resident in self._residents.items():
            if key not in wanted and not resident.leaving:
                resident.leaving = True
                work = self._unload(key, resident, resident.task)
                resident.task = self._loops.start(f"unload:{key[0]}/{key[1]}", work)
                self._changed()

    def _begin_load(self, key: Key, resident: _Resident) -> None:
        resident.task = self._loops.start(f"load:{key[0]}/{key[1]}", self._load(resident))

    def held(self) -> list[Key]:
        """Return the versions that are held or being loaded."""
        return [key for key, resident in self._residents.items() if not resident.leaving]

    def beat(self) -> list[m.Resident]:
        """Return what the beat says of the versions."""
        return [
            m.Resident(
                model=model,
                version=version,
                readiness=resident.readiness,  # type: ignore[arg-type]
                generation=resident.generation,
                memory_bytes=resident.host.memory_bytes if resident.host is not None else 0,
                reason=resident.reason,
            )
            for (model, version), resident in sorted(self._residents.items())
            if not resident.leaving
        ]

    def tick(self, now_s: float) -> None:
        """Sweep expired work, note dead engines, set gauges; a few times a second."""
        for (model, version), resident in self._residents.items():
            labels = (model, str(version))
            if resident.executor is not None:
                resident.executor.tick(now_s)
                if resident.executor.failed_reason and not resident.reason:
                    self._fail(resident, resident.executor.failed_reason)
            ready = resident.readiness == m.READINESS_READY and not resident.leaving
            self._metrics.resident.labels(*labels).set(int(ready))
            if resident.host is not None and (
                new := resident.host.n_restarts - resident.n_restarts_counted
            ):
                self._metrics.engine_restarts.labels(*labels).inc(new)
                resident.n_restarts_counted += new
                self._changed()

    def engines(self) -> list[EngineHost]:
        """Return the engines of versions that are READY."""
        return [
            one.host
            for one in self._residents.values()
            if one.host is not None and one.readiness == m.READINESS_READY and not one.leaving
        ]

    async def settled(self) -> None:
        """Wait until no load is under way: each version is READY or has FAILED."""
        while loads := [
            one.task
            for one in self._residents.values()
            if one.task is not None and not one.task.done()
        ]:
            await asyncio.wait(loads)

    async def stop(self) -> None:
        """Unload everything at once, and load nothing any more."""
        self._stopped = True
        for resident in list(self._residents.values()):
            await cancel(resident.task)
            if resident.host is not None:
                await resident.host.stop()
        self._residents.clear()

    async def _load(self, resident: _Resident) -> None:
        version = resident.version
        started_s = time.monotonic()
        log = _log.bind(model=version.model, version=version.version)
        try:
            async with self._loads:
                await self._bring_up(resident)
        except InferbusError as error:
            log.warning("load_failed", reason=str(error))
            self._fail(resident, str(error))
        except Exception:
            log.exception("load_crashed")
            self._fail(resident, "the worker could not load it; its log says why")
        else:
            resident.n_failures = 0
            resident.reason = ""
            log.info("ready", seconds=round(time.monotonic() - started_s, 2))
        finally:
            if not resident.leaving:  # else the task is its unload
                resident.task = None
            self._changed()

    async def _bring_up(self, resident: _Resident) -> None:
        version = resident.version
        if resident.host is not None:
            await resident.host.stop()
        folder = await self._artifacts.folder(version.manifest)
        executor = self._executor(version)
        said = version.manifest.engine_settings.get("intra_op_threads")
        spec = EngineSpec(
            version.manifest,
            version.raw_manifest,
            folder,
            self._scratch,
            said if isinstance(said, int) and said > 0 else self._limits.threads,
            self._limits.address_space_bytes,
        )
        host = EngineHost(
            spec, executor, executor.on_tokens if isinstance(executor, Generator) else None
        )
        executor.attach(host)
        await host.start()
        resident.host, resident.executor = host, executor
        self._desk.executors[version.model, version.version] = executor

    def _executor(self, version: Version) -> Executor | Generator:
        served = Served(version.sha256)
        if version.manifest.task == GENERATION:
            settings = msgspec.convert(version.manifest.engine_settings, LlamaSettings)
            return Generator(
                version.manifest,
                served,
                parallel=settings.parallel,
                instance=self._instance,
                emitter=self._desk.emitter,
                tokens=self._tokens,
                metrics=GenerationMetrics(self._metrics, version.model, version.version),
                spans=self._spans,
            )
        return Executor(
            version.manifest,
            served,
            emitter=self._desk.emitter,
            letters=self._letters,
            metrics=VersionMetrics(self._metrics, version.model, version.version),
            spans=self._spans,
        )

    def _fail(self, resident: _Resident, reason: str) -> None:
        self._desk.executors.pop((resident.version.model, resident.version.version), None)
        wait_s = _RETRY_S[min(resident.n_failures, len(_RETRY_S) - 1)]
        resident.n_failures += 1
        resident.retry_s = time.monotonic() + wait_s
        resident.reason = reason
        self._changed()

    async def _unload(self, key: Key, resident: _Resident, load: asyncio.Task[None] | None) -> None:
        await cancel(load)
        self._desk.executors.pop(key, None)
        executor, host = resident.executor, resident.host
        if executor is not None:
            until_s = time.monotonic() + _UNLOAD_GRACE_S
            while not executor.idle and time.monotonic() < until_s:  # noqa: ASYNC110 -- the hot path feeds no event for this
                await asyncio.sleep(0.05)
        if host is not None:
            await host.stop()
        if executor is not None:
            executor.give_up("the version was unloaded")
        await self._artifacts.forget(resident.version.manifest)
        self._residents.pop(key, None)
        self._metrics.resident.labels(key[0], str(key[1])).set(0)
        _log.info("unloaded", model=key[0], version=key[1])
        self._changed()
