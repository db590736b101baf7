"""What becomes of copies that Kafka refuses, told the time; a list stands for Kafka."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError, PolicyViolationError
from prometheus_client import CollectorRegistry

from inferbus_kit.health import Health
from inferbus_kit.metrics import logger_metrics
from inferbus_logger import answers
from inferbus_logger.answers import Answers, AnswersError
from inferbus_logger.lanes import Board
from inferbus_logger.plan import Batch
from inferbus_logger.positions import Position, Resume, Stored
from inferbus_logger.refusals import PATIENCE_S, RETRY_S
from inferbus_logger.rows import Answer, Item


@dataclass
class Parcel:
    values: list[bytes] = field(default_factory=list)

    def append(self, *, value: bytes, **_told: Any) -> bool | None:
        if len(self.values) == 4:
            return None
        self.values.append(value)
        return True


class Taken(list[tuple[int, bytes]]):
    """Partitions and values that were taken; has what `Answers` asks of a producer."""

    def __init__(self, refuse: Callable[[int, Sequence[bytes]], Exception | None]) -> None:
        super().__init__()
        self.refuse = refuse
        self.client = self.cluster = self._message_accumulator = self
        self._batches: defaultdict[object, deque[Any]] = defaultdict(deque)
        self.create_batch = Parcel
        self.add_topic: Callable[[str], None] = lambda _topic: None
        self.numbers = {0, 1, 2, 3}

    def partitions_for_topic(self, _topic: str) -> set[int]:
        return self.numbers

    def force_metadata_update(self) -> asyncio.Future[bool]:
        known = asyncio.get_running_loop().create_future()
        known.set_result(True)
        return known

    async def send_batch(
        self, parcel: Parcel, _topic: str, *, partition: int
    ) -> asyncio.Future[None]:
        delivery: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if error := self.refuse(partition, parcel.values):
            delivery.set_exception(error)
        else:
            self.extend((partition, value) for value in parcel.values)
            delivery.set_result(None)
        return delivery

    async def stop(self) -> None:
        return None


@dataclass
class Copying:
    taken: Taken
    health: Health = field(default_factory=Health)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    now_s: float = 1000.0

    def __post_init__(self) -> None:
        self.health.ready("start")
        self.answers = Answers(
            "unused:1",
            client_id="test",
            tenants=["acme"],
            metrics=logger_metrics(self.registry),
            health=self.health,
            clock=lambda: self.now_s,
        )
        self.connect()

    def connect(self) -> None:
        """Let the tenant have its client."""
        clients = self.answers._clients
        clients._scout = clients._seats["acme"].client = self.taken

    def batch(self, partition: int, base: int, *values: bytes) -> Batch:
        rows = tuple(
            Item(at, at + 1, "row", b"", 1, value=value, answer=Answer("acme", b"k", ()))
            for at, value in enumerate(values, base)
        )
        return Batch(partition, 0, base, base + len(rows), rows=rows)

    async def copy(self, partition: int, base: int, *values: bytes) -> None:
        await self.answers.hand_over([self.batch(partition, base, *values)])

    async def waits(self, partition: int, base: int, *values: bytes) -> bool:
        """Tell whether the log waits for these copies."""
        try:
            await self.copy(partition, base, *values)
        except AnswersError:
            return True
        return False

    def counted(self) -> tuple[float | None, float | None]:
        """Return how many were copied and how many given up."""
        copied, refused = (
            self.registry.get_sample_value(
                "inferbus_log_answers_total", {"tenant": "acme", "ended": ended}
            )
            for ended in ("copied", "refused")
        )
        return copied, refused


async def test_a_place_that_is_refused_is_given_up_while_others_succeed() -> None:
    at = Copying(Taken(lambda number, _: PolicyViolationError() if number == 3 else None))
    n_tries = 0
    for step in range(100):
        n_tries += 1
        try:
            await at.copy(3, 0, b"never")
        except AnswersError:
            await at.copy(1, step, b"%d" % step)
            assert list(at.health.reasons()) == ["answers of acme"]
            at.now_s += PATIENCE_S / 4
        else:
            break
    assert n_tries == 5
    assert at.counted() == (4, 1)
    at.now_s += RETRY_S
    await at.copy(1, 100, b"again")
    assert at.health.reasons() == {}


async def test_a_topic_that_is_back_is_written_to_at_once() -> None:
    at = Copying(Taken(lambda _number, _values: None))
    at.taken.numbers = set()
    assert await at.waits(3, 0, b"lost")
    at.now_s += PATIENCE_S
    assert not await at.waits(3, 0, b"lost")
    at.answers.look({3: Position(0, 1)})
    assert not await at.waits(2, 0, b"lost too")  # nor is it waited for by others
    assert list(at.health.reasons()) == ["answers of acme"]
    at.taken.numbers = {0, 1, 2, 3}
    at.answers.look({3: Position(0, 1)})
    assert at.health.reasons() == {}
    assert not await at.waits(3, 1, b"taken")
    assert at.taken == [(3, b"taken")]
    assert at.counted() == (1, 2)


async def test_each_place_has_its_own_patience() -> None:
    at = Copying(Taken(lambda number, _: PolicyViolationError() if number > 1 else None))
    assert await at.waits(3, 0, b"older")
    at.now_s += PATIENCE_S - 1
    assert await at.waits(2, 0, b"younger")
    at.now_s += 1
    with pytest.raises(AnswersError):
        await at.answers.hand_over(
            [at.batch(3, 0, b"older"), at.batch(2, 0, b"younger"), at.batch(6, 0, b"youngest")]
        )
    assert at.counted() == (None, 1)
    assert await at.waits(6, 0, b"youngest")
    assert await at.waits(2, 0, b"younger")
    at.now_s += PATIENCE_S - 2
    assert await at.waits(2, 0, b"younger")
    at.taken.refuse = lambda _number, _values: None
    assert not await at.waits(2, 0, b"younger")
    assert at.taken == [(2, b"younger")]


async def test_a_place_that_is_refused_for_ever_is_waited_for_once_and_costs_no_other_copy() -> (
    None
):
    at = Copying(Taken(lambda number, _: PolicyViolationError() if number == 3 else None))
    waited_s: list[float] = []
    began_s = at.now_s
    for step in range(200):
        # One transaction or two, and either first: the other place is copied from throughout.
        both = [at.batch(3, step, b"never"), at.batch(1, step, b"%d" % step)]
        for batches in ([both], [both[::-1]], [both[:1], both[1:]], [both[1:], both[:1]])[step % 4]:
            try:
                await at.answers.hand_over(batches)
            except AnswersError:
                waited_s.append(at.now_s - began_s)
        at.now_s += 1
    assert waited_s == list(range(int(PATIENCE_S)))
    assert at.counted() == (200, 200 - PATIENCE_S)
    assert at.taken == [(1, b"%d" % step) for step in range(200)]


async def test_a_topic_that_takes_nothing_is_waited_for_once_whatever_comes_later() -> None:
    at = Copying(Taken(lambda *_: PolicyViolationError()))
    assert await at.waits(0, 0, b"a")
    at.now_s += PATIENCE_S
    assert not await at.waits(0, 0, b"a")
    for partition in range(1, 4):
        at.now_s += 1
        assert not await at.waits(partition, 0, b"b")
    at.now_s += RETRY_S
    assert not await at.waits(0, 1, b"c")
    at.taken.refuse = lambda number, _: PolicyViolationError() if number == 2 else None
    assert not await at.waits(3, 1, b"d")
    at.now_s += 1
    assert not await at.waits(2, 1, b"e")  # it was given up itself
    at.answers.look({3: Position(0, 1)})  # another has the rest; its places are new here
    assert await at.waits(2, 2, b"f")


async def test_no_answer_is_no_refusal() -> None:
    at = Copying(Taken(lambda *_: PolicyViolationError()))
    assert await at.waits(3, 0, b"a")
    at.now_s += PATIENCE_S - 1
    at.taken.refuse = lambda *_: OSError()
    assert await at.waits(3, 0, b"a")
    at.connect()
    at.taken.refuse = lambda *_: PolicyViolationError()
    at.now_s += PATIENCE_S - 1
    assert await at.waits(3, 0, b"a")
    at.now_s += PATIENCE_S - 1
    assert await at.waits(3, 0, b"a")
    at.now_s += 1
    assert not await at.waits(3, 0, b"a")
    await at.answers.stop()


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_place_that_is_not_answered_lengthens_the_patience_of_no_other(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = Copying(Taken(lambda number, _: OSError() if number == 1 else PolicyViolationError()))
    send = at.taken.send_batch

    async def send_batch(*parcel: Any, partition: int) -> asyncio.Future[None]:
        if how == "hangs" and partition == 1:
            return asyncio.get_running_loop().create_future()
        return await send(*parcel, partition=partition)

    monkeypatch.setattr(at.taken, "send_batch", send_batch)
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.05)
    for _ in range(3):
        with pytest.raises(AnswersError) as failed:
            await at.answers.hand_over([at.batch(1, 0, b"a"), at.batch(3, 0, b"b")])
        assert failed.value.partitions == {1, 3}
        assert "does not take" in str(failed.value)
        assert "refuses" in str(failed.value)
        assert len(at.answers._clients) == 0
        at.connect()
        at.now_s += PATIENCE_S / 3
    with pytest.raises(AnswersError) as failed:
        await at.answers.hand_over([at.batch(1, 0, b"a"), at.batch(3, 0, b"b")])
    assert failed.value.partitions == {1}
    assert at.counted() == (None, 1)
    await at.answers.stop()


async def test_what_another_logger_logged_meanwhile_is_not_stuck_here() -> None:
    at = Copying(Taken(lambda *_: PolicyViolationError()))
    board = Board(logger_metrics(CollectorRegistry()), lambda: at.now_s)

    def assign(next_offset: int) -> None:
        board.assign([3])
        lane, stored = board.lanes[3], Stored(3, b"", 0, 0, next_offset, b"", b"")
        lane.begin(stored, Resume(next_offset, b""))

    assign(0)
    assert await at.waits(3, 0, b"a")
    for next_offset, reasons in ((0, ["answers of acme"]), (1, [])):
        board.release([3])  # and back, between two looks
        assign(next_offset)
        at.answers.look(board.positions())
        assert list(at.health.reasons()) == reasons
    at.now_s += PATIENCE_S
    assert await at.waits(3, 1, b"b")  # it has its own patience


async def test_a_record_that_is_too_large_costs_itself_only() -> None:
    def refuse(_number: int, values: Sequence[bytes]) -> Exception | None:
        return MessageSizeTooLargeError() if sum(map(len, values)) > 10 else None

    at = Copying(Taken(refuse))
    await at.copy(2, 0, b"aaaa", b"bbbb", b"c" * 11, b"dddd", b"e", b"f")
    await at.copy(2, 6, b"g")
    assert at.taken == [(2, value) for value in (b"aaaa", b"bbbb", b"dddd", b"e", b"f", b"g")]
    assert at.counted() == (6, 1)
    assert at.health.reasons() == {}


@pytest.mark.parametrize(
    ("error", "moved"),
    [
        (AssertionError("no such partition"), {1: Position(0, 0)}),
        (OSError(), {1: Position(0, 0), 3: Position(1, 0)}),
    ],
    ids=["taken away", "rewound"],
)
async def test_whatever_it_is_the_transaction_is_tried_again(
    error: Exception, moved: dict[int, Position | None]
) -> None:
    at = Copying(Taken(lambda *_: error))
    with pytest.raises(AnswersError):
        await at.copy(3, 0, b"a")
    assert len(at.answers._clients) == 0
    at.answers.look({3: Position(0, 0)})
    assert list(at.health.reasons()) == ["answers of acme"]
    at.answers.look(moved)
    assert at.health.reasons() == {}
    await at.answers.stop()


async def test_an_acknowledgement_after_the_time_was_up_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at, late = Copying(Taken(lambda *_: None)), asyncio.get_running_loop().create_future()

    async def send_batch(*_: Any, **__: Any) -> asyncio.Future[None]:
        return late

    monkeypatch.setattr(at.taken, "send_batch", send_batch)
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.05)
    with pytest.raises(AnswersError):
        await at.copy(3, 0, b"a")
    late.set_result(None)
    await asyncio.sleep(0)
    assert at.counted() == (1, None)
    assert at.health.reasons() == {}
    await at.copy(3, 0, b"a")  # nothing is left to do
    await at.answers.stop()
    assert at.taken == []


@pytest.mark.parametrize("error", [PolicyViolationError(), OSError()])
async def test_an_acknowledgement_during_a_later_try_ends_it_well(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, late = Copying(Taken(lambda *_: error)), asyncio.get_running_loop().create_future()
    refused = at.taken.send_batch

    async def hanging(*_: Any, **__: Any) -> asyncio.Future[None]:
        return late

    async def acknowledged(*told: Any, **named: Any) -> asyncio.Future[None]:
        late.set_result(None)
        return await refused(*told, **named)

    monkeypatch.setattr(at.taken, "send_batch", hanging)
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.05)
    assert await at.waits(3, 0, b"a")
    monkeypatch.setattr(answers, "TIMEOUT_S", 5.0)
    monkeypatch.setattr(at.taken, "send_batch", acknowledged)
    at.connect()
    assert not await at.waits(3, 0, b"a")
    assert at.counted() == (1, None)
    at.answers.look({3: Position(0, 1)})
    assert at.health.reasons() == {}
    await at.answers.stop()
