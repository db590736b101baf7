"""The servers that Inferbus stands on: Kafka with its topics, Postgres and Valkey.

In: an open state folder and a supervisor. Out: running servers and their addresses.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferbus_dev import jars, java, kafka, ports, postgres, topics, valkey
from inferbus_dev.errors import LauncherError
from inferbus_dev.paths import KAFKA_FILES
from inferbus_dev.services import POOL
from inferbus_schemas import topics as catalogue

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path
    from typing import Any

    from inferbus_dev.progress import Report
    from inferbus_dev.state import StateDir
    from inferbus_dev.supervisor import Supervisor

JARS = "Kafka's jars"
KAFKA = "start Kafka"
TOPICS = "topics"
POSTGRES = "start Postgres"
VALKEY = "start Valkey"


def steps(*, own_kafka: bool, any_kafka: bool, own_postgres: bool, own_valkey: bool) -> list[str]:
    """Return the names of the steps to come, in their order."""
    named = [
        (JARS, own_kafka),
        (POSTGRES, own_postgres),
        (VALKEY, own_valkey),
        (KAFKA, own_kafka),
        (TOPICS, any_kafka),
    ]
    return [name for name, wanted in named if wanted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Infra:
    """Starts the servers of one stack; each method does one step and reports it."""

    state: StateDir
    supervisor: Supervisor
    report: Report
    cache: Path
    java: Path | None
    taken: set[int]

    async def start_kafka(self) -> str:
        """Start the broker and return its bootstrap address."""
        lock = KAFKA_FILES / "jgo.lock.toml"
        with self.report.step(JARS) as step:
            class_path = await jars.class_path(
                lock,
                self.cache / "jars",
                lambda now: step.update(_jars_text(now)),
            )
        with self.report.step(KAFKA) as step:
            runtime = await java.system(self.java) if self.java else java.bundled()
            archive = await java.archive(runtime, class_path, kafka.FLAGS, self.cache / "java")
            broker = kafka.Broker(
                folder=self.state.path / "kafka",
                log=self.state.log("kafka-0"),
                port=ports.free_port(taken=self.taken),
                controller_port=ports.free_port(taken=self.taken),
                class_path=class_path,
                runtime=runtime,
                archive=archive,
            )
            step.update("preparing its data folder")
            await kafka.prepare(broker)
            step.update("waiting until the broker answers")
            offset = broker.log.stat().st_size if broker.log.exists() else 0
            await self.supervisor.start(kafka.child(broker, lambda: os.environ))
            if kafka.archive_refused(broker.log, offset):
                archive.forget()
        return broker.bootstrap

    async def make_topics(self, bootstrap: str) -> None:
        """Make what the catalogue says."""
        with self.report.step(TOPICS) as step:
            wanted = catalogue.to_create((POOL,))
            await topics.create_topics(
                bootstrap,
                [(one.name, one.partitions, one.replication, one.config) for one in wanted],
                on_progress=lambda done, total: step.update(f"{done} of {total}"),
            )

    async def start_postgres(self) -> str:
        """Start Postgres and return the URL of the database."""
        with self.report.step(POSTGRES) as step:
            server = await postgres.server(
                self.state.path / "postgres",
                self.state.log("postgres-0"),
                ports.free_port(taken=self.taken),
            )
            step.update("preparing its data folder")
            await postgres.prepare(server)
            step.update("waiting until it takes connections")
            await self.supervisor.start(postgres.child(server, lambda: os.environ))
        return server.url()

    async def start_valkey(self) -> str:
        """Start Valkey and return its URL."""
        with self.report.step(VALKEY):
            server = valkey.prepare(
                self.state.path / "valkey",
                self.state.log("valkey-0"),
                ports.free_port(taken=self.taken),
            )
            await self.supervisor.start(valkey.child(server, lambda: os.environ))
        return server.url


def _jars_text(now: jars.Progress) -> str:
    if now.received_bytes == 0:
        return f"{now.here} of {now.total} here"
    return f"{now.here} of {now.total} here, {now.received_bytes / 1e6:.1f} MB received"


async def together(*steps: Coroutine[Any, Any, None]) -> None:
    """Run steps side by side; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:
        raise _most_telling(failures) from failures


def _most_telling(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the failure that says most to a user: a sentence, then a full disk, then any."""
    for kind in (LauncherError, OSError, BaseException):
        found = failures.subgroup(kind)
        if found is not None:
            failure: BaseException = found
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
            return failure
    return failures
