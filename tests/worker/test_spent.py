"""Tokens of submissions, told by the minute: whole, and again where Kafka was away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.health import Health
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from inferbus_worker.hot import spent
from inferbus_worker.hot.emit import Emitter, Used
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.spent import Spent
from inferbus_worker.hot.work import Work
from tests.worker import test_execute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferbus_kit.produce import Message


@dataclass
class Sender:
    """Takes records of `access.spent`; refuses as many as `refuses` says, or `hangs`."""

    refuses: int = 0
    hangs: bool = False
    told: list[tuple[bytes | None, m.TokensSpent]] = field(default_factory=list)

    async def send_many(
        self, topic: str, partition: int, messages: Sequence[Message]
    ) -> asyncio.Future[Any]:
        assert (topic, partition) == (topics.topic(topics.SPENT).name, 0)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.hangs:
            return done
        if self.refuses:
            self.refuses -= 1
            done.set_exception(BusUnavailableError("refused"))
        else:
            self.told += [(one.key, m.TokensSpent.FromString(one.value or b"")) for one in messages]
            done.set_result(None)
        return done


def counting(sender: Sender) -> Spent:
    return Spent(sender, "w1", 7, Loops(Health(), pytest.fail))


async def test_a_minute_is_told_whole_and_only_where_it_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender = Sender()
    made = counting(sender)
    monkeypatch.setattr(spent, "_minute", lambda: 5)
    made.note("acme", 10)
    made.note("other", 1)
    await made.tell()
    made.note("acme", 3)
    made.note("other", 0)
    await made.tell()
    await made.tell()
    assert [(one.tenant, one.minute, one.n_tokens) for _, one in sender.told] == [
        ("acme", 5, 10),
        ("other", 5, 1),
        ("acme", 5, 13),
    ]
    keys = [key for key, _ in sender.told]
    assert keys[0] == keys[2] == b"acme/5/0000000000000007"
    monkeypatch.setattr(spent, "_minute", lambda: 6)
    made.note("acme", 2)
    await made.tell()
    assert (sender.told[-1][1].minute, sender.told[-1][1].n_tokens) == (6, 2)


async def test_what_kafka_did_not_take_is_told_later_with_what_came_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender = Sender(refuses=1)
    made = counting(sender)
    monkeypatch.setattr(spent, "_minute", lambda: 5)
    made.note("acme", 10)
    await made.tell()
    assert not sender.told
    monkeypatch.setattr(spent, "_minute", lambda: 6)
    made.note("acme", 1)
    await made.stop()
    assert [(one.minute, one.n_tokens) for _, one in sender.told] == [(5, 10), (6, 1)]


async def test_a_stop_tells_what_was_just_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(hangs=True)
    made = counting(sender)
    monkeypatch.setattr(spent, "TELL_EVERY_S", 0)
    monkeypatch.setattr(spent, "_minute", lambda: 5)
    made.note("acme", 10)
    await made.start()
    while made._untold:  # noqa: ASYNC110 -- nothing else tells
        await asyncio.sleep(0)
    sender.hangs = False
    await made.stop()
    assert [(one.minute, one.n_tokens) for _, one in sender.told] == [(5, 10)]


@pytest.mark.parametrize("owes", [True, False])
async def test_only_what_nobody_reads_is_told(owes: bool) -> None:  # noqa: FBT001
    noted: list[tuple[str, int]] = []
    emitter = Emitter(test_execute.Sender(), "w1")
    emitter.on_spent = lambda tenant, n_tokens: noted.append((tenant, n_tokens))
    used = Used(m.Generated(prompt_tokens=3, completion_tokens=4))
    frame: Any = SimpleNamespace(member_done=lambda: None)
    request = m.Request(id=b"r", tenant="acme", reply_partition=3, owes_tokens=owes)
    emitter.expired(Work(request, frame, 0.0, 0.0), None, used)
    assert noted == ([("acme", 7)] if owes else [])
    await emitter.stop()
