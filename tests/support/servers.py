"""Real Kafka, Postgres and Valkey for a test session, and what a test needs on them.

In: nothing. Out: `Infra` addresses of servers that a child process of the session owns: they end
when the session ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from inferbus_dev.stack import Stack
from inferbus_dev.topics import create_topics
from inferbus_kit.consume import PartitionReader, Record
from inferbus_schemas import topics as catalogue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Infra:
    """Addresses of running servers: bootstrap address, URL of an empty database, Valkey's URL."""

    kafka: str
    postgres: str
    valkey: str


@contextlib.asynccontextmanager
async def infra() -> AsyncIterator[Infra]:
    """Run the servers on free ports in a temporary folder, in this event loop."""
    folder = Path(tempfile.mkdtemp(prefix="inferbus-test-"))
    stack = Stack(folder / ".inferbus", free_ports=True, only={"kafka", "postgres", "valkey"})
    try:
        await stack.start_infra()
        yield Infra(stack.kafka, stack.postgres, stack.valkey)
    finally:
        await stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def infra_process() -> Iterator[Infra]:
    """Run `infra` in a process of its own, which ends with its standard input."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.servers"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        line = server.stdout.readline() if server.stdout else b""
        if not line:
            raise RuntimeError("The servers did not start for the tests; see above.")
        yield Infra(**json.loads(line))
    finally:
        server.communicate(timeout=STOP_TIMEOUT_S)


async def fresh_topics(bootstrap: str, prefix: str | None = None) -> dict[str, str]:
    """Make the catalogue's topics under a prefix; returns real names by the catalogue's names."""
    chosen = prefix if prefix is not None else f"t{secrets.token_hex(4)}."
    wanted = catalogue.to_create(("default",))
    await create_topics(
        bootstrap,
        [(chosen + one.name, one.partitions, one.replication, one.config) for one in wanted],
    )
    return {one.name: chosen + one.name for one in wanted}


async def fresh_topic(
    bootstrap: str, *, partitions: int = 1, config: Mapping[str, str] | None = None
) -> str:
    """Make one topic with a name of its own and return the name."""
    name = f"test.{secrets.token_hex(6)}"
    await create_topics(bootstrap, [(name, partitions, 1, config or {})])
    return name


async def read_all(bootstrap: str, topic: str, partition: int = 0) -> list[Record]:
    """Return all records of a partition, oldest first."""
    reader = PartitionReader(bootstrap, topic, partition, client_id="test")
    position = await reader.start()
    _, end = await reader.bounds()
    found: list[Record] = []
    try:
        while position < end:
            found += await reader.read()
            position = await reader.position()
    finally:
        await reader.stop()
    return found


@contextlib.asynccontextmanager
async def fresh_database(url: str) -> AsyncIterator[str]:
    """Make an empty database beside the one of `url`, yield its URL, drop it."""
    name = f"test_{secrets.token_hex(6)}"
    server = url.rpartition("/")[0]
    await _execute(url, f"CREATE DATABASE {name}")
    try:
        yield f"{server}/{name}"
    finally:
        await _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, ssl=False)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _serve_until_input_ends() -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    async with infra() as running:
        sys.stdout.write(json.dumps(asdict(running)) + "\n")
        sys.stdout.flush()
        # A thread that nobody waits for: it may still be reading when a signal ends the rest.
        threading.Thread(target=_read_input, args=(loop, ended), daemon=True).start()
        await ended.wait()


def _read_input(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    os.read(sys.stdin.fileno(), 1)
    loop.call_soon_threadsafe(ended.set)


if __name__ == "__main__":
    asyncio.run(_serve_until_input_ends())
