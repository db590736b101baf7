"""Tokens that submissions have spent, told on the bus: no gateway reads how those ended.

In: a tenant and its tokens, with each record that is written. Out: records of `access.spent`, one
per tenant and minute, again after each second in which it has grown.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel
from inferbus_kit.produce import Message
from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m
from inferbus_worker.hot.emit import Sender
from inferbus_worker.hot.loops import Loops

_log = structlog.get_logger("spent")

TELL_EVERY_S: Final = 1.0
_STOP_S: Final = 3.0


class Spent:
    """What one life of a worker has spent.

    Invariants: a record holds the whole of its minute, so that twice is as good as once; what Kafka
    did not take is told again; a minute that is over and told is forgotten.
    """

    def __init__(self, sender: Sender, instance: str, life: int, loops: Loops) -> None:
        self._sender = sender
        self._topic = topics.topic(topics.SPENT)
        self._source = f"/inferbus/worker/{instance}"
        self._instance = instance
        self._life = life
        self._loops = loops
        self._used: dict[tuple[str, int], int] = {}
        self._untold: set[tuple[str, int]] = set()
        self._n_records = 0
        self._task: asyncio.Task[None] | None = None

    def note(self, tenant: str, n_tokens: int) -> None:
        """Count tokens that were spent now."""
        if n_tokens:
            key = (tenant, _minute())
            self._used[key] = self._used.get(key, 0) + n_tokens
            self._untold.add(key)

    async def start(self) -> None:
        self._task = self._loops.start("spent", self._run())

    async def stop(self) -> None:
        """Tell what is left, bounded."""
        await cancel(self._task)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self.tell()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            await self.tell()

    async def tell(self) -> None:
        """Write what has grown; where Kafka does not take it, it stays to be told."""
        telling, self._untold = self._untold, set()
        try:
            deliveries = [
                await self._sender.send_many(self._topic.name, 0, [self._message(*key)])
                for key in sorted(telling)
            ]
            for delivery in deliveries:
                await delivery
        except (InferbusError, KafkaError) as error:
            _log.warning("spent_not_told", error=repr(error))
            self._untold |= telling
        except asyncio.CancelledError:  # `stop` tells it
            self._untold |= telling
            raise
        over = [key for key in self._used if key not in self._untold and key[1] < _minute()]
        for key in over:
            del self._used[key]

    def _message(self, tenant: str, minute: int) -> Message:
        said = m.TokensSpent(
            tenant=tenant,
            minute=minute,
            n_tokens=self._used[tenant, minute],
            worker=self._instance,
            life=self._life,
        )
        self._n_records += 1
        ce_id = f"{self._life:016x}/{self._n_records}"
        head = envelope.headers(self._topic.ce_type, self._source, ce_id)
        key = f"{tenant}/{minute}/{self._life:016x}"
        return Message(said.SerializeToString(), key.encode(), head)


def _minute() -> int:
    return int(time.time() // 60)
