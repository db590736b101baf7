"""The beat of a process: its record on `fleet.heartbeats` once a second.

In: what the process says of itself. Out: records, and this process's clock skew, which it knows
from the append times in the acknowledgements of its own beats.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import Fail, cancel, watched
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m

_log = structlog.get_logger("heartbeat")

INTERVAL_S = 1.0


class Beater:
    """Writes beats; `beat_now` writes one out of turn, for changes that others wait for.

    Invariants: beats of one process are written one after another; `skew_ms` is the broker's
    clock minus ours, the median of the last beats whose round trip was short; an error that is
    not the bus's ends the beats, which `failed` and `on_failure` then tell.
    """

    def __init__(
        self,
        producer: Producer,
        instance: str,
        role: str,
        make: Callable[[], tuple[str, m.Heartbeat]],
        *,
        on_failure: Fail | None = None,
    ) -> None:
        self._on_failure = on_failure
        self._producer = producer
        self._topic = topics.topic(topics.HEARTBEATS)
        self._source = f"/inferbus/{role}/{instance}"
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._skews: deque[float] = deque(maxlen=15)
        self._count = 0
        self.skew_ms = 0.0
        self.last_ack_monotonic_s = 0.0
        self.failed = False

    async def start(self) -> None:
        self._task = watched(asyncio.create_task(self._loop(), name="heartbeat"), self._fail)

    def _fail(self, reason: str) -> None:
        self.failed = True
        if self._on_failure is not None:
            self._on_failure(reason)

    async def stop(self) -> None:
        await cancel(self._task)

    async def beat_now(self, timeout_s: float = 5.0) -> int:
        """Write one beat and return its offset.

        Raises:
            TimeoutError, KafkaError, InferbusError: it was not acknowledged in time.
        """
        key, beat = self._make()
        return await self.write(key, beat, timeout_s)

    async def write(self, key: str, beat: m.Heartbeat | None, timeout_s: float = 5.0) -> int:
        """Write a given beat, or a tombstone, and return its offset."""
        async with self._lock, asyncio.timeout(timeout_s):
            self._count += 1
            head = envelope.headers(
                self._topic.ce_type, self._source, f"{self._source}#{self._count}"
            )
            value = None if beat is None else beat.SerializeToString()
            before_s = time.time()
            delivery = await self._producer.send(
                self._topic.name, 0, value, key=key.encode(), headers=head
            )
            meta = await asyncio.shield(delivery)
            self._note(before_s, time.time(), meta.timestamp)
            return int(meta.offset)

    def _note(self, before_s: float, after_s: float, append_ms: int | None) -> None:
        self.last_ack_monotonic_s = time.monotonic()
        if append_ms is not None and append_ms > 0 and after_s - before_s < 0.1:  # noqa: PLR2004 -- a long round trip says little about the clock
            self._skews.append(append_ms - (before_s + after_s) * 500)
            self.skew_ms = sorted(self._skews)[len(self._skews) // 2]

    async def _loop(self) -> None:
        while True:
            started = time.monotonic()
            try:
                await self.beat_now()
            except (TimeoutError, KafkaError, InferbusError) as error:
                _log.warning("beat_failed", error=repr(error))
            await asyncio.sleep(max(0.05, INTERVAL_S - (time.monotonic() - started)))
