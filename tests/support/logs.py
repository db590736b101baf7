"""A log to test on: a topic and a database of its own, and loggers that fill it.

In: the session's Kafka and Postgres. Out: environments for loggers, and waiting until all that is
in Kafka is in the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from inferbus_logger.migrate import migrate
from tests.support import reconcile, servers
from tests.support.forkserver import ForkServer


@dataclass(frozen=True, slots=True)
class Log:
    """Where one test's log is."""

    bootstrap: str
    postgres_url: str
    topic: str

    def environment(self, **settings: str) -> dict[str, str]:
        """Return what a logger of this log is told; `settings` are added in upper case."""
        told = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "INFERBUS_KAFKA_BOOTSTRAP": self.bootstrap,
            "INFERBUS_POSTGRES_URL": self.postgres_url,
            "INFERBUS_LOG_TOPIC": self.topic,
            "INFERBUS_LOG_GROUP": f"logger.{self.topic}",
        }
        return told | {f"INFERBUS_{name.upper()}": value for name, value in settings.items()}

    async def caught_up(self, timeout_s: float = 30.0) -> None:
        """Wait until the log has all that Kafka has.

        Raises:
            TimeoutError: it does not come so far.
        """
        ends = await reconcile.end_offsets(self.bootstrap, self.topic)
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while (found := await self.next_offsets()) != ends:
            if asyncio.get_running_loop().time() > deadline_s:
                raise TimeoutError(f"the log is at {found}, Kafka at {ends}")
            await asyncio.sleep(0.05)

    async def next_offsets(self) -> dict[int, int]:
        """Return how far each partition is logged."""
        found = await self.fetch("SELECT part, next_offset FROM log.sink_offsets")
        return {row["part"]: row["next_offset"] for row in found}

    async def fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        """Run a query on a connection of its own; waits for a Postgres that restarts."""
        connection = await self.connect()
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()

    async def connect(self, timeout_s: float = 20.0) -> asyncpg.Connection[asyncpg.Record]:
        """Connect, also to a Postgres that is just coming back."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await asyncpg.connect(self.postgres_url)
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.1)


@asynccontextmanager
async def fresh_log(bootstrap: str, postgres_url: str, partitions: int = 4) -> AsyncIterator[Log]:
    """Make an empty log with tables and a topic, and drop its database at the end."""
    topic = await servers.fresh_topic(
        bootstrap, partitions=partitions, config={"message.timestamp.type": "LogAppendTime"}
    )
    async with servers.fresh_database(postgres_url) as url:
        await migrate(url)
        yield Log(bootstrap, url, topic)


@asynccontextmanager
async def logger(log: Log, output: Path, **settings: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a logger as users do; it is stopped at the end, gently."""
    with output.open("ab") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 -- starting one takes no time
            [sys.executable, "-m", "inferbus_logger"],
            env=log.environment(**settings),
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def forked(server: ForkServer, log: Log, output: Path, **settings: str) -> AsyncIterator[int]:
    """Run a logger from a fork server; it is killed at the end unless it ended before."""
    pid = server.start(log.environment(**settings), output)
    try:
        yield pid
    finally:
        if server.ended(pid) is None:
            server.kill(pid)


async def http(port: int, path: str) -> tuple[int, bytes]:
    """Return status and body of a GET on a loopback port; (0, b"") where nobody answers."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0, b""
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return int(head.split()[1]) if head else 0, body


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Ask again and again until it is so.

    Raises:
        TimeoutError: it does not become so.
    """
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        if asyncio.get_running_loop().time() > deadline_s:
            raise TimeoutError("it did not come to that")
        await asyncio.sleep(0.05)
