"""From a record of the prediction stream to a row of the log, and the row's canonical bytes; pure.

In: a Kafka record. Out: an `Item`: a row, a record that only ended an attempt, or a record that no
row can hold. The chain of a partition is `sha256(chain || canonical(rows))` over its rows in the
order of their offsets.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Protocol

import msgspec
from asyncpg.pgproto.pgproto import UUID
from google.protobuf.message import DecodeError

from inferbus_schemas import envelope, ids, terminal
from inferbus_schemas import messages as m

COLUMNS: Final = (
    "request_id",
    "k_partition",
    "k_offset",
    "ts",
    "tenant",
    "model",
    "version",
    "artifact_sha256",
    "experiment",
    "variant",
    "outcome",
    "served_by",
    "degraded",
    "attempt",
    "latency_us",
    "queue_us",
    "batch_size",
    "input_sha256",
    "output_sha256",
    "input",
    "output",
    "policy_version",
    "client_request_id",
    "batch_id",
    "batch_row",
    "idem_key",
    "principal",
    "engine_us",
    "error_code",
    "error_message",
    "k_era",
)
"""All columns of `log.predictions`, in table order."""

PAYLOADS: Final = frozenset({"input", "output"})
CHAINED: Final = tuple(name for name in COLUMNS if name not in PAYLOADS)
"""The columns that the chain covers, in table order; payloads are covered by their digests."""

NO_CHAIN: Final = bytes(32)
"""The chain before the first row."""

_INPUT_AT: Final = COLUMNS.index("input")
_OUTPUT_AT: Final = COLUMNS.index("output")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_INT64_MAX: Final = (1 << 63) - 1
_ROW_OVERHEAD_BYTES: Final = 512
_encode: Final = msgspec.msgpack.Encoder().encode

Row = tuple[Any, ...]
Kind = Literal["row", "attempt", "unreadable", "hole"]


class Record(Protocol):
    """What a row is made from; aiokafka's records have this shape."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Whose copy a record becomes, and what stood around its value."""

    tenant: str
    key: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Item(msgspec.Struct, frozen=True, gc=False):
    """What one record, or one hole between records, means to the log.

    Invariants: `row` and `canonical` are there exactly for the kind `row`; `error` is not empty
    where the record's `value` belongs into the quarantine (with a row too, if that row holds less
    than the record); `end` is the next offset; `answer` is there where a terminal record's tenant
    reads its own.
    """

    offset: int
    end: int
    kind: Kind
    id: bytes = b""
    size_bytes: int = 0
    row: Row | None = None
    canonical: bytes = b""
    value: bytes = b""
    error: str = ""
    traceparent: str = ""
    answer: Answer | None = None


def read(
    record: Record, era: int, *, traced: bool = False, answered: frozenset[str] = frozenset()
) -> Item:
    """Return what this record means; never raises, whatever the record holds.

    Args:
        record: from the prediction stream, `timestamp` in milliseconds.
        era: of the partition, see `positions.Stored`.
        traced: whether to look for the trace context.
        answered: tenants whose records are copied to topics of their own.
    """
    value = record.value or b""
    try:
        prediction = m.Prediction.FromString(value)
    except DecodeError:
        return _unreadable(record, value, "not a Prediction")
    request_id = prediction.id
    if not ids.is_uuid7(request_id):
        return _unreadable(record, value, "its id is not a UUIDv7")
    offset = record.offset
    if not terminal.is_terminal(prediction.outcome):
        return Item(offset, offset + 1, "attempt", request_id, 64)
    row, canonical, fits = _row(prediction, record, era)
    if not fits:
        row, canonical = reduced(row)
    return Item(
        offset,
        offset + 1,
        "row",
        request_id,
        len(value) + _ROW_OVERHEAD_BYTES,
        row,
        canonical,
        value,
        "" if fits else "a text with NUL or a number over 2^63",
        envelope.traceparent(record.headers) if traced else "",
        Answer(prediction.tenant, record.key, record.headers)
        if answered and prediction.tenant in answered
        else None,
    )


def _row(prediction: m.Prediction, record: Record, era: int) -> tuple[Row, bytes, bool]:
    """Return a row, its canonical bytes and whether Postgres can hold its values."""
    request_id = prediction.id
    stamp_ms = max(record.timestamp, 0)
    tenant, model, served_by = prediction.tenant, prediction.model, prediction.served_by
    client_request_id = prediction.client_request_id or None
    error_code, error_message = prediction.error_code or None, prediction.error_message or None
    latency_us, queue_us = prediction.latency_us, prediction.queue_us
    engine_us = prediction.engine_us
    texts = f"{tenant}{model}{served_by}{client_request_id}{error_code}{error_message}"
    fits = "\x00" not in texts and max(latency_us, queue_us, engine_us) <= _INT64_MAX
    head = (
        tenant,
        model,
        prediction.version,
        prediction.version_sha256 or None,
        None,
        None,
        m.outcome_name(prediction.outcome),
        served_by,
        prediction.degraded,
        prediction.attempt,
        latency_us,
        queue_us,
        prediction.batch_size,
        prediction.input_sha256 or None,
        prediction.output_sha256 or None,
    )
    tail = (
        None,
        client_request_id,
        prediction.batch_id or None,
        prediction.batch_row,
        None,
        None,
        engine_us,
        error_code,
        error_message,
        era,
    )
    place = (record.partition, record.offset)
    canonical = _encode((request_id, *place, stamp_ms * 1000, *head, *tail))
    payload = (prediction.inputs or None, prediction.outputs or None)
    row = (UUID(request_id), *place, _time(stamp_ms), *head, *payload, *tail)
    return row, canonical, fits


@functools.lru_cache(maxsize=256)
def _time(stamp_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=stamp_ms)


def _unreadable(record: Record, value: bytes, error: str) -> Item:
    # Its digest stands in for an id, so that the place can still be recognised.
    return Item(
        record.offset,
        record.offset + 1,
        "unreadable",
        hashlib.sha256(value).digest()[:16],
        len(value) + _ROW_OVERHEAD_BYTES,
        value=value,
        error=error,
    )


def hole(start: int, end: int) -> Item:
    """Return an item for offsets that hold no record, such as the markers of transactions."""
    return Item(start, end, "hole")


def reduced(row: Row) -> tuple[Row, bytes]:
    """Return the row with its payload left to its digests and values that any row can hold."""
    values = [_holdable(value) for value in row]
    values[_INPUT_AT] = values[_OUTPUT_AT] = None
    small = tuple(values)
    return small, canonical_of([v for at, v in enumerate(small) if COLUMNS[at] not in PAYLOADS])


def _holdable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, int) and not isinstance(value, bool):
        return min(value, _INT64_MAX)
    return value


def canonical_of(chained: Sequence[Any]) -> bytes:
    """Return the canonical bytes of a row from the values of `CHAINED`, as a database gives them.

    msgpack of one array: the id as 16 bytes, the time as integer microseconds since 1970.
    """
    request_id, partition, offset, stamp, *rest = chained
    return _encode((request_id.bytes, partition, offset, (stamp - _EPOCH) // _MICROSECOND, *rest))


def chain(previous: bytes, canonical_rows: Iterable[bytes]) -> bytes:
    """Return sha256(previous || canonical rows), the rows in the order of their offsets."""
    digest = hashlib.sha256(previous)
    for each in canonical_rows:
        digest.update(each)
    return digest.digest()
