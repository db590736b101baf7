"""Rows, batches and positions: the parts that do no I/O."""

from __future__ import annotations

import datetime as dt
import hashlib
import random
import uuid
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from inferbus_kit.errors import StartupError
from inferbus_kit.metrics import logger_metrics
from inferbus_kit.settings import load
from inferbus_logger import lanes, partitions, plan, positions, rows
from inferbus_logger.lanes import Board
from inferbus_logger.plan import Batch, Buffer
from inferbus_logger.positions import Begin, Bus, Resume, Skip, Stop, Stored
from inferbus_logger.rows import Item
from inferbus_logger.settings import MAX_ANSWER_TENANTS, LoggerSettings
from inferbus_logger.sink import Planned, Written
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from tests.support import predictions

NOW_MS = 1_764_000_000_123


@dataclass(frozen=True)
class Record:
    value: bytes | None
    offset: int = 5
    partition: int = 2
    timestamp: int = NOW_MS
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = field(default=())


def _read(made: m.Prediction, offset: int = 5) -> Item:
    return rows.read(Record(made.SerializeToString(), offset), 1)


def test_the_canonical_bytes_are_as_documented() -> None:
    made = predictions.prediction(random.Random(1), NOW_MS, client_request_id="c")
    item = _read(made)
    assert item.row is not None
    by_name = dict(zip(rows.COLUMNS, item.row, strict=True))
    chained = [value for name, value in by_name.items() if name not in {"input", "output"}]
    chained[0] = made.id
    chained[3] = NOW_MS * 1000
    assert item.canonical == msgspec.msgpack.encode(chained)
    # What a database gives back leads to the same bytes.
    stored = [value for name, value in by_name.items() if name not in {"input", "output"}]
    stored[0] = uuid.UUID(bytes=made.id)
    assert rows.canonical_of(stored) == item.canonical
    assert by_name["ts"] == dt.datetime.fromtimestamp(NOW_MS / 1000, dt.UTC)
    assert (by_name["k_partition"], by_name["k_offset"], by_name["k_era"]) == (2, 5, 1)
    assert (by_name["outcome"], by_name["client_request_id"]) == ("ok", "c")


def test_a_chain_is_one_digest_over_rows_in_order() -> None:
    start = bytes(32)
    assert rows.chain(start, [b"a", b"bc"]) == hashlib.sha256(start + b"abc").digest()


@pytest.mark.parametrize(
    ("outcome", "name"),
    [(m.OUTCOME_FAILED, "failed"), (77, "unknown_77"), (m.OUTCOME_UNSPECIFIED, "unspecified")],
)
def test_every_outcome_but_a_failed_attempt_is_a_row(outcome: m.Outcome, name: str) -> None:
    item = _read(predictions.prediction(random.Random(1), NOW_MS, outcome=outcome))
    assert item.kind == "row"
    assert item.row is not None
    assert item.row[rows.COLUMNS.index("outcome")] == name
    attempt = predictions.prediction(random.Random(1), NOW_MS, outcome=m.OUTCOME_ATTEMPT_FAILED)
    assert _read(attempt).kind == "attempt"


@pytest.mark.parametrize("value", [None, b"", b"\xff\xff", b"\x0a\x05hello"])
def test_what_is_no_prediction_is_kept_raw(value: bytes | None) -> None:
    item = rows.read(Record(value), 0)
    assert (item.kind, item.value, item.row) == ("unreadable", value or b"", None)
    assert item.error


@given(value=st.binary(max_size=300))
def test_no_record_stops_the_reader(value: bytes) -> None:
    item = rows.read(Record(value), 0)
    assert item.end == item.offset + 1


def test_a_row_that_no_table_holds_is_reduced_and_said_so() -> None:
    made = predictions.prediction(random.Random(1), NOW_MS, client_request_id="a\x00b")
    made.latency_us = (1 << 64) - 1
    item = _read(made)
    assert item.row is not None
    by_name = dict(zip(rows.COLUMNS, item.row, strict=True))
    assert item.error
    assert item.value == made.SerializeToString()
    assert (by_name["input"], by_name["output"]) == (None, None)
    assert by_name["client_request_id"] == "a\ufffdb"
    assert by_name["latency_us"] == (1 << 63) - 1
    assert by_name["output_sha256"] == made.output_sha256


def _item(offset: int, request: int, kind: str = "row", size_bytes: int = 10) -> Item:
    row = (request,) if kind == "row" else None
    return Item(offset, offset + 1, kind, request.to_bytes(16, "big"), size_bytes, row)  # type: ignore[arg-type]


@given(
    records=st.lists(
        st.tuples(
            st.sampled_from(["row", "row", "row", "attempt", "unreadable", "hole"]),
            st.integers(0, 8),
            st.sampled_from([10, 3 << 20, 9 << 20]),
        ),
        max_size=60,
    ),
    takes=st.lists(st.booleans(), max_size=60),
)
def test_batches_cover_every_offset_once_and_hold_the_first_of_each_id(
    records: list[tuple[str, int, int]], takes: list[bool]
) -> None:
    buffer, batches, seen = Buffer(0, 100), [], []
    decisions = iter(takes)

    def take() -> None:
        batch = buffer.take(3, 0.0)
        batches.append(batch)
        buffer.remember(batch)

    for kind, request, size in records:
        at = buffer.end
        if kind == "hole":
            buffer.offer(rows.hole(at, at + request + 1), 0.0)
        else:
            buffer.offer(_item(at, request, kind, size), 0.0)
        seen.append((at, kind, request))
        if next(decisions, False):
            take()
    while len(buffer):
        take()
    at = 100
    for batch in batches:
        assert batch.base == at
        assert batch.end > at
        at = batch.end
        counted = len(batch.rows) + batch.n_dups + batch.n_nonterminal + batch.n_quarantined
        assert counted == (batch.end - batch.base if batch.kind == "data" else 0)
        assert [item.offset for item in batch.rows] == sorted({i.offset for i in batch.rows})
    assert at == buffer.end
    assert buffer.n_bytes == 0
    first: dict[int, int] = {}
    for offset, kind, request in seen:
        if kind == "row":
            first.setdefault(request, offset)
    found = [item.offset for batch in batches for item in batch.rows]
    assert found == sorted(first.values())


def test_a_batch_closes_by_count_bytes_or_time() -> None:
    buffer = Buffer(0, 0)
    assert buffer.due_s() is None
    buffer.offer(_item(0, 0), 7.0)
    assert buffer.due_s() == 7.0 + plan.LINGER_S
    for n in range(1, plan.MAX_RECORDS + 1):
        buffer.offer(_item(n, n), 8.0)
    assert buffer.due_s() == 0.0
    assert buffer.take(0, 9.0).end == plan.MAX_RECORDS
    assert buffer.due_s() == 9.0 + plan.LINGER_S
    buffer.offer(_item(plan.MAX_RECORDS + 1, 5000, size_bytes=plan.MAX_BYTES), 9.0)
    assert buffer.due_s() == 0.0


def test_a_missing_offset_is_refused() -> None:
    buffer = Buffer(0, 10)
    for offset in (9, 11):
        with pytest.raises(ValueError, match="offset"):
            buffer.offer(_item(offset, 1), 0.0)


TOPIC = bytes(range(16))
STORED = Stored(3, TOPIC, 0, 10, 50, b"id", b"chain")


@pytest.mark.parametrize(
    ("stored", "bus", "decision"),
    [
        (None, Bus(TOPIC, 7, 90), Begin(7)),
        (STORED, Bus(TOPIC, 0, 90), Resume(50, b"id")),
        (STORED, Bus(TOPIC, 0, 50), Resume(50, b"id")),
        # The record before is gone by retention, or was never logged: nothing to compare.
        (STORED, Bus(TOPIC, 50, 90), Resume(50, b"")),
        (Stored(3, TOPIC, 0, 50, 50, b"id", b"chain"), Bus(TOPIC, 0, 90), Resume(50, b"")),
        (STORED, Bus(TOPIC, 60, 90), Skip(60)),
    ],
)
def test_positions(stored: Stored | None, bus: Bus, decision: positions.Decision) -> None:
    assert positions.decide(stored, bus) == decision


@pytest.mark.parametrize("bus", [Bus(bytes(16), 0, 90), Bus(TOPIC, 0, 49), Bus(TOPIC, 60, 49)])
def test_what_kafka_lost_stops_a_partition_with_advice(bus: Bus) -> None:
    decision = positions.decide(STORED, bus)
    assert isinstance(decision, Stop)
    assert "inferbus log rewind --partition 3" in decision.reason


@given(unix_ms=st.integers(0, (1 << 47) - 1), entropy=st.integers(0, (1 << 80) - 1))
def test_an_id_lies_in_the_partition_of_its_day(unix_ms: int, entropy: int) -> None:
    made = ids.uuid7(unix_ms, entropy)
    day = partitions.day_of(made)
    if day is None:
        assert unix_ms > 253_402_300_799_999
        return
    low, high = partitions.bounds(day)
    assert low <= uuid.UUID(bytes=made) < high
    midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
    assert midnight.timestamp() * 1000 <= unix_ms < midnight.timestamp() * 1000 + 86_400_000


def test_made_up_ids_make_no_tables() -> None:
    today = dt.datetime.fromtimestamp(NOW_MS / 1000, dt.UTC).date()
    items = tuple(
        _read(predictions.prediction(random.Random(1), NOW_MS + days * 86_400_000))
        for days in (0, 1, -30, 40, -400)
    )
    wanted = partitions.wanted([Batch(0, 0, 0, 5, rows=items)], frozenset())
    assert wanted == {today, today + dt.timedelta(days=1), today - dt.timedelta(days=30)}


def test_only_so_many_tenants_may_read_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERBUS_POSTGRES_URL", "postgresql://nowhere")
    tenants = [f"t{number}" for number in range(MAX_ANSWER_TENANTS)]
    monkeypatch.setenv("INFERBUS_ANSWER_TENANTS", ",".join([*tenants, *tenants]))
    assert load(LoggerSettings).answer_tenants == tuple(tenants)
    monkeypatch.setenv("INFERBUS_ANSWER_TENANTS", ",".join([*tenants, "another"]))
    with pytest.raises(StartupError, match="INFERBUS_ANSWER_TENANTS: at most 200 tenants"):
        load(LoggerSettings)


class Writing:
    """Lanes at offset 0, told the time, each with a record that is due."""

    def __init__(self, *partitions: int) -> None:
        self.now_s = 1000.0
        self.board = Board(logger_metrics(CollectorRegistry()), lambda: self.now_s)
        self.board.assign(partitions)
        for partition in partitions:
            self.fill(partition)

    def fill(self, partition: int) -> None:
        """Open a lane anew, with the record that it reads first."""
        lane = self.board.lanes[partition]
        stored = Stored(partition, b"", 0, 0, lane.next_offset, b"", b"")
        lane.begin(stored, Resume(lane.next_offset, b""))
        lane.sought()
        assert lane.buffer is not None
        lane.buffer.offer(rows.hole(lane.next_offset, lane.next_offset + 1), 0.0)

    def taken(self) -> list[Planned]:
        return self.board.work()[0]

    def commit(self, planned: list[Planned], *, fill: bool = True) -> None:
        self.board.committed(planned, [Written(each.batch, b"") for each in planned])
        for each in planned if fill else ():
            self.fill(each.batch.partition)


def _numbers(planned: list[Planned]) -> list[int]:
    return [each.batch.partition for each in planned]


def test_lanes_that_wait_for_answers_go_by_themselves_until_they_commit() -> None:
    at = Writing(0, 1, 2, 3)
    together = at.taken()
    assert _numbers(together) == [0, 1, 2, 3]
    at.board.set_apart(together[:2])
    at.commit(together[2:])
    at.fill(0)
    at.fill(1)
    others = at.taken()
    assert _numbers(others) == [2, 3]
    assert at.board.work() == ([], at.now_s + 0.1)
    at.commit(others)
    at.now_s += 0.1
    apart = [at.taken(), at.taken()]
    assert sorted(map(_numbers, apart)) == [[0, 1], [2, 3]]
    (waiting,) = (each for each in apart if _numbers(each) == [0, 1])
    at.commit(waiting[:1])
    at.board.set_apart(waiting[1:])
    at.fill(1)
    at.now_s += 0.1
    assert _numbers(at.taken()) == [0]
    at.now_s += 0.1  # twice as long as the first time
    assert _numbers(at.taken()) == [1]


def test_a_lane_that_waits_for_answers_is_tried_however_much_the_others_have() -> None:
    at = Writing(*range(16))
    together = at.taken()
    while more := at.taken():
        together += more
    at.board.set_apart([each for each in together if each.batch.partition == 0])
    at.commit([each for each in together if each.batch.partition != 0], fill=False)
    at.fill(0)
    for _ in range(5):
        at.now_s += 0.2
        for lane in at.board.lanes.values():
            buffer = lane.buffer
            assert buffer is not None
            while lane.partition and len(buffer) < plan.MAX_RECORDS:
                row_id = bytes([lane.partition]) + buffer.end.to_bytes(15, "big")
                buffer.offer(rows.Item(buffer.end, buffer.end + 1, "row", row_id, 1), at.now_s)
        taken = [at.taken(), at.taken()]
        if [0] in map(_numbers, taken):
            return
        for planned in taken:
            at.commit(planned, fill=False)
    raise AssertionError("the others went before it each time")


def test_only_one_transaction_at_a_time_waits_for_answers() -> None:
    at = Writing(0, 1)
    at.board.set_apart(at.taken())
    at.fill(0)
    at.now_s += 10
    first = at.taken()
    at.fill(1)
    assert _numbers(first) == [0]
    assert at.board.work() == ([], None)
    at.commit(first)
    assert sorted(_numbers(at.taken() + at.taken())) == [0, 1]


def test_what_waits_for_answers_crowds_no_other_partition() -> None:
    at = Writing(0, 1)
    at.board.set_apart(at.taken()[:1])
    at.fill(0)
    waits, goes = at.board.lanes[0].buffer, at.board.lanes[1].buffer
    assert waits is not None
    assert goes is not None
    for end in range(2, plan.MAX_RECORDS + 1):
        assert at.board.held_back() == set()
        waits.offer(rows.hole(end - 1, end), 0.0)
    assert at.board.held_back() == {0}
    waits.n_bytes += lanes.ROOM_BYTES + 1
    assert not at.board.crowded()
    goes.n_bytes += lanes.ROOM_BYTES + 1
    assert at.board.crowded()
    at.board.reopen([0])
    assert at.board.held_back() == set()
