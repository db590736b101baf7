"""Which worker gets a request: never a dead or draining one, and the load evens out."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from inferbus_gateway.hot.placement import Placement
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import POOL, Fleet

MODEL = ("m", 1)


def chosen(placement: Placement, rows: dict[tuple[str, int], int], n: int) -> Counter[int]:
    found = Counter[int]()
    for _ in range(n):
        lease = placement.choose(POOL, *MODEL, rows)
        assert lease is not None
        found[lease.inbox] += 1
    return found


def test_only_live_active_holders_of_the_version_are_chosen() -> None:
    fleet = Fleet()
    loading = m.Resident(model="m", version=1, readiness=m.READINESS_LOADING)
    fleet.worker(0, MODEL)
    fleet.silence(7)
    fleet.worker(1, MODEL, state=m.STATE_DRAINING)
    fleet.worker(2, ("m", 2), ("other", 1))
    fleet.worker(3, others=[loading])
    fleet.worker(4, MODEL, pool="other")
    fleet.worker(5, MODEL, state=m.STATE_RELEASED)
    placement = Placement(fleet.seen, 1)
    assert placement.choose(POOL, *MODEL, {}) is None
    fleet.worker(6, MODEL)
    placement.fleet_changed()
    assert chosen(placement, {}, 20) == {6: 20}


def test_what_was_looked_up_is_forgotten_when_the_fleet_says_something() -> None:
    fleet = Fleet()
    fleet.worker(0, MODEL)
    placement = Placement(fleet.seen, 1)
    assert placement.choose(POOL, *MODEL, {}) is not None
    fleet.worker(0, MODEL, state=m.STATE_DRAINING)
    placement.fleet_changed()
    assert placement.choose(POOL, *MODEL, {}) is None


def test_the_worker_that_failed_is_chosen_only_where_there_is_no_other() -> None:
    fleet = Fleet()
    fleet.worker(0, MODEL)
    placement = Placement(fleet.seen, 7)
    lease = placement.choose(POOL, *MODEL, {}, avoid=(POOL, 0))
    assert lease is not None
    assert lease.inbox == 0
    fleet.worker(1, MODEL)
    placement.fleet_changed()
    for _ in range(20):
        lease = placement.choose(POOL, *MODEL, {}, avoid=(POOL, 0))
        assert lease is not None
        assert lease.inbox == 1


def test_of_two_the_one_with_less_to_do_is_chosen() -> None:
    fleet = Fleet()
    fleet.worker(0, MODEL, backlog_rows=10)
    fleet.worker(1, MODEL, backlog_rows=2)
    placement = Placement(fleet.seen, 3)
    assert chosen(placement, {}, 50) == {1: 50}
    # Rows that this gateway has put there since count as well.
    assert chosen(placement, {(POOL, 1): 9}, 50) == {0: 50}


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**64), n=st.integers(2, 16))
def test_idle_workers_share_evenly_whatever_the_seed(seed: int, n: int) -> None:
    fleet = Fleet()
    for inbox in range(n):
        fleet.worker(inbox, MODEL)
    found = chosen(Placement(fleet.seen, seed), {}, 200 * n)
    assert set(found) == set(range(n))
    assert max(found.values()) < 2 * 200


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_placing_without_any_answer_keeps_the_queues_level(seed: int) -> None:
    fleet = Fleet()
    for inbox in range(8):
        fleet.worker(inbox, MODEL)
    placement = Placement(fleet.seen, seed)
    rows: dict[tuple[str, int], int] = {}
    for _ in range(2000):
        lease = placement.choose(POOL, *MODEL, rows)
        assert lease is not None
        rows[POOL, lease.inbox] = rows.get((POOL, lease.inbox), 0) + 1
    # Two choices: the longest queue is O(log log n) above the mean; one choice gives about 60.
    assert max(rows.values()) - min(rows.values()) <= 10
