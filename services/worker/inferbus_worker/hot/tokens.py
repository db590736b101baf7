"""Token chunks out: each at once, in order, without a timer.

In: chunks of the streams that run here. Out: records of `inference.tokens` in the streams' reply
partitions, and a call when one is acknowledged. What comes while a batch is on its way shares the
next one, so that many streams cost few batches and a first token never waits for more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.errors import InferbusError
from inferbus_kit.lifecycle import cancel
from inferbus_kit.produce import Message
from inferbus_schemas import envelope, ids, topics
from inferbus_schemas import messages as m
from inferbus_worker.hot import parcels
from inferbus_worker.hot.emit import Sender
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.work import MAX_FRAME_AGE_MS, Work

_log = structlog.get_logger("tokens")

_RETRY_S = 0.2


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A chunk on its way."""

    work: Work
    message: Message
    acknowledged: Callable[[], None]


class _Lane:
    """Chunks for one partition, in order, and the task that sends them."""

    __slots__ = ("task", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Outgoing] = deque()
        self.task: asyncio.Task[None] | None = None


class TokenSender:
    """Sends chunks.

    Invariants: chunks of a partition are first written in the order in which they were put, a
    later one only after the acknowledgement of an earlier one; one that is sent again is the same
    bytes, so its number tells; what its readers have forgotten is given up.
    """

    def __init__(self, sender: Sender, instance: str, loops: Loops) -> None:
        topic = topics.topic(topics.TOKENS)
        self._sender = sender
        self._topic = topic.name
        self._const = envelope.headers(topic.ce_type, f"/inferbus/worker/{instance}", "")[1:]
        self._loops = loops
        self._lanes: dict[int, _Lane] = {}

    def put(self, work: Work, chunk: m.TokenChunk, acknowledged: Callable[[], None]) -> None:
        """Send a chunk to the reply partition of its request."""
        partition = work.request.reply_partition
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane()
        name = f"{ids.text(chunk.id)}/{chunk.run:016x}/{chunk.seq}"
        head = [("ce_id", name.encode()), *self._const]
        if traceparent := work.request.traceparent:
            head.append(("traceparent", traceparent.encode()))
        message = Message(chunk.SerializeToString(), chunk.id, head)
        lane.waiting.append(_Outgoing(work, message, acknowledged))
        if lane.task is None:
            lane.task = self._loops.start(f"tokens:{partition}", self._send(lane, partition))

    async def _send(self, lane: _Lane, partition: int) -> None:
        try:
            while lane.waiting:
                parcel = parcels.take(lane.waiting)
                if await self._delivered(partition, parcel):
                    for out in parcel:
                        out.acknowledged()
                else:
                    lane.waiting.extendleft(reversed(_still_wanted(parcel)))
                    await asyncio.sleep(_RETRY_S)
        finally:
            lane.task = None

    async def _delivered(self, partition: int, parcel: list[_Outgoing]) -> bool:
        try:
            messages = [out.message for out in parcel]
            await (await self._sender.send_many(self._topic, partition, messages))
        except (InferbusError, KafkaError) as error:
            _log.warning("tokens_not_acknowledged", partition=partition, error=repr(error))
            return False
        return True

    async def stop(self) -> None:
        """Send no more."""
        for lane in list(self._lanes.values()):
            await cancel(lane.task)


def _still_wanted(parcel: list[_Outgoing]) -> list[_Outgoing]:
    """Return what somebody may still wait for; the others count as sent."""
    now_s = time.monotonic()
    wanted = []
    for out in parcel:
        if out.work.frame_age_ms(now_s) <= MAX_FRAME_AGE_MS:
            wanted.append(out)
        else:
            out.acknowledged()
    return wanted
