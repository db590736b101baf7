"""The batcher against its invariants, under any sequence of arrivals and releases."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inferbus_worker.hot.batcher import Batcher, Limits

MAX_ROWS, MAX_WAIT_S, MAX_BYTES = 8, 0.005, 100


@dataclass(eq=False)
class Item:
    number: int
    bucket: str
    rows: int
    n_bytes: int
    arrived_s: float
    deadline_s: float


class BatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.batcher: Batcher[Item] = Batcher(Limits(MAX_ROWS, MAX_WAIT_S, MAX_BYTES))
        self.now_s = 0.0
        self.waiting: list[Item] = []
        self.n_added = 0
        self.n_left = 0

    @rule(
        bucket=st.sampled_from("abc"),
        rows=st.integers(1, 12),
        n_bytes=st.integers(1, 120),
        budget_s=st.floats(0.0001, 0.05),
    )
    def add(self, bucket: str, rows: int, n_bytes: int, budget_s: float) -> None:
        item = Item(self.n_added, bucket, rows, n_bytes, self.now_s, self.now_s + budget_s)
        self.n_added += 1
        self.waiting.append(item)
        self.batcher.add(bucket, item)

    @rule(step_s=st.floats(0.0, 0.004))
    def wait(self, step_s: float) -> None:
        self.now_s += step_s

    @rule(idle=st.booleans())
    def take(self, idle: bool) -> None:  # noqa: FBT001 -- hypothesis passes it by name
        before = list(self.waiting)
        released = self.batcher.take(self.now_s, idle=idle)
        if released is None:
            # An idle engine leaves nothing waiting, and a busy one nothing that is due or full.
            assert not (idle and before)
            for bucket in "abc":
                left = [item for item in before if item.bucket == bucket]
                assert sum(item.rows for item in left) < MAX_ROWS
                assert sum(item.n_bytes for item in left) < MAX_BYTES
                assert all(self.now_s < item.arrived_s + MAX_WAIT_S for item in left)
            return
        items = released.items
        self.n_left += len(items)
        assert released.rows == sum(item.rows for item in items)
        assert len({item.bucket for item in items}) == 1
        of_bucket = [item for item in before if item.bucket == items[0].bucket]
        assert items == of_bucket[: len(items)], "order is kept and none is passed over"
        if len(items) > 1:
            assert released.rows <= MAX_ROWS
            assert sum(item.n_bytes for item in items) <= MAX_BYTES
        self._check_reason(released.released_by, of_bucket, idle=idle)
        self.waiting = [item for item in before if item not in items]

    def _check_reason(self, reason: str, queue: list[Item], *, idle: bool) -> None:
        full = sum(item.rows for item in queue) >= MAX_ROWS
        heavy = sum(item.n_bytes for item in queue) >= MAX_BYTES
        head = queue[0]
        due = self.now_s >= min(head.arrived_s + MAX_WAIT_S, head.deadline_s)
        expected = "rows" if full else "bytes" if heavy else "deadline" if due else "idle"
        assert reason == expected
        assert reason != "idle" or idle

    @rule()
    def expire(self) -> None:
        gone = self.batcher.expire(self.now_s)
        assert {item.number for item in gone} == {
            item.number for item in self.waiting if item.deadline_s <= self.now_s
        }
        self.n_left += len(gone)
        self.waiting = [item for item in self.waiting if item not in gone]

    @rule()
    def drain(self) -> None:
        gone = self.batcher.drain()
        assert {item.number for item in gone} == {item.number for item in self.waiting}
        self.n_left += len(gone)
        self.waiting = []

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert self.n_added == self.n_left + len(self.waiting)
        assert self.batcher.rows == sum(item.rows for item in self.waiting)
        assert self.batcher.n_bytes == sum(item.n_bytes for item in self.waiting)
        assert bool(self.batcher) == bool(self.waiting)
        oldest = min((item.arrived_s for item in self.waiting), default=None)
        assert self.batcher.oldest_s == oldest


TestBatcher = BatcherMachine.TestCase
TestBatcher.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(rows=st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_nothing_waits_longer_than_max_wait_for_an_engine_that_is_asked_in_time(
    rows: list[int],
) -> None:
    batcher: Batcher[Item] = Batcher(Limits(MAX_ROWS, MAX_WAIT_S, MAX_BYTES))
    now_s = 0.0
    for number, n in enumerate(rows):
        now_s = number * 0.001
        batcher.add("a", Item(number, "a", n, 1, now_s, now_s + 10))
        due_s = batcher.due_s
        assert due_s is not None
        if now_s >= due_s:
            while (released := batcher.take(now_s, idle=False)) is not None:
                assert all(now_s - item.arrived_s < MAX_WAIT_S + 0.0011 for item in released.items)
    assert batcher.oldest_s is None or now_s - batcher.oldest_s < MAX_WAIT_S


def test_a_request_with_more_rows_than_a_batch_goes_alone() -> None:
    batcher: Batcher[Item] = Batcher(Limits(MAX_ROWS, MAX_WAIT_S, MAX_BYTES))
    for number, rows in enumerate((2, 30, 3)):
        batcher.add("a", Item(number, "a", rows, 1, 0.0, 10.0))
    taken = [batcher.take(0.0, idle=True) for _ in range(3)]
    assert [[i.number for i in one.items] for one in taken if one is not None] == [[0], [1], [2]]


def test_the_bucket_that_waits_longest_goes_first() -> None:
    batcher: Batcher[Item] = Batcher(Limits(MAX_ROWS, MAX_WAIT_S, MAX_BYTES))
    batcher.add("young", Item(0, "young", MAX_ROWS, 1, 1.0, 10.0))
    batcher.add("old", Item(1, "old", 1, 1, 0.0, 10.0))
    first = batcher.take(1.001, idle=False)
    assert first is not None
    assert first.items[0].bucket == "old"
    assert first.released_by == "deadline"
