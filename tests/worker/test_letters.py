"""Letters about requests that kill their engine: their frame stays open until Kafka has them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter

from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.health import Health
from inferbus_schemas import messages as m
from inferbus_worker.engines.process import Death
from inferbus_worker.hot import letters
from inferbus_worker.hot.letters import Letters, PoisonInputError
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.work import Frame, Work
from tests.worker.test_execute import TOPIC, Record, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferbus_kit.consume import Record as Read


class Dead:
    """Takes dead letters once it has raised what it should."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.taken: list[tuple[Read, Exception, Sequence[str]]] = []

    async def put(self, record: Read, error: Exception, said: Sequence[str]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append((record, error, said))


class Side:
    """Letters, one frame with one request, and what its inbox hears."""

    def __init__(self, *errors: Exception) -> None:
        self.dead = Dead(*errors)
        self.failures: list[str] = []
        loops = Loops(Health(), self.failures.append)
        self.written = Counter("dead_letters", "Written.", registry=CollectorRegistry())
        self.letters = Letters(
            self.dead,  # type: ignore[arg-type]
            loops,
            TOPIC.name,
            self.written,
        )
        self.done: list[int] = []
        frame = Frame(self, Record(b"the whole frame", 7, 1000, partition=3), 1)
        now_s = time.monotonic()
        self.work = Work(number(1), frame, now_s, now_s + 10)
        self.death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    def frame_done(self, offset: int) -> None:
        self.done.append(offset)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "_RETRY_S", 0.01)


async def test_a_frame_is_open_until_the_letter_about_its_poison_is_written() -> None:
    side = Side(BusUnavailableError("down"))
    side.letters.poison(side.work, side.death)
    side.work.frame.member_done()
    await asyncio.sleep(0.05)
    assert (side.done, side.dead.taken) == ([], [])
    assert side.written._value.get() == 0
    side.death.set_result(Death("signal 11", ("one", "two")))
    await asyncio.sleep(0.05)
    assert side.done == [7]
    assert side.written._value.get() == 1
    ((record, error, said),) = side.dead.taken
    assert isinstance(error, PoisonInputError)
    assert "signal 11" in str(error)
    assert said == ("one", "two")
    assert (record.topic, record.partition, record.offset) == (TOPIC.name, 3, 7)
    frame = m.RequestFrame.FromString(record.value or b"")
    assert list(frame.requests) == [side.work.request]


async def test_a_worker_that_stops_first_leaves_the_frame_to_the_next_one() -> None:
    side = Side()
    side.letters.poison(side.work, side.death)
    side.work.frame.member_done()
    await side.letters.stop()
    assert side.done == []
    assert side.failures == []


async def test_a_letter_that_cannot_be_made_ends_the_process() -> None:
    side = Side(RuntimeError("a fault of ours"))
    side.letters.poison(side.work, side.death)
    side.death.set_result(Death("signal 11", ()))
    await asyncio.sleep(0.05)
    assert side.failures == [f"task letter:{side.work.request.id.hex()} failed"]
