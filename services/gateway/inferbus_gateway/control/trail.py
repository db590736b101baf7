"""What the bus says of one request, read again from its reply partition.

In: an id, its partition, and the offset of its answer where that is known. Out: its records, in the
order of their offsets, then those that come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import structlog
from aiokafka.errors import OffsetOutOfRangeError
from google.protobuf.message import DecodeError

from inferbus_gateway.hot.keyed import Place
from inferbus_kit.consume import PartitionReader, Record
from inferbus_schemas import ids, topics
from inferbus_schemas import messages as m

_log = structlog.get_logger("trail")

SLACK_MS: Final = 10_000
"""A gateway's clock, which an id is minted by, may differ this much from the broker's."""
WHOLE_MS: Final = 3_600_000
"""How long after its id's time the records of a request are looked for."""
_READ_BYTES = 4 << 20
_POLL_MS = 200


class Trail:
    """The records of one request.

    Invariants: `caught_up` once all was read that stood there at `start`, or that may be of it;
    `cut` where the log no longer reaches back to what is looked for.
    """

    def __init__(self, bootstrap: str, client_id: str, place: Place, offset: int) -> None:
        topic = topics.topic(topics.PREDICTIONS).name
        self._reader = PartitionReader(
            bootstrap,
            topic,
            place.partition,
            client_id=client_id,
            start="end",
            max_bytes=_READ_BYTES,
        )
        self._ce_id = f"{ids.text(place.id)}/".encode()
        self._since_ms = ids.unix_ms(place.id)
        self._offset = offset
        self._end = 0
        self.caught_up = False
        self.cut = False

    async def start(self) -> None:
        """Stand where the answer is, or at the time of the request.

        Raises:
            BusUnavailableError, KafkaError, TimeoutError: Kafka does not answer.
        """
        await self._reader.start(10.0)
        first, self._end = await self._reader.bounds()
        at = self._offset
        if at < 0:
            since_ms = max(0, self._since_ms - SLACK_MS)
            found = await self._reader.client.offsets_for_times({self._reader.tp: since_ms})
            place = found.get(self._reader.tp)
            at = self._end if place is None else place.offset
            # What is gone may have been of it.
            self.cut = 0 < first == at
        elif not first <= at < self._end:
            self.cut, at = True, self._end
        self._reader.seek(at)

    async def stop(self) -> None:
        await self._reader.stop()

    async def read(self) -> list[tuple[Record, m.Prediction]]:
        """Return the next records of the request; none where none came in a moment.

        Raises:
            KafkaError: Kafka does not answer.
        """
        try:
            records = await self._reader.read(timeout_ms=_POLL_MS)
        except OffsetOutOfRangeError:
            self.cut = self.caught_up = True
            return []
        if records and records[-1].timestamp > self._since_ms + WHOLE_MS:
            self.caught_up = True
        if not self.caught_up:
            self.caught_up = await self._reader.position() >= self._end
        return list(self._own(records))

    def _own(self, records: list[Record]) -> Iterator[tuple[Record, m.Prediction]]:
        for record in records:
            if any(
                name == "ce_id" and value.startswith(self._ce_id) for name, value in record.headers
            ):
                try:
                    yield record, m.Prediction.FromString(record.value or b"")
                except DecodeError:
                    _log.warning("undecodable_prediction", offset=record.offset)
