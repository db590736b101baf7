"""Cancellations in: requests for which nobody waits any more.

In: records of the pool's cancellations, all of which every worker reads. Out: a call for each id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiokafka.errors import KafkaError
from google.protobuf.message import DecodeError

from inferbus_kit.consume import PartitionReader
from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from inferbus_worker.hot.loops import Loops

_log = structlog.get_logger("cancellations")

_RETRY_S = 1.0
_LOOP = "cancellations"


class Cancellations:
    """Follows the topic from its end on.

    Invariants: a cancellation that is missed costs the engine's time and nothing else, so no error
    here ends the worker.
    """

    def __init__(
        self,
        bootstrap: str,
        pool: str,
        apply: Callable[[bytes], None],
        *,
        loops: Loops,
        client_id: str,
    ) -> None:
        self._reader = PartitionReader(
            bootstrap,
            topics.topic(topics.CANCELLATIONS, pool).name,
            0,
            client_id=client_id,
            start="end",
        )
        self._apply = apply
        self._loops = loops
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and read in the background.

        Raises:
            BusUnavailableError: no broker answered in time.
        """
        await self._reader.start()
        self._task = self._loops.start(_LOOP, self._read())

    async def stop(self) -> None:
        await cancel(self._task)
        await self._reader.stop()

    async def _read(self) -> None:
        while True:
            self._loops.beat(_LOOP)
            try:
                records = await self._reader.read(timeout_ms=500)
            except (KafkaError, InferbusError) as error:
                _log.warning("cancellations_not_read", error=repr(error))
                await asyncio.sleep(_RETRY_S)
                continue
            for record in records:
                try:
                    self._apply(m.Cancellation.FromString(record.value or b"").id)
                except DecodeError:
                    _log.warning("undecodable_cancellation", offset=record.offset)
