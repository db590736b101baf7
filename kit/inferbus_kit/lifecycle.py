"""One process from start to exit: ordered start, drain on the first signal, exit on the second.

In: stages in the order of their start, and signals. Out: an exit code. Stages stop in reverse
order, each within its own time; a background task that fails ends the process.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
import uvloop

from inferbus_kit.errors import InferbusError, StartupError

_log = structlog.get_logger("lifecycle")

Step = Callable[[], Awaitable[object]]
Fail = Callable[[str], None]

_YOUNG_OBJECTS = 20_000
"""Python's 700 make a busy loop look for cycles every few requests: a tenth of its time."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the process. `stop` must be safe after a `start` that failed halfway."""

    name: str
    start: Step | None
    stop: Step | None
    stop_timeout_s: float


class Lifecycle:
    """The order in which a process's parts start and stop.

    Invariants: stages start one after another as added and stop in reverse; only started ones are
    stopped; after `run` returns no stage runs any more or the process is about to exit.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = asyncio.Event()
        self._stages: list[Stage] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._exit_code = 0

    def add(
        self,
        name: str,
        *,
        start: Step | None = None,
        stop: Step | None = None,
        stop_timeout_s: float = 10.0,
    ) -> None:
        """Add a stage after all those that were added before."""
        self._stages.append(Stage(name, start, stop, stop_timeout_s))

    def spawn(self, name: str, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run `work` in the background; if it raises, the process stops with exit code 1."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return watched(task, self.fail)

    def fail(self, reason: str) -> None:
        """Ask the process to stop with exit code 1."""
        _log.error("fatal", reason=reason)
        self._exit_code = 1
        self.stopping.set()

    async def run(self) -> int:
        """Start everything, wait for a signal or a failure, stop everything; return the code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        started: list[Stage] = []
        try:
            for stage in self._stages:
                started.append(stage)
                if stage.start is not None and not await self._start(stage):
                    break
            else:
                _log.info("started", process=self.name)
                quiet_collector()
                await self.stopping.wait()
        finally:
            await self._stop(started)
        return self._exit_code

    async def _start(self, stage: Stage) -> bool:
        """Start one stage unless a signal comes first; tell whether it started."""
        assert stage.start is not None  # noqa: S101 -- the caller looked
        work = asyncio.ensure_future(stage.start())
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait({work}, timeout=stage.stop_timeout_s)
                return False
            await work
        finally:
            stop.cancel()
        return True

    def _on_signal(self, number: int) -> None:
        if self.stopping.is_set():
            os._exit(128 + number)
        _log.info("stopping", process=self.name, signal=signal.Signals(number).name)
        self.stopping.set()

    async def _stop(self, started: list[Stage]) -> None:
        self.stopping.set()
        for stage in reversed(started):
            if stage.stop is None:
                continue
            try:
                async with asyncio.timeout(stage.stop_timeout_s):
                    await stage.stop()
            except TimeoutError:
                _log.warning("stop_timed_out", stage=stage.name, timeout_s=stage.stop_timeout_s)
            except Exception:  # noqa: BLE001 -- the other stages must still stop
                _log.exception("stop_failed", stage=stage.name)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)


def quiet_collector() -> None:
    """Let the collector of cycles run seldom and leave out what stands: that stays for good."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


def watched(task: asyncio.Task[Any], fail: Fail | None) -> asyncio.Task[Any]:
    """Log the error that ends the task, if one does, and call `fail` with a sentence about it."""

    def ended(done: asyncio.Task[Any]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.error("task_failed", task=done.get_name(), exc_info=error)
            if fail is not None:
                fail(f"task {done.get_name()} failed")

    task.add_done_callback(ended)
    return task


async def cancel(task: asyncio.Task[Any] | None) -> None:
    """Cancel another task and wait until it is gone; its own error, if any, is dropped.

    The caller's own cancellation is not: it is raised here, whether the task is gone or not.
    """
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # or asyncio says that nobody asked


def run_process(name: str, build: Callable[[Lifecycle], Awaitable[None]]) -> None:
    """Run a service until it ends, then exit; never returns.

    Args:
        name: the role, for log lines.
        build: reads settings and adds stages; nothing may be built before it runs.
    """

    async def main() -> int:
        lifecycle = Lifecycle(name)
        try:
            await build(lifecycle)
            return await lifecycle.run()
        except StartupError as error:
            sys.stderr.write(f"inferbus {name}: {error}\n")
            return 2
        except InferbusError as error:
            _log.exception("start_failed")
            sys.stderr.write(f"inferbus {name}: {error}\n")
            return 1

    code = 1
    try:
        code = uvloop.run(main())
    except KeyboardInterrupt:
        code = 130
    except Exception:  # noqa: BLE001 -- the last words of the process
        _log.exception("crashed", process=name)
    # Clients' own threads and half-closed connections must not keep a stopped process alive.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
