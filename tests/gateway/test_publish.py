"""Frames: what shares one, what is refused when Kafka never saw it, what stays when it may have."""

from __future__ import annotations

import asyncio
import hashlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from inferbus_gateway import errors
from inferbus_gateway.hot import publish
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.publish import MAX_FRAME_REQUESTS, Publisher
from inferbus_gateway.hot.replies import Replies, terminal
from inferbus_gateway.hot.requests import Waiter
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import POOL, Fleet


class Bus:
    """A producer that keeps what it is given; `error` stands for a broker that takes nothing."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.late: Exception | None = None
        self.slow = False
        self.max_bytes = 8 << 20
        self.on_their_way: list[asyncio.Future[Any]] = []
        self.sent: list[tuple[str, int, bytes]] = []

    async def send(self, topic: str, partition: int, value: bytes, **_more: Any) -> Any:
        if self.error is not None:
            raise self.error
        if len(value) > self.max_bytes:
            raise MessageSizeTooLargeError
        self.sent.append((topic, partition, value))
        done = asyncio.get_running_loop().create_future()
        if self.slow:
            self.on_their_way.append(done)
        elif self.late is not None:
            done.set_exception(self.late)
        else:
            done.set_result(SimpleNamespace(offset=len(self.sent) - 1))
        return done

    @property
    def frames(self) -> list[m.RequestFrame]:
        return [m.RequestFrame.FromString(value) for _, _, value in self.sent]


def _bus() -> Any:
    return Bus()


class Gateway:
    """Publisher, pending requests and replies around one bus."""

    def __init__(self, n_workers: int = 1) -> None:
        self.fleet = Fleet()
        for inbox in range(n_workers):
            self.fleet.worker(inbox, ("m", 1))
        self.bus = _bus()
        self.pending = Pending()
        placement = Placement(self.fleet.seen, 1)
        self.publisher = Publisher("gateway-0", self.bus, self.pending, placement)
        self.replies = Replies("", "gateway-0", self.pending, self.bus, lambda: None)
        self.replies.partition = 3
        self._count = 0
        self.ended: list[Entry] = []

    def entry(self, size_bytes: int = 10, tools: str = "") -> Entry:
        self._count += 1
        request = m.Request(
            id=ids.uuid7(1, self._count),
            model="m",
            version=1,
            tensors=bytes(size_bytes),
            reply_partition=3,
        )
        if tools:
            request.generation.tools = tools
        waiter = Waiter(self.ended.append, time.monotonic())
        made = Entry(request, POOL, n_rows=1, deadline_s=time.monotonic() + 60, waiter=waiter)
        self.pending.add(made, time.monotonic())
        return made

    def placed(self, n: int, size_bytes: int = 10) -> list[Entry]:
        made = [self.entry(size_bytes) for _ in range(n)]
        assert all(self.publisher.place(one) for one in made)
        return made


async def test_a_tick_is_one_frame_an_inbox() -> None:
    gateway = Gateway(n_workers=2)
    first = gateway.placed(20)
    await asyncio.sleep(0.01)
    assert {partition for _, partition, _ in gateway.bus.sent} == {0, 1}
    assert len(gateway.bus.sent) == 2
    sent = [request.id for frame in gateway.bus.frames for request in frame.requests]
    assert sorted(sent) == sorted(one.id for one in first)
    assert {request.attempt for frame in gateway.bus.frames for request in frame.requests} == {1}
    assert all(one.frame is not None and one.frame.offset is not None for one in first)
    gateway.placed(1)
    await asyncio.sleep(0.01)
    assert len(gateway.bus.sent) == 3


@pytest.mark.parametrize(
    ("sizes", "frames"),
    [
        ([10] * 64, [64]),
        ([10] * 65, [64, 1]),
        # A request counts 200 bytes more than its tensors for those that come after it.
        ([300_000, 786_432 - 300_200], [2]),
        ([300_000, 786_432 - 300_200 + 1], [1, 1]),
    ],
)
async def test_a_frame_holds_64_requests_or_768_kib(sizes: list[int], frames: list[int]) -> None:
    gateway = Gateway()
    for size_bytes in sizes:
        gateway.placed(1, size_bytes)
    await asyncio.sleep(0.01)
    assert [len(frame.requests) for frame in gateway.bus.frames] == frames


async def test_frames_close_at_their_count_and_at_their_bytes() -> None:
    gateway = Gateway()
    gateway.placed(2 * MAX_FRAME_REQUESTS + 1)
    await asyncio.sleep(0.01)
    counts = [len(frame.requests) for frame in gateway.bus.frames]
    assert counts == [MAX_FRAME_REQUESTS, MAX_FRAME_REQUESTS, 1]
    gateway = Gateway()
    gateway.placed(3, 300 << 10)
    gateway.placed(1, 3 << 20)
    gateway.placed(1)
    await asyncio.sleep(0.01)
    assert [len(frame.requests) for frame in gateway.bus.frames] == [2, 1, 1, 1]


async def test_what_comes_while_a_frame_is_on_its_way_shares_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "MAX_HOLD_S", 60.0)
    gateway = Gateway()
    gateway.bus.slow = True
    for n in (1, 2, 3):
        gateway.placed(n)
        await asyncio.sleep(0.01)
    assert [len(frame.requests) for frame in gateway.bus.frames] == [1]
    gateway.bus.on_their_way.pop().set_result(SimpleNamespace(offset=0))
    await asyncio.sleep(0.01)
    assert [len(frame.requests) for frame in gateway.bus.frames] == [1, 5]
    gateway.placed(1)
    gateway.bus.on_their_way.pop().set_exception(KafkaTimeoutError())
    await asyncio.sleep(0.01)
    assert [len(frame.requests) for frame in gateway.bus.frames] == [1, 5, 1]


async def test_a_frame_is_held_for_a_moment_only() -> None:
    gateway = Gateway()
    gateway.bus.slow = True
    for _ in range(3):
        gateway.placed(1)
        await asyncio.sleep(4 * publish.MAX_HOLD_S)
    assert [len(frame.requests) for frame in gateway.bus.frames] == [1, 1, 1]


async def test_a_held_frame_that_is_full_leaves_and_one_that_lost_its_worker_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "MAX_HOLD_S", 60.0)
    gateway = Gateway()
    gateway.bus.slow = True
    gateway.placed(1)
    await asyncio.sleep(0.01)
    gateway.placed(MAX_FRAME_REQUESTS)
    await asyncio.sleep(0.01)
    (last,) = gateway.placed(1)
    await asyncio.sleep(0.01)
    assert [len(frame.requests) for frame in gateway.bus.frames] == [1, MAX_FRAME_REQUESTS]
    gateway.pending.ended(last.id, 1, m.OUTCOME_DEADLINE_EXCEEDED, time.monotonic())
    for one in gateway.bus.on_their_way:
        one.set_result(SimpleNamespace(offset=0))
    await asyncio.sleep(0.01)
    assert len(gateway.bus.frames) == 2


async def test_a_stop_sends_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "MAX_HOLD_S", 60.0)
    gateway = Gateway()
    gateway.bus.slow = True
    for _ in range(2):
        gateway.placed(1)
        await asyncio.sleep(0.01)
    stopping = asyncio.create_task(gateway.publisher.stop())
    await asyncio.sleep(0.01)
    assert len(gateway.bus.frames) == 2
    for one in gateway.bus.on_their_way:
        one.set_result(SimpleNamespace(offset=0))
    await stopping


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.OverloadedError("too much is waiting for Kafka"), errors.OverloadedError),
        (errors.BusUnavailableError("Kafka takes no records"), errors.BusUnavailableError),
        (KafkaTimeoutError(), errors.BusUnavailableError),
        (MessageSizeTooLargeError(), errors.TooLargeError),
    ],
)
async def test_what_kafka_never_saw_is_refused(
    error: Exception, kind: type[errors.InferbusError]
) -> None:
    gateway = Gateway()
    gateway.bus.error = error
    (one,) = gateway.placed(1)
    await asyncio.sleep(0.02)
    assert gateway.ended == [one]
    assert type(one.waiter.error) is kind
    assert len(gateway.pending) == 0
    assert not gateway.pending.rows


@pytest.mark.parametrize("late", [KafkaTimeoutError(), errors.BusUnavailableError("no answer")])
async def test_what_kafka_may_have_seen_stays_and_is_placed_again(late: Exception) -> None:
    gateway = Gateway()
    gateway.bus.late = late
    one, ended = gateway.placed(2)
    await asyncio.sleep(0)
    gateway.pending.ended(ended.id, 1, m.OUTCOME_OK, time.monotonic())
    await asyncio.sleep(0.02)
    assert one not in gateway.ended
    assert list(gateway.pending) == [one]
    assert not gateway.pending.rows
    gateway.bus.late = None
    assert gateway.pending.to_place(time.monotonic() + 1) == [one]
    assert gateway.publisher.place(one)
    await asyncio.sleep(0.01)
    assert [[r.attempt for r in frame.requests] for frame in gateway.bus.frames] == [[1, 1], [2]]


async def test_a_fault_of_ours_leaves_nobody_waiting() -> None:
    gateway = Gateway()
    gateway.bus.error = ZeroDivisionError()
    (one,) = gateway.placed(1)
    await asyncio.sleep(0.01)
    gateway.bus.error = None
    assert gateway.pending.to_place(time.monotonic() + 1) == [one]
    assert gateway.publisher.place(one)
    await asyncio.sleep(0.01)
    assert [frame.requests[0].attempt for frame in gateway.bus.frames] == [2]


async def test_a_second_attempt_that_never_left_waits_for_a_third() -> None:
    gateway = Gateway()
    (one,) = gateway.placed(1)
    await asyncio.sleep(0.01)
    gateway.pending.ended(one.id, 1, m.OUTCOME_ATTEMPT_FAILED, time.monotonic())
    gateway.bus.error = KafkaTimeoutError()
    assert gateway.publisher.place(one)
    await asyncio.sleep(0.01)
    assert one not in gateway.ended
    gateway.bus.error = None
    assert gateway.pending.to_place(time.monotonic() + 20) == [one]
    assert gateway.publisher.place(one)
    await asyncio.sleep(0.01)
    assert [frame.requests[0].attempt for frame in gateway.bus.frames] == [1, 2]


async def test_what_ends_or_loses_its_worker_within_the_tick_is_not_sent() -> None:
    gateway = Gateway()
    ended, lost, stays = gateway.placed(3)
    gateway.pending.ended(ended.id, 1, m.OUTCOME_OK, time.monotonic())
    lost.frame = None
    await asyncio.sleep(0.01)
    assert [[r.id for r in frame.requests] for frame in gateway.bus.frames] == [[stays.id]]


async def test_without_a_worker_nothing_is_placed() -> None:
    gateway = Gateway(n_workers=0)
    one = gateway.entry()
    assert not gateway.publisher.place(one)
    assert one.attempt == 0
    assert gateway.pending.to_place(time.monotonic()) == [one]


def record(offset: int, value: bytes | None) -> Any:
    return SimpleNamespace(offset=offset, value=value)


async def test_records_end_what_they_name_and_nothing_else() -> None:
    gateway = Gateway()
    one, other = gateway.placed(2)
    await asyncio.sleep(0.01)
    said = [
        m.Prediction(id=bytes(16), outcome=m.OUTCOME_OK),
        m.Prediction(id=one.id, attempt=1, outcome=m.OUTCOME_ATTEMPT_FAILED),
        m.Prediction(id=one.id, attempt=1, outcome=m.OUTCOME_OK),
        m.Prediction(id=one.id, attempt=2, outcome=m.OUTCOME_FAILED),
    ]
    raw = [b"\xff\xff", None, *(each.SerializeToString() for each in said)]
    gateway.replies.apply([record(at, value) for at, value in enumerate(raw)], time.monotonic())
    assert one.waiter.prediction == said[2]
    assert one.waiter.offset == 4
    assert gateway.ended == [one]
    assert gateway.replies.n_undecodable == 1
    assert list(gateway.pending) == [other]


async def test_our_own_record_is_sent_until_kafka_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inferbus_gateway.hot.replies._AGAIN_S", 0.01)
    gateway = Gateway()
    (one,) = gateway.placed(1)
    await asyncio.sleep(0.01)
    gateway.bus.sent.clear()
    gateway.bus.error = KafkaTimeoutError()
    gateway.replies.end(one, m.OUTCOME_DEADLINE_EXCEEDED, "deadline_exceeded", "too late")
    await asyncio.sleep(0.05)
    gateway.bus.error = None
    await asyncio.sleep(0.05)
    ((topic, partition, value),) = gateway.bus.sent
    assert (topic, partition) == ("inferbus.inference.predictions.v1", 3)
    said = m.Prediction.FromString(value)
    assert (said.id, said.attempt, said.outcome) == (one.id, 1, m.OUTCOME_DEADLINE_EXCEEDED)
    assert said.inputs == one.request.tensors
    await gateway.replies.stop()


@pytest.mark.parametrize("n_bytes", [0, 65_536, 65_537])
def test_our_own_record_has_inputs_up_to_64_kib_and_always_their_digest(n_bytes: int) -> None:
    request = m.Request(id=bytes(16), tensors=b"x" * n_bytes)
    said = terminal(request, 1, m.OUTCOME_FAILED, "no_worker", "nobody is there", "gateway-0")
    assert said.inputs == (request.tensors if n_bytes <= 65_536 else b"")
    assert said.input_sha256 == hashlib.sha256(request.tensors).digest()


async def test_what_a_request_asks_for_counts_as_its_tensors_do() -> None:
    gateway = Gateway()
    for _ in range(3):
        one = gateway.entry(tools="x" * (300 << 10))
        assert one.size_bytes > 300 << 10
        assert gateway.publisher.place(one)
    await asyncio.sleep(0.01)
    assert [len(frame.requests) for frame in gateway.bus.frames] == [2, 1]
    assert gateway.pending.n_bytes > 900 << 10


async def test_only_who_is_too_large_alone_is_refused() -> None:
    gateway = Gateway()
    gateway.bus.max_bytes = 100 << 10
    fine = gateway.placed(5)
    (large,) = gateway.placed(1, 200 << 10)
    fine += gateway.placed(4)
    await asyncio.sleep(0.05)
    assert gateway.ended == [large]
    assert type(large.waiter.error) is errors.TooLargeError
    sent = [request.id for frame in gateway.bus.frames for request in frame.requests]
    assert sorted(sent) == sorted(one.id for one in fine)
    assert all(one.frame is not None and one.frame.offset is not None for one in fine)
    assert {one.attempt for one in fine} == {1}
