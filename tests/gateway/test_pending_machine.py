"""Unanswered requests: any order of events, against a model that only remembers what happened."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inferbus_gateway.hot.pending import (
    HOLD_S,
    MAX_ATTEMPTS,
    UNKNOWN_AFTER_S,
    Entry,
    Frame,
    Pending,
)
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import POOL, lease
from tests.gateway.pending_entries import START_S, empty, entry

SLACK_S = 0.1


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


PendingMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPending = pytest.mark.slow(PendingMachine.TestCase)
