"""What a topic of ours holds now: the last record of each key, as any reader would see it.

In: one compacted topic. Out: per key the generation and digest of its last record, and word of a
record that this process did not write, or of a log that was lost.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass

import structlog
from aiokafka.errors import KafkaError
from google.protobuf.message import DecodeError

from inferbus_kit.consume import PartitionReader, Record
from inferbus_kit.lifecycle import cancel, watched
from inferbus_registry.outbox.repository import Message

_log = structlog.get_logger("tail")

_REACH_S = 15.0
_MAX_EXPECTED = 1000


@dataclass(frozen=True, slots=True)
class Last:
    """The last record of a key, and the highest generation that any record of it had.

    Readers apply only a higher generation, so a lower last record does not reach them.
    """

    highest: int
    sha256: bytes


class Tail:
    """Follows one topic from its beginning.

    Invariants: `last` is the fold of every record below `position`; `suspect` is true from the
    moment a record was read that `expect` did not announce until `trust` is called; an error that
    is not Kafka's ends the following and is raised by the next `reach` or `lost`.
    """

    def __init__(self, bootstrap: str, topic: str, kind: type[Message], client_id: str) -> None:
        self._reader = PartitionReader(bootstrap, topic, 0, client_id=client_id)
        self._topic = topic
        self._kind = kind
        self._expected: dict[str, deque[bytes]] = {}
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
        work = asyncio.create_task(self._follow(), name=f"tail:{self._topic}")
        self._task = watched(work, None)
        await self.reach(await self._end())

    async def stop(self) -> None:
        await cancel(self._task)
        await self._reader.stop()

    def expect(self, key: str, body: bytes) -> None:
        """Announce a record that this process is about to write."""
        digests = self._expected.setdefault(key, deque(maxlen=_MAX_EXPECTED))
        digests.append(hashlib.sha256(body).digest())

    def trust(self) -> None:
        """Say that the topic was compared with the database."""
        self.suspect = False

    async def reach(self, offset: int) -> None:
        """Wait until every record below `offset` was read.

        Raises:
            TimeoutError: Kafka does not give them.
        """
        self._raise_failure()
        async with asyncio.timeout(_REACH_S), self._moved:
            await self._moved.wait_for(lambda: self.position >= offset)

    async def lost(self) -> bool:
        """Tell whether the log ends before what was read of it: it is another, emptier log."""
        self._raise_failure()
        return await self._end() < self.position

    def _raise_failure(self) -> None:
        if self._task is not None and self._task.done():
            self._task.result()

    async def _end(self) -> int:
        # It may take as long as the long poll that is under way on the same connection.
        async with asyncio.timeout(_REACH_S):
            ends = await self._reader.client.end_offsets([self._reader.tp])
        return int(ends[self._reader.tp])

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
        announced = self._announced(key, digest)
        if announced and not body:  # Our own tombstone: nobody holds the key any more.
            self.last.pop(key, None)
            return
        if not announced:
            self.suspect = True
        self.last[key] = Last(max(self._generation(body), self._highest(key)), digest)

    def _generation(self, body: bytes) -> int:
        try:
            return int(self._kind.FromString(body).generation)
        except DecodeError:
            return 0

    def _highest(self, key: str) -> int:
        return self.last[key].highest if key in self.last else 0

    def _announced(self, key: str, digest: bytes) -> bool:
        """Tell whether this record is the next one that was announced, and tick it off."""
        digests = self._expected.get(key)
        if not digests or digests[0] != digest:
            return False
        digests.popleft()
        if not digests:
            del self._expected[key]
        return True
