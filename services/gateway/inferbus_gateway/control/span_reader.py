"""The part of the bus in which the records of one request can be.

In: topics, a request's time and what is known of its partition. Out: their records from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from inferbus_kit.consume import Record
from inferbus_schemas.ids import unix_ms

SLACK_MS = 10_000
"""A gateway's clock, which an id is minted by, may differ this much from the broker's."""
_LASTS_MS = 1_800_000
"""A submission waits ten minutes at most and runs as long; twice that may pass between gateways."""


class SpanReader:
    """Reads what may be of one request.

    Invariants: nothing older than the request is read; `passed` only where nothing that stood there
    at the start, and is of its time, is left unread.
    """

    def __init__(self, consumer: AIOKafkaConsumer, places: Sequence[TopicPartition]) -> None:
        self._consumer = consumer
        self._places = list(places)
        self._ends: dict[TopicPartition, int] = {}

    async def seek(self, request_id: bytes) -> None:
        """Stand at the time of a request, and note where what may be its own ends at present."""
        consumer, since_ms = self._consumer, max(0, unix_ms(request_id) - SLACK_MS)
        consumer.assign(self._places)
        # First: what is written between the questions is behind it, and so is read.
        ends = await consumer.end_offsets(self._places)
        found = await consumer.offsets_for_times(dict.fromkeys(self._places, since_ms))
        later = await consumer.offsets_for_times(dict.fromkeys(self._places, since_ms + _LASTS_MS))
        for place, end in ends.items():
            first, past = found.get(place), later.get(place)
            consumer.seek(place, end if first is None else first.offset)
            self._ends[place] = end if past is None else past.offset

    async def read(self) -> list[Record]:
        """Return what came, each partition's in order; nothing where none did for a moment."""
        batches = await self._consumer.getmany(*self._places, timeout_ms=100)
        return list(chain.from_iterable(batches.values()))

    async def narrow(self, partition: int) -> None:
        """Read one partition of the topics from here on: the request's."""
        places = [place for place in self._places if place.partition == partition]
        if places == self._places:
            return
        at = {place: await self._consumer.position(place) for place in places}
        self._places = places
        self._consumer.assign(places)
        for place, offset in at.items():
            self._consumer.seek(place, offset)

    async def passed(self) -> bool:
        """Tell whether all was read that stood there at the start and may be the request's."""
        for place in self._places:
            if await self._consumer.position(place) < self._ends[place]:
                return False
        return True
