"""Token chunks in: the streams that are open here, each fed from the reply partition.

In: `inference.tokens` of the gateway's reply partition, by a consumer of its own. Out: events of
each open stream, in order. While no stream is open a record costs one look-up, and unary requests
pay nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from google.protobuf.message import DecodeError

from inferbus_gateway.hot.token_stream import TokenStream
from inferbus_kit.consume import PartitionReader, Record
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel
from inferbus_schemas import messages as m
from inferbus_schemas import topics

_log = structlog.get_logger("streams")

_AGAIN_S = 0.5
TAIL_S = 5.0
"""How long after the terminal record its chunks may still be on their way to us."""

Spawn = Callable[[str, Coroutine[Any, Any, object]], asyncio.Task[Any]]


class OpenStream:
    """One stream that a client reads here.

    Invariants: `events` holds what was not read yet, oldest first, as chunk and offset; `news` is
    set whenever there is something to look at.
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.state = TokenStream()
        self.events: deque[tuple[m.TokenChunk, int]] = deque()
        self.news = asyncio.Event()
        self.on_first: Callable[[], None] | None = None
        self.gone = False
        self._ended_s = 0.0

    def chunk(self, chunk: m.TokenChunk, offset: int) -> None:
        """Take a chunk that was read."""
        first = self.state.n_taken == 0
        if self.state.take(chunk):
            self.events.append((chunk, offset))
            if first and self.on_first is not None:
                self.on_first()
        self.news.set()

    def end(self, prediction: m.Prediction, error: InferbusError | None) -> None:
        """Take the terminal record."""
        self.state.end(prediction, error)
        self._ended_s = time.monotonic()
        self.news.set()

    def leave(self) -> None:
        """Nobody reads it any more."""
        self.gone = True
        self.news.set()

    def fail(self, error: InferbusError) -> None:
        """End it without a record."""
        self.state.error = self.state.error or error
        self.news.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for news; tell whether there are some in time."""
        if self._ended_s and time.monotonic() - self._ended_s > TAIL_S:
            self.state.overdue()
        if self.events or self.state.ended or self.gone:
            return True
        if self._ended_s:
            timeout_s = min(timeout_s, TAIL_S)
        self.news.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self.news.wait()
        except TimeoutError:
            return False
        return True


class Streams:
    """Reads the token chunks of one reply partition.

    Invariants: records are applied in the order of offsets; those of streams that are not open
    here are skipped unread; an error of Kafka ends no stream, what it cost is seen as a hole.
    """

    def __init__(self, bootstrap: str, instance: str, beat: Callable[[], None]) -> None:
        self._bootstrap = bootstrap
        self._instance = instance
        self._beat = beat
        self._open: dict[bytes, OpenStream] = {}
        self._reader: PartitionReader | None = None
        self._task: asyncio.Task[None] | None = None
        self.partition = -1
        self.leaving = asyncio.Event()
        """Set when this gateway stops and streams should go on elsewhere."""

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._open

    async def start(self, partition: int, spawn: Spawn) -> None:
        """Read a partition from its end on, in a task that `spawn` starts.

        Raises:
            BusUnavailableError: no broker answered, or the end is not to be had.
        """
        self._reader = PartitionReader(
            self._bootstrap,
            topics.topic(topics.TOKENS).name,
            partition,
            client_id=f"{self._instance}-tokens",
            start="end",
        )
        await self._reader.start()
        self.partition = partition
        self._task = spawn("streams", self._read(self._reader))

    async def stop(self) -> None:
        await cancel(self._task)
        if self._reader is not None:
            await self._reader.stop()

    def open(self, request_id: bytes) -> OpenStream:
        """Expect the chunks of a request; `close` must follow."""
        stream = self._open[request_id] = OpenStream(self.partition)
        return stream

    def close(self, request_id: bytes) -> None:
        """Expect no more of it."""
        self._open.pop(request_id, None)

    async def _read(self, reader: PartitionReader) -> None:
        while True:
            self._beat()
            try:
                records = await reader.read(timeout_ms=500)
            except OffsetOutOfRangeError:
                _log.exception("tokens_lost")
                await self._skip_to_end(reader)
                continue
            except KafkaError as error:
                _log.warning("tokens_read_failed", error=repr(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            if self._open:
                for record in records:
                    self._apply(record)

    def _apply(self, record: Record) -> None:
        stream = self._open.get(record.key or b"")
        if stream is None:
            return
        try:
            chunk = m.TokenChunk.FromString(record.value or b"")
        except DecodeError:
            _log.warning("undecodable_chunk", offset=record.offset)
            return
        stream.chunk(chunk, record.offset)

    async def _skip_to_end(self, reader: PartitionReader) -> None:
        try:
            reader.seek((await reader.bounds())[1])
        except (TimeoutError, KafkaError) as error:
            _log.warning("tokens_end_unknown", error=repr(error))
            await asyncio.sleep(_AGAIN_S)
