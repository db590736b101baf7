"""The logger's parts in the order in which they start and stop.

In: settings, then a frozen `Process`. Out: stages of a lifecycle: health, Kafka, writers; on stop
the transaction that is under way ends first.
"""

from __future__ import annotations

import asyncio

from inferbus_kit import settings as kit_settings
from inferbus_kit.lifecycle import Lifecycle, cancel
from inferbus_logger import settings, wiring
from inferbus_logger.wiring import Process
from inferbus_telemetry.spans import configure_logs


class Running:
    """The tasks of a started logger.

    Invariants: writers are told to end and are waited for before the consumer closes; the rest is
    cancelled, since only writers hold anything that is worth finishing.
    """

    def __init__(self, process: Process, lifecycle: Lifecycle) -> None:
        self._process = process
        self._lifecycle = lifecycle
        self._writers: list[asyncio.Task[object]] = []
        self._others: list[asyncio.Task[object]] = []

    async def start(self) -> None:
        process, spawn = self._process, self._lifecycle.spawn
        await process.reader.start()
        self._writers = [spawn(writer.name, writer.run()) for writer in process.writers]
        self._others = [
            spawn("open", process.opener.run(process.reader.consumer)),
            spawn("consume", process.reader.run()),
            spawn("upkeep", process.upkeep.run()),
        ]
        process.health.ready("start")

    async def stop(self) -> None:
        process = self._process
        for writer in process.writers:
            writer.stopping = True
        process.board.to_write.set()
        if self._writers:
            await asyncio.wait(self._writers)
        await process.upkeep.commit()
        for task in self._others:
            await cancel(task)
        await process.reader.stop()


def add_stages(process: Process, lifecycle: Lifecycle) -> None:
    """Add all stages of the logger."""
    running = Running(process, lifecycle)
    lifecycle.add("tracing", stop=process.tracing.stop)
    lifecycle.add("health", start=process.http.start, stop=process.http.stop)
    if (answers := process.answers) is not None:
        lifecycle.add("answers", start=answers.start, stop=answers.stop)
    lifecycle.add("log", start=running.start, stop=running.stop, stop_timeout_s=40.0)


async def build(lifecycle: Lifecycle) -> None:
    """Read the settings and add the logger's stages."""
    chosen = kit_settings.load(settings.LoggerSettings)
    configure_logs(chosen.log_level, service="logger", instance=chosen.instance)
    add_stages(wiring.build(chosen), lifecycle)
