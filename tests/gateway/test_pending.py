"""Unanswered requests: any order of events, against a model that only remembers what happened."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferbus_gateway.hot import pending as module
from inferbus_gateway.hot.pending import (
    HOLD_S,
    MAX_ATTEMPTS,
    UNKNOWN_AFTER_S,
    Entry,
    Frame,
    Pending,
)
from inferbus_schemas import ids
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import POOL, lease

SLACK_S = 0.1
START_S = 1000.0


def entry(number: int, now_s: float, ttl_s: float = 30.0, rows: int = 1) -> Entry:
    request = m.Request(id=ids.uuid7(1, number), model="m", version=1, tensors=b"x" * 10)
    return Entry(request, POOL, n_rows=rows, deadline_s=now_s + ttl_s, waiter=None)


@dataclass
class Remembered:
    """What is known of one request from the events alone."""

    entry: Entry
    added_s: float
    attempt: int = 0
    frame: Frame | None = None
    inbox: int | None = None
    epoch: int = 0
    overdue_s: float | None = None
    ended: bool = False


class PendingMachine(RuleBasedStateMachine):
    """Requests, frames, leases and a clock; every event is checked against `Remembered`."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = START_S
        self.pending = Pending()
        self.open: dict[bytes, Remembered] = {}
        self.leases = {inbox: lease(inbox) for inbox in range(3)}
        self.count = 0
        self.offset = 0

    def placed(self) -> list[Remembered]:
        return [one for one in self.open.values() if one.inbox is not None]

    def on_their_way(self) -> list[tuple[Remembered, Frame]]:
        """Return those whose frame is not acknowledged yet."""
        return [
            (one, one.frame)
            for one in self.placed()
            if one.frame is not None and one.frame.offset is None
        ]

    def left(self, one: Remembered) -> None:
        assert not one.ended
        one.ended = True
        del self.open[one.entry.id]

    @rule(ttl_s=st.sampled_from([0.05, 0.5, 5.0, 30.0]), rows=st.integers(1, 64))
    def accept(self, ttl_s: float, rows: int) -> None:
        self.count += 1
        new = entry(self.count, self.now_s, ttl_s, rows)
        self.pending.add(new, self.now_s)
        self.open[new.id] = Remembered(new, self.now_s)

    @rule(data=st.data(), limit=st.integers(1, 5))
    def place(self, data: st.DataObject, limit: int) -> None:
        offered = self.pending.to_place(self.now_s)
        may_be = {
            one.entry.id
            for one in self.open.values()
            if one.inbox is None
            and one.overdue_s is None
            and one.attempt < MAX_ATTEMPTS
            and one.entry.not_before_s <= self.now_s < one.entry.deadline_s
        }
        assert {one.id for one in offered} == may_be
        frames: dict[int, Frame] = {}
        for each in offered[:limit]:
            inbox = data.draw(st.sampled_from(sorted(self.leases)))
            known = self.open[each.id]
            frame = frames.setdefault(inbox, Frame())
            self.pending.placed(each, self.leases[inbox], frame)
            known.attempt += 1
            known.frame, known.inbox = frame, inbox
            known.epoch = self.leases[inbox].epoch
            assert each.attempt == known.attempt

    @precondition(lambda self: self.on_their_way())
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        _, frame = data.draw(st.sampled_from(self.on_their_way()))
        frame.offset = self.offset
        self.offset += 1

    @precondition(lambda self: self.on_their_way())
    @rule(data=st.data())
    def not_handed_over(self, data: st.DataObject) -> None:
        _, frame = data.draw(st.sampled_from(self.on_their_way()))
        for one in [one for one in self.placed() if one.frame is frame]:
            refused = self.pending.not_handed_over(one.entry, self.now_s)
            one.attempt -= 1
            one.inbox = one.frame = None
            assert refused == (one.attempt == 0 and one.overdue_s is None)
            if refused:
                self.left(one)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from([1, 4, 5, 8, 42]), late=st.booleans())
    def terminal_record(self, data: st.DataObject, outcome: int, late: bool) -> None:  # noqa: FBT001 -- a drawn value
        tried = [one for one in self.open.values() if one.attempt]
        if not tried:
            return
        one = data.draw(st.sampled_from(tried))
        # Any attempt's record ends the request, also one that no longer counts as open.
        attempt = 1 if late else one.attempt
        assert self.pending.ended(one.entry.id, attempt, outcome, self.now_s) is one.entry
        self.left(one)
        assert self.pending.ended(one.entry.id, attempt, outcome, self.now_s) is None

    @precondition(lambda self: self.placed())
    @rule(data=st.data(), stale=st.booleans())
    def attempt_failed(self, data: st.DataObject, stale: bool) -> None:  # noqa: FBT001 -- a drawn value
        one = data.draw(st.sampled_from(self.placed()))
        number = one.attempt - stale
        ended = self.pending.ended(one.entry.id, number, m.OUTCOME_ATTEMPT_FAILED, self.now_s)
        assert ended is None
        if not stale:
            assert one.entry.failed_on == (POOL, one.inbox)
            one.inbox = one.frame = None

    @rule(inbox=st.integers(0, 2), kind=st.sampled_from(["beat", "expired", "released", "owner"]))
    def lease(self, inbox: int, kind: str) -> None:
        held = self.leases[inbox]
        if kind == "owner":
            held = lease(inbox, held.epoch + 1)
        elif kind == "released":
            held = dataclasses.replace(
                held, state=m.STATE_RELEASED, end_offset=max(0, self.offset - 1)
            )
        self.leases[inbox] = held
        lost = []
        for one in self.placed():
            if one.inbox != inbox:
                continue
            gone = one.epoch < held.epoch or (kind == "expired")
            if held.state == m.STATE_RELEASED:
                at = None if one.frame is None else one.frame.offset
                gone = one.epoch < held.epoch or at is None or at >= held.end_offset
            if gone:
                lost.append(one)
        said = self.pending.lease_seen(held, expired=kind == "expired", now_s=self.now_s)
        assert {one.id for one in said} == {one.entry.id for one in lost}
        for one in lost:
            one.inbox = one.frame = None
        if kind == "released":
            self.leases[inbox] = lease(inbox, held.epoch + 1)

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.3, 1.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        due = self.pending.tick(self.now_s)
        for gone in due.no_worker:
            one = self.open[gone.id]
            assert one.attempt == 0
            assert one.overdue_s is None
            assert self.now_s >= min(gone.deadline_s, one.added_s + HOLD_S)
            self.left(one)
        for late in due.overdue:
            one = self.open[late.id]
            assert one.overdue_s is None
            assert one.attempt > 0
            assert self.now_s >= late.deadline_s
            one.overdue_s = self.now_s
        for tired in due.exhausted:
            one = self.open[tired.id]
            assert one.overdue_s is None
            assert one.attempt >= MAX_ATTEMPTS
            one.overdue_s = self.now_s
        for unknown in due.unknown:
            one = self.open[unknown.id]
            assert one.overdue_s is not None
            assert self.now_s >= max(unknown.deadline_s, one.overdue_s) + UNKNOWN_AFTER_S - SLACK_S
            assert self.now_s > one.overdue_s
            self.left(one)
        self.nothing_is_late()

    def nothing_is_late(self) -> None:
        for one in self.open.values():
            if one.overdue_s is not None:
                limit = max(one.entry.deadline_s, one.overdue_s) + UNKNOWN_AFTER_S
            elif one.attempt:
                limit = one.entry.deadline_s
            else:
                limit = min(one.entry.deadline_s, one.added_s + HOLD_S)
            assert self.now_s < limit + SLACK_S

    @invariant()
    def books_balance(self) -> None:
        pending = self.pending
        assert {one.id for one in pending} == set(self.open)
        assert pending.n_bytes == 10 * len(self.open)
        rows: dict[tuple[str, int], int] = {}
        for one in self.placed():
            assert one.inbox is not None
            key = (POOL, one.inbox)
            rows[key] = rows.get(key, 0) + one.entry.n_rows
        assert pending.rows == rows
        assert set(pending.inboxes()) == set(rows)
        for one in self.open.values():
            assert one.entry.attempt == one.attempt
            assert one.entry.frame is one.frame
            assert one.entry.inbox == (None if one.inbox is None else (POOL, one.inbox))
            assert one.entry.id in pending._wheel[one.entry.bucket]
            assert one.entry.bucket > pending._swept

    def teardown(self) -> None:
        """Nobody answers any more: a bounded time later nothing is left anywhere."""
        for seconds in (40.0, 3.0, 3.0):
            self.now_s += seconds
            self.pending.tick(self.now_s)
        empty(self.pending)


def empty(pending: Pending) -> None:
    assert len(pending) == 0
    assert (pending.n_bytes, pending.n_waiting) == (0, 0)
    assert not pending.rows
    assert not pending.inboxes()
    assert not pending._by_inbox
    assert not pending._exhausted
    assert not any(pending._wheel.values())


PendingMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPending = pytest.mark.slow(PendingMachine.TestCase)


def ticked(pending: Pending, until_s: float, from_s: float) -> list[tuple[str, float]]:
    """Tick as upkeep does and tell what came due and when."""
    seen = []
    now_s = from_s
    while now_s < until_s:
        due = pending.tick(now_s)
        for name in ("no_worker", "overdue", "exhausted", "unknown"):
            seen += [(name, round(now_s - from_s, 2)) for _ in getattr(due, name)]
        now_s += 0.05
    return seen


def test_without_a_worker_a_request_is_held_ten_seconds_or_until_its_deadline() -> None:
    pending = Pending()
    pending.add(entry(1, START_S, ttl_s=30), START_S)
    pending.add(entry(2, START_S, ttl_s=2), START_S)
    seen = ticked(pending, START_S + 40, START_S)
    assert [name for name, _ in seen] == ["no_worker", "no_worker"]
    assert seen[0][1] == pytest.approx(2, abs=0.11)
    assert seen[1][1] == pytest.approx(10, abs=0.11)
    empty(pending)


def test_once_handed_over_it_is_overdue_once_and_unknown_a_second_later() -> None:
    pending = Pending()
    one = entry(1, START_S, ttl_s=15)
    pending.add(one, START_S)
    pending.placed(one, lease(0), Frame())
    # Its worker is gone at once and nobody else comes: still it never ends as `no_worker`.
    pending.lease_seen(lease(0), expired=True, now_s=START_S + 1)
    seen = ticked(pending, START_S + 40, START_S)
    assert [name for name, _ in seen] == ["overdue", "unknown"]
    assert seen[0][1] == pytest.approx(15, abs=0.11)
    assert seen[1][1] - seen[0][1] == pytest.approx(UNKNOWN_AFTER_S, abs=0.11)
    empty(pending)


@pytest.mark.parametrize("others", [0, 1, 400])
def test_a_process_that_was_stopped_for_a_minute_reads_on_before_it_gives_up(others: int) -> None:
    pending = Pending()
    pending.tick(START_S)
    for number in range(others):
        pending.add(entry(1000 + number, START_S, ttl_s=90 + number), START_S)
    one = entry(1, START_S, ttl_s=30)
    pending.add(one, START_S)
    pending.placed(one, lease(0), Frame())
    woken_s = START_S + 60
    due = pending.tick(woken_s)
    assert due.overdue == [one]
    assert due.unknown == []
    assert pending.tick(woken_s + 0.05).unknown == []
    # The answer was in the log all along.
    assert pending.ended(one.id, 1, m.OUTCOME_OK, woken_s + 0.1) is one
    # And one that nobody answered does not hang.
    two = entry(2, START_S, ttl_s=30)
    pending.add(two, START_S)
    pending.placed(two, lease(0), Frame())
    seen = ticked(pending, woken_s + 3, woken_s + 0.1)
    assert [name for name, _ in seen if name != "no_worker"] == ["overdue", "unknown"]


def test_the_clock_of_the_first_tick_is_of_no_account() -> None:
    for start_s in (0.01, 3.0, 1e7):
        pending = Pending()
        pending.add(entry(1, start_s, ttl_s=1), start_s)
        assert [name for name, _ in ticked(pending, start_s + 3, start_s)] == ["no_worker"]


def test_a_request_that_fails_everywhere_is_ended_by_us_once() -> None:
    pending = Pending()
    one = entry(1, START_S, ttl_s=600)
    pending.add(one, START_S)
    now_s, waits = START_S, []
    while one.attempt < MAX_ATTEMPTS:
        assert pending.to_place(now_s) == [one]
        pending.placed(one, lease(0), Frame())
        assert pending.ended(one.id, one.attempt, m.OUTCOME_ATTEMPT_FAILED, now_s) is None
        waits.append(one.not_before_s - now_s)
        now_s = one.not_before_s
    assert waits == sorted(waits)
    assert max(waits) <= 1.0
    assert pending.n_attempts_failed == MAX_ATTEMPTS
    assert pending.to_place(now_s) == []
    assert pending.tick(now_s).exhausted == [one]
    assert pending.tick(now_s + 1).exhausted == []
    assert pending.ended(one.id, one.attempt, m.OUTCOME_FAILED, now_s) is one
    empty(pending)


def test_what_our_own_record_ends_is_not_refused_when_its_frame_never_left() -> None:
    pending = Pending()
    one = entry(1, START_S, ttl_s=1)
    pending.add(one, START_S)
    pending.placed(one, lease(0), Frame())
    assert pending.tick(START_S + 2).overdue == [one]
    assert pending.not_handed_over(one, START_S + 2) is False
    due = pending.tick(START_S + 4)
    assert (due.no_worker, due.unknown) == ([], [one])


def test_an_attempt_below_a_released_end_is_left_alone() -> None:
    pending = Pending()
    below, at, unacknowledged = (entry(number, START_S) for number in (1, 2, 3))
    for one, offset in ((below, 9), (at, 10), (unacknowledged, None)):
        pending.add(one, START_S)
        frame = Frame()
        frame.offset = offset
        pending.placed(one, lease(0), frame)
    released = lease(0, state=m.STATE_RELEASED, end_offset=10)
    lost = pending.lease_seen(released, expired=False, now_s=START_S)
    assert {one.id for one in lost} == {at.id, unacknowledged.id}
    assert {one.id for one in pending.to_place(START_S)} == {at.id, unacknowledged.id}


def test_full_counts_requests_and_bytes() -> None:
    pending = Pending(max_requests=2, max_bytes=1000)
    said = []
    for number in (1, 2):
        pending.add(entry(number, START_S), START_S)
        said.append(pending.full)
    assert said == [False, True]
    heavy = Pending(max_requests=100, max_bytes=10)
    heavy.add(entry(1, START_S), START_S)
    assert heavy.full


def cycle_s(n_standing: int) -> float:
    """Return seconds for requests to come and go while others stand there."""
    pending = Pending(max_requests=10**6)
    standing = lease(0)
    for number in range(n_standing):
        one = entry(number, START_S, ttl_s=20 + number % 500)
        pending.add(one, START_S)
        pending.placed(one, standing, Frame())
    now_s = START_S
    fresh = [entry(n_standing + number, START_S) for number in range(2000)]
    best = float("inf")
    for at in range(0, 2000, 400):
        before = time.perf_counter()
        for one in fresh[at : at + 400]:
            now_s += 0.001
            pending.add(one, now_s)
            pending.placed(one, standing, Frame())
            pending.tick(now_s)
            pending.ended(one.id, 1, m.OUTCOME_OK, now_s)
        best = min(best, time.perf_counter() - before)
    return best


@pytest.mark.slow
def test_a_call_costs_the_same_with_many_pending() -> None:
    assert cycle_s(20_000) < 8 * cycle_s(50)


def test_the_module_reads_no_clock() -> None:
    assert not {"time", "asyncio", "random"} & set(vars(module))
