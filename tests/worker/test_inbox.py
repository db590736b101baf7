"""One inbox over a reader that the test plays: dead letters, offsets that go back, dead loops."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry, Counter

from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.health import Health
from inferbus_schemas import messages as m
from inferbus_worker.hot import consume, letters
from inferbus_worker.hot.consume import Inbox
from inferbus_worker.hot.letters import Letters
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.work import MAX_FRAME_AGE_MS
from tests.worker.test_execute import Bench, Record, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferbus_kit.consume import Record as Read


class Dead:
    """Takes dead letters once it has raised what it should; never, where it hangs."""

    def __init__(self, *errors: Exception, hangs: bool = False) -> None:
        self.errors = list(errors)
        self.hangs = hangs
        self.offsets: list[int] = []

    async def put(self, record: Read, error: Exception, said: Sequence[str]) -> None:
        assert isinstance(error, consume.UnreadableFrameError)
        assert not said
        if self.hangs:
            await asyncio.Event().wait()
        if self.errors:
            raise self.errors.pop(0)
        self.offsets.append(record.offset)


class Reader:
    """Gives the polls that it was made with, then nothing; raises what is no poll."""

    def __init__(self, *polls: list[Record] | Exception) -> None:
        self.polls = list(polls)
        self.committed: list[int] = []
        self.next = 0

    async def start(self) -> int:
        return self.next

    async def read(self, *, timeout_ms: int) -> list[Record]:
        assert timeout_ms
        if not self.polls:
            await asyncio.sleep(0.01)
            return []
        poll = self.polls.pop(0)
        if isinstance(poll, Exception):
            raise poll
        self.next = poll[-1].offset + 1
        return poll

    async def position(self) -> int:
        return self.next

    async def commit(self, offset: int) -> bool:
        self.committed.append(offset)
        return True

    async def stop(self) -> None:
        return


def _counter() -> Counter:
    return Counter("dead_letters", "Written.", registry=CollectorRegistry())


class Side:
    """An inbox with its surroundings."""

    def __init__(self, reader: Reader, dead: Dead) -> None:
        self.bench = Bench()
        self.health = Health()
        self.failures: list[str] = []
        self.reader = reader
        loops = Loops(self.health, self.failures.append)
        self.inbox = Inbox(
            "unused:1",
            "default",
            0,
            self.bench.desk,
            Letters(dead, loops, "unused", _counter()),  # type: ignore[arg-type]
            loops=loops,
            client_id="t",
        )
        self.inbox._reader = reader  # type: ignore[assignment]

    async def run(self, wait_s: float = 0.1) -> None:
        await self.inbox.start()
        await asyncio.sleep(wait_s)
        await self.bench.settle()

    def answered(self) -> list[bytes]:
        return [said.id for said in self.bench.sender.sent if said.outcome == m.OUTCOME_OK]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume, "_RETRY_S", 0.01)
    monkeypatch.setattr(letters, "_RETRY_S", 0.01)
    monkeypatch.setattr(consume, "_COMMIT_EVERY_S", 0.01)


def frame(offset: int, *requests: m.Request, age_ms: int = 0) -> Record:
    value = m.RequestFrame(gateway="g", requests=requests).SerializeToString()
    return Record(value, offset, int(time.time() * 1000) - age_ms)


def unreadable(offset: int) -> Record:
    return Record(b"\xff\xff", offset, int(time.time() * 1000))


async def test_a_dead_letter_is_tried_until_it_is_written_and_the_poll_goes_on() -> None:
    dead = Dead(BusUnavailableError("down"), KafkaConnectionError())
    one, two = number(1), number(2)
    side = Side(Reader([frame(0, one), unreadable(1), frame(2, two)]), dead)
    await side.run()
    assert side.answered() == [one.id, two.id]
    assert dead.offsets == [1]
    await asyncio.sleep(0.05)
    assert side.reader.committed[-1] == 3
    await side.inbox.stop()
    assert side.failures == []


async def test_reading_that_ends_at_a_dead_letter_leaves_no_frame_open() -> None:
    one = number(1)
    side = Side(Reader([frame(0, one), unreadable(1), frame(2, number(2))]), Dead(hangs=True))
    await side.run()
    assert side.health.silent_loops() == []
    assert await side.inbox.stop_reading() == 1
    await asyncio.sleep(0.05)
    assert side.answered() == [one.id]
    assert (side.inbox.n_open, side.inbox.position, side.inbox.committed) == (0, 1, 1)
    await side.inbox.stop()
    assert side.reader.committed == [1]


async def test_offsets_that_go_back_are_read_and_counted_anew() -> None:
    held, one, two = number(1), number(2), number(3)
    side = Side(Reader([frame(0, number(0)), frame(1, held)], [frame(0, one)]), Dead())
    side.bench.engine.up = False
    await side.run()
    assert side.failures == []
    assert (side.inbox.n_open, side.inbox.position) == (1, 1)
    side.bench.engine.up = True
    side.bench.executor.on_up()
    await side.bench.settle()
    side.bench.engine.up = False
    side.reader.polls.append([frame(1, two)])
    await asyncio.sleep(0.1)
    assert (side.inbox.committable, side.inbox.n_open) == (1, 1)
    side.bench.engine.up = True
    side.bench.executor.on_up()
    await side.bench.settle()
    assert side.inbox.committable == 2
    await side.inbox.stop()
    assert side.reader.committed[-1] == 2
    assert set(side.answered()) >= {held.id, one.id, two.id}


async def test_a_late_answer_of_an_earlier_log_does_not_count_in_the_new_one() -> None:
    side = Side(Reader(), Dead())
    side.bench.engine.up = False
    await side.run(0.0)
    await side.inbox._take([frame(0, number(1))])
    earlier = side.inbox._frames
    await side.inbox._take([frame(0, number(2))])
    earlier.frame_done(0)
    assert (side.inbox.n_open, side.inbox.committable) == (1, 0)
    await side.inbox.stop()


async def test_a_loop_that_dies_fails_the_process_and_an_error_of_kafka_does_not() -> None:
    side = Side(Reader(KafkaConnectionError(), RuntimeError("a bug")), Dead())
    await side.run()
    assert side.failures == ["task inbox:0 failed"]
    await side.inbox.stop()
    assert side.failures == ["task inbox:0 failed"]


async def test_a_loop_that_hangs_makes_the_process_not_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inferbus_worker.hot.loops._MAX_SILENCE_S", 0.05)
    side = Side(Reader(), Dead())
    await side.run()
    assert side.health.silent_loops() == []

    async def hang(offset: int) -> bool:
        del offset
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(side.reader, "commit", hang)
    side.reader.polls.append([frame(0)])
    await asyncio.sleep(0.2)
    assert side.health.silent_loops() == ["commit:0"]
    side.reader.commit = Reader().commit  # type: ignore[method-assign]
    await side.inbox.stop()
    assert side.health.silent_loops() == []


async def test_nothing_is_written_for_a_frame_that_its_readers_have_forgotten() -> None:
    side = Side(Reader([frame(0, number(1), age_ms=MAX_FRAME_AGE_MS + 1000)]), Dead())
    await side.run()
    assert side.bench.sender.sent == []
    assert side.inbox.committable == 1
    await side.inbox.stop()
