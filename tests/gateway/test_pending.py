"""Unanswered requests, one rule at a time; any order of events: test_pending_machine."""

from __future__ import annotations

import time

import pytest

from inferbus_gateway.hot import pending as module
from inferbus_gateway.hot.pending import MAX_ATTEMPTS, UNKNOWN_AFTER_S, Frame, Pending
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import lease
from tests.gateway.pending_entries import START_S, empty, entry


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
