"""What is open of submissions: records until they are done, and frames that are being filled.

In: records and their requests. Out: counts that bound memory, offsets that may be committed, and a
span for each record whose writer's is sampled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from aiokafka.structs import TopicPartition

from inferbus_gateway.hot.publish import MAX_FRAME_BYTES, MAX_FRAME_REQUESTS
from inferbus_gateway.hot.submitted import Place, Submitted
from inferbus_kit.consume import Record
from inferbus_kit.offsets import ContiguousOffsets
from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease
from inferbus_telemetry.spans import OpenSpan, Tracing

REQUEST_BYTES = 4096
"""What a request takes beside its tensors, about (2,900 are measured before it is in a frame)."""
LETTER_BYTES = 4096
"""What a dead letter takes beside its record while it waits to be written, about."""
_HEADER_BYTES = 128
"""What a header takes beside its text, about: on the wire an empty one is two bytes."""

MAX_OPEN_BYTES = 64 << 20
"""Bytes of records that are read and not done, of which each tenant has the same share."""
MAX_TENANT_BYTES, MIN_TENANT_BYTES = MAX_OPEN_BYTES // 4, 1 << 20
"""The most and the least that a share is; past it no more of the tenant's are read."""


class Partition:
    """A partition of ours, from its first record to its revocation."""

    __slots__ = ("committed", "offsets", "open_bytes", "position", "revoked")

    def __init__(self, start: int) -> None:
        self.offsets = ContiguousOffsets(start)
        self.committed = -1
        self.open_bytes = 0
        self.position = start
        self.revoked = False


class Allowance:
    """So many a second, and as many at once."""

    __slots__ = ("_filled_s", "_left", "_per_s")

    def __init__(self, per_s: float) -> None:
        self._per_s = self._left = per_s
        self._filled_s = 0.0

    def take(self, now_s: float) -> bool:
        """Take one, or tell that there is none for now."""
        grown = max(0.0, now_s - self._filled_s) * self._per_s
        self._left, self._filled_s = min(self._per_s, self._left + grown), now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Work:
    """One record, until nothing of it is open; `n_bytes` is what it may hold in memory."""

    __slots__ = ("n_bytes", "n_open", "offset", "part", "place", "span")

    def __init__(self, part: Partition, record: Record, place: Place) -> None:
        self.part = part
        self.place = place
        self.offset = record.offset
        self.n_bytes = _held_bytes(record)
        self.n_open = 1
        self.span: OpenSpan | None = None

    def trace(self, tracing: Tracing, topic: str, members: Sequence[Submitted]) -> None:
        """Begin a span where the writer's is sampled; the requests of the record belong to it."""
        context = members[0].request.traceparent
        if not (tracing.on and context):
            return
        self.span = tracing.open(f"process {topic}", parent=context, kind="CONSUMER")
        for one in members:
            one.request.traceparent = self.span.traceparent

    def hold(self, n_bytes: int) -> None:
        """Note more that it holds in memory until it is done."""
        self.n_bytes += n_bytes
        self.part.open_bytes += n_bytes

    def done_one(self) -> None:
        """Note that one of its requests needs nothing more of us."""
        self.n_open -= 1
        if self.n_open == 0:
            self.part.open_bytes -= self.n_bytes
            self.part.offsets.done(self.offset)
            if self.span is not None:
                self.span.end()


def _held_bytes(record: Record) -> int:
    """Return what a record holds in memory, about."""
    head = sum(_HEADER_BYTES + len(name) + len(value or b"") for name, value in record.headers)
    return len(record.value or b"") + len(record.key or b"") + head


def committable(
    partitions: Mapping[TopicPartition, Partition], ours: Collection[TopicPartition]
) -> dict[TopicPartition, int]:
    """Return the offsets that moved since they were committed, of what is still ours."""
    return {
        place: part.offsets.committable
        for place, part in partitions.items()
        if place in ours and part.offsets.committable != part.committed
    }


def crowded(
    partitions: Mapping[TopicPartition, Partition], ours: Collection[TopicPartition]
) -> set[TopicPartition]:
    """Return which of our partitions are to be left unread for now; a topic is a tenant."""
    by_topic: dict[str, int] = {}
    for place, part in partitions.items():
        by_topic[place.topic] = by_topic.get(place.topic, 0) + part.open_bytes
    share = MAX_OPEN_BYTES // max(1, len({one.topic for one in ours}))
    share = min(max(share, MIN_TENANT_BYTES), MAX_TENANT_BYTES)
    return {one for one in ours if by_topic.get(one.topic, 0) >= share}


Member = tuple[Work, Submitted]
Key = tuple[str, str, str, int]
"""Tenant, pool, model, version."""


class Draft:
    """A frame that is being filled for a lease's owner."""

    __slots__ = ("lease", "members", "n_bytes")

    def __init__(self, lease: InboxLease) -> None:
        self.lease = lease
        self.members: list[Member] = []
        self.n_bytes = 0

    def takes(self, one: Submitted) -> bool:
        """Whether there is room."""
        fits = self.n_bytes + one.request.ByteSize() <= MAX_FRAME_BYTES
        return fits and len(self.members) < MAX_FRAME_REQUESTS

    def add(self, work: Work, one: Submitted) -> None:
        self.members.append((work, one))
        self.n_bytes += one.request.ByteSize()

    def frame(self, gateway: str, now_ms: float) -> bytes:
        """Return the frame, with the time that each request has left."""
        for _, one in self.members:
            one.request.ttl_ms = max(1, int(one.deadline_ms - now_ms))
        requests = [one.request for _, one in self.members]
        return m.RequestFrame(gateway=gateway, requests=requests).SerializeToString()
