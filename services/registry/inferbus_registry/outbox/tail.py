"""What a topic of ours holds now: the last record of each key, as any reader would see it.

In: one compacted topic. Out: per key the generation and digest of its last record, and word of a
record that this process did not write, or of a log that was lost.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

import structlog
from aiokafka.errors import KafkaError
from google.protobuf.message import DecodeError

from inferbus_kit.consume import PartitionReader, Record
from inferbus_kit.lifecycle import cancel
from inferbus_registry.outbox.repository import Message

_log = structlog.get_logger("tail")

_REACH_S = 15.0


@dataclass(frozen=True, slots=True)
class Last:
    """The last record of a key. A value that is not ours has generation 0."""

    generation: int
    sha256: bytes


class Tail:
    """Follows one topic from its beginning.

    Invariants: `last` is the fold of every record below `position`; `suspect` is true from the
    moment a record was read that `expect` did not announce until `trust` is called.
    """

    def __init__(self, bootstrap: str, topic: str, kind: type[Message], client_id: str) -> None:
        self._reader = PartitionReader(bootstrap, topic, 0, client_id=client_id)
        self._topic = topic
        self._kind = kind
        self._expected: dict[str, bytes] = {}
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Condition()
        self.last: dict[str, Last] = {}
        self.position = 0
        self.suspect = True

    async def start(self) -> None:
        """Connect and read to the end that is seen now.

        Raises:
            BusUnavailableError, KafkaError, TimeoutError: Kafka does not answer.
        """
        self.position = await self._reader.start()
        self._task = asyncio.create_task(self._follow(), name=f"tail:{self._topic}")
        await self.reach_end()

    async def stop(self) -> None:
        await cancel(self._task)
        await self._reader.stop()

    def expect(self, key: str, body: bytes) -> None:
        """Announce a record that this process is about to write."""
        self._expected[key] = hashlib.sha256(body).digest()

    def trust(self) -> None:
        """Say that the topic was compared with the database."""
        self.suspect = False

    async def reach_end(self) -> None:
        """Wait until every record that stands in the topic now was read.

        Raises:
            TimeoutError, KafkaError: Kafka does not give them.
        """
        _, end = await self._reader.bounds()
        async with asyncio.timeout(_REACH_S), self._moved:
            await self._moved.wait_for(lambda: self.position >= end)

    async def lost(self) -> bool:
        """Tell whether the log ends before what was read of it: it is another, emptier log."""
        _, end = await self._reader.bounds()
        return end < self.position

    async def _follow(self) -> None:
        while True:
            try:
                records = await self._reader.read()
                for record in records:
                    self._apply(record)
                position = await self._reader.position()
            except KafkaError as error:
                _log.warning("tail_failed", topic=self._topic, error=repr(error))
                await asyncio.sleep(0.5)
                continue
            async with self._moved:
                self.position = max(self.position, position)
                self._moved.notify_all()

    def _apply(self, record: Record) -> None:
        key = (record.key or b"").decode("utf-8", "replace")
        body = record.value or b""
        digest = hashlib.sha256(body).digest()
        if self._expected.get(key) != digest:
            self.suspect = True
        if record.value is None:
            self.last.pop(key, None)
            return
        try:
            generation = int(self._kind.FromString(body).generation)
        except DecodeError:
            generation = 0
        self.last[key] = Last(generation, digest)
