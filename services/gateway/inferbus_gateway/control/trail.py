"""What the bus says of one request, read again from its reply partition.

In: what stands under its key. Out: its records, in the order of their offsets, then those that
come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import structlog
from aiokafka.errors import OffsetOutOfRangeError
from google.protobuf.message import DecodeError

from inferbus_gateway.control.idempotency import Stored
from inferbus_kit.consume import PartitionReader, Record
from inferbus_schemas import ids, topics
from inferbus_schemas import messages as m

_log = structlog.get_logger("trail")

SETTLED_MS: Final = 600_000 + 900_000 + 60_000
"""When nobody writes for a request any more, after it was claimed last.

It is sent for as long as a deadline may be; for frames older than 15 minutes workers write nothing;
and two clocks may differ.
"""
_READ_BYTES = 4 << 20
_POLL_MS = 200


class Trail:
    """The records of one request.

    Invariants: `caught_up` once all was read that stood there at `start`, or that may be of it;
    `cut` where the log no longer reaches back to what is looked for.
    """

    def __init__(self, bootstrap: str, client_id: str, stored: Stored) -> None:
        topic = topics.topic(topics.PREDICTIONS).name
        self._reader = PartitionReader(
            bootstrap,
            topic,
            stored.partition,
            client_id=client_id,
            start=self._from,
            max_bytes=_READ_BYTES,
        )
        self._ce_id = f"{ids.text(bytes.fromhex(stored.id))}/".encode()
        self._since = stored.since
        self._settled_ms = stored.claimed_ms + SETTLED_MS
        self._offset = stored.offset
        self._end = 0
        self.caught_up = False
        self.cut = False

    async def start(self) -> None:
        """Stand where the answer is, or before all that may be of the request.

        Raises:
            BusUnavailableError, KafkaError, TimeoutError: Kafka does not answer.
        """
        await self._reader.start(10.0)

    def _from(self, first: int, end: int) -> int:
        """Return where to begin in a log that reaches from `first` to `end`."""
        self._end = end
        at, behind = (self._since, end) if self._offset < 0 else (self._offset, end - 1)
        if first <= at <= behind:
            return at
        # What is gone may have been of it.
        self.cut = True
        return first if self._offset < 0 else end

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
        if records and records[-1].timestamp > self._settled_ms:
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
