"""The guard of Kafka's consumers: batches of strangers made readable, within bounds.

In: what a fetch brought of a partition that any program may write to: batches compressed with
anything, of a size that only reading them tells, with headers that need be no text. Out: the same
records in batches without compression; a record that says why stands for each that cannot be read,
or for a whole batch. The client library would decompress without a bound, and raise for one record
what costs all others. Format 2 of Kafka's log, as its documentation says:
https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cramjam
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c, decode_varint, encode_varint

MAX_BATCH_BYTES = 8 << 20
"""Of a batch without compression."""
MAX_BATCH_RECORDS = 1 << 16
MAX_HEADERS = 100
"""Of a record: one is two bytes on the wire, and some seventy where it is read."""
MAX_FETCH_BYTES = 1 << 20
"""What one fetch of a partition may become, and its last batch; what is behind is fetched again."""
REASON = f"inferbus-unreadable-{secrets.token_hex(8)}"
"""The header of stand-ins; no writer knows its name."""

_HEAD = struct.Struct(">qiibIhiqqqhii")
_FRAME = struct.Struct(">qi")
_MAGIC_AT, _CRC_AT, _ATTRIBUTES_AT = 16, 17, 21
_MAGIC = 2
_CODEC, _CONTROL = 0x07, 0x20
_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_PAST_END = bytes(32)
"""Behind the last record: the library reads numbers to their end, and asks for no buffer's."""
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEAD = 16
_USUAL_RATIO = 16
_BROKEN = (CorruptRecordException, cramjam.DecompressionError, IndexError, ValueError, struct.error)

_NAME = "the name of a header is not UTF-8"
_HEADERS = f"it has over {MAX_HEADERS} headers"
_DAMAGED = "its batch is damaged, or compressed as nobody knows"
_TOO_LARGE = f"its batch has over {MAX_BATCH_BYTES >> 20} MiB when it is decompressed"
_TOO_MANY = f"its batch has over {MAX_BATCH_RECORDS} records"


class _TooLargeError(ValueError):
    """A batch is too much; the text says by what."""


@dataclass(slots=True)
class _Batch:
    """One batch: the fields of its head, and its records."""

    head: list[int]
    records: memoryview

    @classmethod
    def of(cls, raw: memoryview) -> _Batch:
        return cls(list(_HEAD.unpack_from(raw)), raw[_HEAD.size :])

    @property
    def attributes(self) -> int:
        return self.head[5]

    @property
    def last_offset_delta(self) -> int:
        return self.head[6]

    @property
    def n_records(self) -> int:
        return self.head[12]

    def holding(self, records: bytes, n_records: int) -> bytes:
        """Return a batch of the same place that holds these records, without compression."""
        head = list(self.head)
        head[1] = _HEAD.size + len(records) - _FRAME.size
        head[5] &= ~_CODEC
        head[12] = n_records
        raw = bytearray(_HEAD.pack(*head)) + records
        struct.pack_into(">I", raw, _CRC_AT, calc_crc32c(bytes(raw[_ATTRIBUTES_AT:])))
        return bytes(raw)


def guard(consumer: AIOKafkaConsumer) -> None:
    """Have a consumer see readable batches alone, from its next fetch on."""
    client = consumer._client  # noqa: SLF001 -- docs/decisions/0019-batches-are-made-readable-first.md
    send = client.send

    async def sent(node_id: int, request: Any, **how: Any) -> Any:
        response = await send(node_id, request, **how)
        if type(response).__name__.startswith("FetchResponse"):
            try:
                response.topics = await asyncio.to_thread(_topics, response.topics)
            except Exception as error:
                # Of any other kind it would end the client's fetching, for good and in silence.
                raise KafkaError("what was fetched cannot be read now") from error
        return response

    client.send = sent


def why_unreadable(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """Return why a record cannot be read, where it stands for one; else None."""
    for name, value in headers:
        if name == REASON:
            return (value or b"").decode()
    return None


def _topics(topics: Sequence[Any]) -> list[Any]:
    """Return the same, with batches that the client can read; they are each partition's last."""
    return [
        (topic, [(*partition[:-1], readable(partition[-1] or b"")) for partition in partitions])
        for topic, partitions in topics
    ]


def readable(fetched: bytes) -> bytes:
    """Return what a fetch brought, in batches that the client can read.

    Batches behind the first `MAX_FETCH_BYTES` are left out, and those behind one that took work and
    came to nothing; a part of one at the end stays.
    """
    out: list[bytes | memoryview] = []
    view, at, n_bytes = memoryview(fetched), 0, 0
    for raw in _batches(view):
        if n_bytes >= MAX_FETCH_BYTES:
            return b"".join(out)
        made = _readable(raw)
        n_bytes += MAX_FETCH_BYTES if REASON.encode() in bytes(made) else len(made)
        out.append(made)
        at += len(raw)
    return b"".join((*out, view[at:]))


def _batches(view: memoryview) -> Iterator[memoryview]:
    at = 0
    while len(view) - at >= _FRAME.size:
        end = at + _FRAME.size + _FRAME.unpack_from(view, at)[1]
        if end > len(view):
            return
        yield view[at:end]
        at = end


def _readable(raw: memoryview) -> bytes | memoryview:
    if len(raw) < _HEAD.size or raw[_MAGIC_AT] != _MAGIC:
        return raw  # No broker of ours writes one; the library has its own words for it.
    batch = _Batch.of(raw)
    if batch.attributes & _CONTROL:
        return raw
    try:
        return _plain(batch, bytes(raw))
    except _TooLargeError as error:
        return _instead(batch, str(error))
    except Exception:  # noqa: BLE001 -- whatever a program writes, it ends no gateway
        return _instead(batch, _DAMAGED)


def _plain(batch: _Batch, raw: bytes) -> bytes:
    """Return a batch without compression, with stand-ins for records that cannot be read."""
    if not DefaultRecordBatch(raw).validate_crc():
        raise CorruptRecordException("the sum over the batch")
    if batch.n_records > MAX_BATCH_RECORDS:
        raise _TooLargeError(_TOO_MANY)
    codec = batch.attributes & _CODEC
    records = bytes(_decompressed(batch.records, codec) if codec else batch.records)
    fine = all(one.n_headers <= MAX_HEADERS for one in _records(records, batch.n_records))
    whole = batch.holding(records, batch.n_records) if codec else raw
    return whole if fine and _reads(whole) else _sifted(batch, records)


def _decompressed(packed: memoryview, codec: int) -> memoryview:
    """Return the records of a batch, which are no more than a batch may hold."""
    if codec not in _INTO:
        raise CorruptRecordException(f"codec {codec}")
    # Most are small, and room of eight mebibytes takes time to make.
    for size in sorted({min(_USUAL_RATIO * len(packed), MAX_BATCH_BYTES), MAX_BATCH_BYTES}):
        if (records := _within(size, bytes(packed), codec)) is not None:
            return records
    raise _TooLargeError(_TOO_LARGE)


def _within(size: int, packed: bytes, codec: int) -> memoryview | None:
    """Decompress into so many bytes; None where it is more."""
    room = bytearray(size)
    try:
        return memoryview(room)[: _INTO[codec](packed, room)]
    except cramjam.DecompressionError as error:
        if not any(words in str(error) for words in _NO_ROOM):
            raise
        return None


_NO_ROOM = ("failed to write whole buffer", "is smaller than required")
"""What cramjam says where the output does not fit."""


def _unsnapped(packed: bytes, room: bytearray) -> int:
    """Decompress snappy, bare or in the blocks of Java's clients; return how much it is."""
    if packed[: len(_XERIAL)] != _XERIAL:
        return int(cramjam.snappy.decompress_raw_into(packed, room))
    n_bytes, at, view = 0, _XERIAL_HEAD, memoryview(room)
    while at < len(packed):
        (size,) = struct.unpack_from(">i", packed, at)
        block = packed[at + 4 : at + 4 + size]
        if size <= 0 or len(block) != size:
            raise CorruptRecordException("a block of snappy")
        n_bytes += cramjam.snappy.decompress_raw_into(block, view[n_bytes:])
        at += 4 + size
    return n_bytes


_INTO: dict[int, Callable[[bytes, bytearray], int]] = {
    _GZIP: cramjam.gzip.decompress_into,
    _SNAPPY: _unsnapped,
    _LZ4: cramjam.lz4.decompress_into,
    _ZSTD: cramjam.zstd.decompress_into,
}


def _reads(raw: bytes) -> bool:
    """Tell whether the client can read a batch without compression to its end.

    A record's place is what its writer says; it counts only where it lies behind the others'.
    """
    try:
        batch = DefaultRecordBatch(raw)
        least, end = batch.base_offset, batch.next_offset
        for one in batch:
            if not least <= one.offset < end:
                return False
            least = one.offset + 1
    except _BROKEN:
        return False
    return True


@dataclass(slots=True)
class _Record:
    """Where a record lies among others, and what it says before its headers."""

    start: int
    end: int
    time_delta: int
    offset_delta: int
    n_headers: int


def _records(records: bytes, count: int) -> Iterator[_Record]:
    """Yield the places of the records of a batch without reading them.

    Raises:
        CorruptRecordException, IndexError, ValueError: they are none.
    """
    data, at = bytearray(records) + _PAST_END, 0
    for _ in range(count):
        size, begin = decode_varint(data, at)
        end = begin + size
        if size <= 0 or end > len(records):
            raise CorruptRecordException("a record's size")
        _, begin = decode_varint(data, begin)  # Its attributes: a byte, but the client says so.
        time_delta, begin = decode_varint(data, begin)
        offset_delta, begin = decode_varint(data, begin)
        for _part in ("key", "value"):
            n_bytes, begin = decode_varint(data, begin)
            begin += max(n_bytes, 0)
            if begin > end:
                raise CorruptRecordException("the size of a key or a value")
        yield _Record(at, end, time_delta, offset_delta, decode_varint(data, begin)[0])
        at = end


def _sifted(batch: _Batch, records: bytes) -> bytes:
    """Return a batch with a stand-in for each record that the client cannot read."""
    out = bytearray()
    for one in _records(records, batch.n_records):
        record, why = records[one.start : one.end], ""
        if one.n_headers > MAX_HEADERS:
            why = _HEADERS
        elif not _reads(batch.holding(record, 1)):
            why = _NAME
        out += _stand_in(one.time_delta, one.offset_delta, why) if why else record
    whole = batch.holding(bytes(out), batch.n_records)
    if not _reads(whole):
        raise CorruptRecordException("records that belong to no batch")
    return whole


def _instead(batch: _Batch, reason: str) -> bytes:
    """Return what stands for a whole batch: a record where its last one is."""
    return batch.holding(_stand_in(0, batch.last_offset_delta, reason), 1)


def _stand_in(time_delta: int, offset_delta: int, reason: str) -> bytes:
    body = bytearray(b"\0")
    for number in (time_delta, offset_delta, -1, -1, 1):  # No key, no value, a header.
        encode_varint(number, body.append)
    for text in (REASON.encode(), reason.encode()):
        encode_varint(len(text), body.append)
        body += text
    record = bytearray()
    encode_varint(len(body), record.append)
    return bytes(record + body)
