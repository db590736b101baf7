"""Dead letters of a worker: records that it cannot read, and requests that kill their engine.

In: a record with its error, or a request and the deaths that it caused. Out: records on
`<requests>.dlq`, each tried until Kafka has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from inferbus_kit.consume import Record
from inferbus_kit.dlq import DeadLetters
from inferbus_kit.errors import InferbusError
from inferbus_schemas import messages as m
from inferbus_worker.engines.process import Death
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.work import Work

_log = structlog.get_logger("letters")

_RETRY_S = 0.5


class PoisonInputError(Exception):
    """A request that its engine does not survive."""


@dataclass(slots=True)
class _Single:
    """A record as it would be, had its frame held this one request alone."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    key: bytes | None = None


class Letters:
    """Writes the dead letters of all inboxes and versions of a worker.

    Invariants: a letter about a poison request keeps its frame open until it is acknowledged, so
    none is lost where the worker dies; it never keeps the request's answer waiting.
    """

    def __init__(
        self, dead: DeadLetters, loops: Loops, request_topic: str, written: Counter
    ) -> None:
        self._dead = dead
        self._written = written
        self._loops = loops
        self._request_topic = request_topic
        self._tasks: set[asyncio.Task[None]] = set()

    async def bury(self, record: Record, error: Exception, said: Sequence[str] = ()) -> None:
        """Return once the letter about `record` is written, however long Kafka takes."""
        while True:
            try:
                await self._dead.put(record, error, said)
            except (InferbusError, KafkaError) as refusal:
                _log.warning("dead_letter_failed", offset=record.offset, error=repr(refusal))
                await asyncio.sleep(_RETRY_S)
            else:
                self._written.inc()
                return

    def poison(self, work: Work, death: asyncio.Future[Death]) -> None:
        """Write, in the background, a letter about a request; `death` tells of its last engine."""
        work.frame.hold()
        task = self._loops.start(f"letter:{work.request.id.hex()}", self._poison(work, death))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _poison(self, work: Work, death: asyncio.Future[Death]) -> None:
        last = await asyncio.shield(death)
        frame, request = work.frame, work.request
        record = _Single(
            self._request_topic,
            frame.partition,
            frame.offset,
            frame.append_ms,
            m.RequestFrame(requests=[request]).SerializeToString(),
            frame.headers,
        )
        error = PoisonInputError(
            f"request {request.id.hex()} killed the engine of {request.model} version "
            f"{request.version} each time it ran alone; the last one ended by {last.how}"
        )
        await self.bury(record, error, last.said)
        frame.member_done()

    async def stop(self) -> None:
        """Write no more; what was not written is found again, since its frame is open."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
