"""Batches as programs may write them: readable afterwards, within bounds, every offset told of."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from typing import Any

import pytest
from aiokafka.record.default_records import (
    DefaultRecordBatchBuilder,
    _DefaultRecordBatchBuilderPy,
)
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c, encode_varint
from hypothesis import given, settings
from hypothesis import strategies as st

from inferbus_guard import batches
from inferbus_guard.batches import MAX_BATCH_BYTES, REASON, readable

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
BASE = 100


class NoText(str):
    """A header's name that is not UTF-8."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return b"\xff\xfe"


def batch(
    values: list[bytes | None], codec: int = 0, *, base: int = BASE, odd: tuple[int, ...] = ()
) -> bytes:
    """Return a batch as a broker gives it; records `odd` have a header that is no text."""
    kind = _DefaultRecordBatchBuilderPy if odd else DefaultRecordBatchBuilder
    builder = kind(2, codec, 0, -1, -1, -1, 1 << 30)
    for at, value in enumerate(values):
        name = NoText("x") if at in odd else "x"
        builder.append(at, 1_000 + at, b"key", value, [(name, b"v")])
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, base)
    return bytes(raw)


def written(*records: bytes, codec: int = 0) -> bytes:
    """Return a batch of records as a program of its own writes them, each without its size."""
    raw = bytearray(batch([b""] * len(records)))[:61]
    body = b"".join(number(len(one)) + one for one in records)
    raw += gzip.compress(body) if codec else body
    raw[22] |= codec
    struct.pack_into(">i", raw, 8, len(raw) - 12)
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
    return bytes(raw)


def number(value: int) -> bytes:
    """Return a number as it stands in a record."""
    out = bytearray()
    encode_varint(value, out.append)
    return bytes(out)


def told(fetched: bytes) -> list[tuple[int, Any]]:
    """Return offset and value of each record, or why it is none, as the client reads them."""
    records, out = MemoryRecords(fetched), []
    while records.has_next():
        one = records.next_batch()
        assert one is not None
        assert one.validate_crc()
        for record in one:
            why = dict(record.headers).get(REASON)
            out.append((record.offset, record.value if why is None else why.decode()))
    return out


def measured(fetched: bytes) -> tuple[bytes, int]:
    """Return what becomes of a fetch, and the most bytes that were held for it."""
    tracemalloc.start()
    try:
        made = readable(fetched)
        return made, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_batch_is_the_same_without_its_compression(codec: int) -> None:
    values = [b"a" * 500, None, b"", b"b" * 70_000]
    made = readable(batch(values, codec))
    assert told(made) == [(BASE + at, value) for at, value in enumerate(values)]
    assert made == batch(values), "nothing else of it changes"


@pytest.mark.parametrize("codec", [1, 2, 3, 4], ids=list(CODECS)[1:])
def test_what_is_too_much_is_never_held(codec: int) -> None:
    bomb = batch([bytes(1 << 20)] * 64, codec)
    made, most_bytes = measured(bomb)
    assert told(made) == [(BASE + 63, "its batch has over 8 MiB when it is decompressed")]
    assert most_bytes < MAX_BATCH_BYTES + 2 * len(bomb) + (1 << 20)


def test_a_batch_of_too_many_records_is_told_of_once() -> None:
    n = batches.MAX_BATCH_RECORDS + 1
    assert told(readable(batch([b""] * n, 4))) == [
        (BASE + n - 1, "its batch has over 65536 records")
    ]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_of_a_batch_only_what_cannot_be_read_is_told_of(codec: int) -> None:
    made = readable(batch([b"0", b"1", b"2", b"3"], codec, odd=(1, 3)))
    odd = "the name of a header is not UTF-8"
    assert told(made) == [(BASE, b"0"), (101, odd), (102, b"2"), (103, odd)]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_record_of_many_headers_is_told_of_and_never_read(codec: int) -> None:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    large, most = bytes(20_000), batches.MAX_HEADERS
    for at, n_headers in enumerate([most, most + 1, 1_000_000, 0]):
        builder.append(at, 1_000, None, large, [("", None)] * n_headers)
    raw = bytes(builder.build())
    del builder
    made, most_bytes = measured(raw)
    over = "it has over 100 headers"
    assert told(made) == [(0, large), (1, over), (2, over), (3, large)]
    assert most_bytes < 24 << 20


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("codec", [0, 1])
@pytest.mark.parametrize("at", ["key", "value"])
def test_a_length_that_says_more_than_there_is_is_damage(at: str, codec: int, large: bool) -> None:  # noqa: FBT001
    """Brokers take it: they read 32 bits of a number, so that 2^31 + 1 is 1 to them."""
    far, value = number((1 << 31) + 1) + b"k", b"v" * (20_000 if large else 1)
    key = far if at == "key" else number(-1)
    said = far if at == "value" else number(len(value)) + value
    raw = written(b"\0\0\0" + key + said + b"\0", codec=codec)
    assert told(readable(raw)) == [(BASE, "its batch is damaged, or compressed as nobody knows")]


@pytest.mark.parametrize("delta", [-1, 1, 1 << 40])
def test_a_record_of_another_place_is_damage(delta: int) -> None:
    """Brokers take what a writer says of places inside a batch that is not compressed."""
    body = b"\0\0" + number(delta) + number(-1) * 2 + b"\0"
    damaged = "its batch is damaged, or compressed as nobody knows"
    assert told(readable(written(body))) == [(BASE, damaged)]


def test_places_do_not_go_back() -> None:
    rest = number(-1) * 2 + b"\0"
    damaged = (BASE + 1, "its batch is damaged, or compressed as nobody knows")
    assert told(readable(written(b"\0\0\2" + rest, b"\0\0\0" + rest))) == [damaged]
    assert told(readable(written(b"\0\0\0" + rest, b"\0\0\2" + rest))) == [(100, None), (101, None)]


def test_what_is_damaged_stands_where_it_was_and_others_are_read() -> None:
    good, after = batch([b"good"]), batch([b"after"], base=BASE + 4)
    torn = bytearray(batch([b"1", b"2", b"3"], base=BASE + 1))
    torn[-1] ^= 1
    damaged = "its batch is damaged, or compressed as nobody knows"
    made = readable(good + bytes(torn))
    assert told(made + readable(after)) == [(100, b"good"), (103, damaged), (104, b"after")]


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5, 7])
def test_a_codec_that_is_another_or_unknown_is_damage(codec: int) -> None:
    raw = bytearray(batch([b"1", b"2"]))
    raw[22] |= codec
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
    assert [offset for offset, _ in told(readable(bytes(raw)))] == [101]


def test_a_fetch_is_bounded_and_goes_on_where_it_ended() -> None:
    large = [batch([bytes(5 << 20)], 4, base=at) for at in range(4)]
    assert [offset for offset, _ in told(readable(b"".join(large)))] == [0]
    small = [batch([bytes(300 << 10)], 4, base=at) for at in range(9)]
    assert [offset for offset, _ in told(readable(b"".join(small)))] == [0, 1, 2, 3]
    bombs = [batch([bytes(1 << 20)] * 9, 4, base=at * 9) for at in range(4)]
    assert [offset for offset, _ in told(readable(b"".join(bombs)))] == [8]
    part = batch([b"x"]) + batch([b"y" * 900], base=101)[:400]
    assert readable(part) == part, "a batch that is not whole yet is the client's to know"
    assert readable(b"") == b""


def test_a_marker_of_the_broker_stays() -> None:
    raw = bytearray(batch([b"commit"]))
    raw[22] |= 0x20
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
    assert readable(bytes(raw)) == bytes(raw)


@settings(max_examples=300)
@given(
    st.sampled_from([*CODECS.values()]),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=20),
    st.booleans(),
)
def test_whatever_bytes_there_are_the_client_reads_on(
    codec: int,
    changes: list[tuple[int, int]],
    signed: bool,  # noqa: FBT001
) -> None:
    """Also where the sum over the bytes is right, which a program can make so."""
    raw = bytearray(batch([b"a" * 30, b"b" * 300, b"c" * 3], codec))
    for at, value in changes:
        raw[17 + at % (len(raw) - 17)] = value
    raw[22] &= ~0x20
    if signed:
        struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
    for offset, _ in told(readable(bytes(raw))):
        assert isinstance(offset, int)
