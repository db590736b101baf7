"""The fold of the heartbeats: leases, ages, who is there."""

from __future__ import annotations

import random

from inferbus_schemas import messages as m
from inferbus_schemas.membership import (
    EXPIRY_MS,
    Membership,
    claim_epoch,
    gateway_key,
    inbox_key,
    worker_key,
)


class Log:
    """Heartbeats as a reader gets them, a second apart."""

    def __init__(self) -> None:
        self.fleet = Membership()
        self.now_ms = 1_000_000
        self.offset = 0

    def pass_ms(self, gap_ms: int) -> None:
        self.now_ms += gap_ms

    def put(self, key: str, beat: m.Heartbeat | None) -> None:
        self.fleet.apply(key, beat, offset=self.offset, append_ms=self.now_ms)
        self.offset += 1

    def worker(
        self,
        life: int,
        epoch: int,
        state: m.State = m.STATE_ACTIVE,
        *,
        inbox: int = 0,
        end_offset: int = 0,
    ) -> None:
        part = m.WorkerBeat(pool="default", inbox=inbox, epoch=epoch, end_offset=end_offset)
        beat = m.Heartbeat(instance=f"w{life}", state=state, life=life, worker=part)
        self.put(inbox_key("default", inbox), beat)

    def gateway(self, name: str, state: m.State = m.STATE_ACTIVE) -> None:
        beat = m.Heartbeat(instance=name, state=state, life=1, gateway=m.GatewayBeat())
        self.put(gateway_key(name), beat)

    def tick(self, gap_ms: int = 1000, times: int = 1) -> None:
        for _ in range(times):
            self.pass_ms(gap_ms)
            self.gateway("clock")

    def owner(self, inbox: int = 0) -> tuple[int, int, int]:
        lease = self.fleet.lease("default", inbox)
        assert lease is not None
        return lease.life, lease.epoch, lease.state


def test_the_first_claim_of_the_highest_epoch_owns() -> None:
    log = Log()
    log.worker(1, 5)
    log.worker(2, 5)
    assert log.owner() == (1, 5, m.STATE_ACTIVE)
    log.worker(3, 7)
    log.worker(1, 5)
    log.worker(2, 6)
    assert log.owner() == (3, 7, m.STATE_ACTIVE)


def test_an_ignored_beat_keeps_nobody_alive() -> None:
    log = Log()
    log.worker(1, 5)
    for _ in range(7):
        log.pass_ms(1000)
        log.worker(2, 5)
    lease = log.fleet.lease("default", 0)
    assert lease is not None
    assert log.fleet.expired(lease)


def test_a_lease_expires_after_six_seconds_of_the_topic() -> None:
    log = Log()
    log.worker(1, 1)
    log.tick(times=5)
    log.tick(999)
    assert [one.life for one in log.fleet.workers("default")] == [1]
    log.tick(1)
    assert log.fleet.workers("default") == []


def test_a_broker_that_was_away_expires_nobody() -> None:
    log = Log()
    log.worker(1, 1)
    log.tick(3_600_000)
    assert log.fleet.clock_ms == 2000
    assert len(log.fleet.workers("default")) == 1


def test_a_clock_that_steps_back_neither_expires_nor_rejuvenates() -> None:
    log = Log()
    log.worker(1, 1)
    log.tick(times=4)
    log.pass_ms(-3000)
    log.tick(0)
    assert log.fleet.clock_ms == 4000
    log.tick(times=2)
    assert log.fleet.workers("default") == []


def test_a_beat_of_the_owner_after_its_expiry_counts_again() -> None:
    log = Log()
    log.worker(1, 1)
    log.tick(times=8)
    log.worker(1, 1)
    assert len(log.fleet.workers("default")) == 1


def test_within_an_epoch_a_lease_never_goes_back() -> None:
    log = Log()
    log.worker(1, 1)
    log.worker(1, 1, m.STATE_DRAINING)
    log.worker(1, 1)
    assert log.owner() == (1, 1, m.STATE_DRAINING)
    log.worker(1, 1, m.STATE_RELEASED, end_offset=9)
    log.worker(1, 1, m.STATE_DRAINING)
    lease = log.fleet.lease("default", 0)
    assert lease is not None
    assert (lease.state, lease.end_offset) == (m.STATE_RELEASED, 9)


def test_only_active_live_workers_are_given_work() -> None:
    log = Log()
    log.worker(1, 1, inbox=0)
    log.worker(2, 1, m.STATE_DRAINING, inbox=1)
    log.worker(3, 1, m.STATE_RELEASED, inbox=2)
    assert [one.inbox for one in log.fleet.workers("default")] == [0]
    assert [one.inbox for one in log.fleet.leases("default")] == [0, 1, 2]
    assert log.fleet.leases("other") == []


def test_holders_are_workers_that_report_ready() -> None:
    log = Log()
    for inbox, readiness in enumerate((m.READINESS_LOADING, m.READINESS_READY, m.READINESS_FAILED)):
        part = m.WorkerBeat(
            pool="default",
            inbox=inbox,
            residents=[m.Resident(model="a", version=2, readiness=readiness)],
        )
        beat = m.Heartbeat(instance="w", state=m.STATE_ACTIVE, life=inbox, worker=part)
        log.put(inbox_key("default", inbox), beat)
    assert [one.inbox for one in log.fleet.holders("default", "a", 2)] == [1]
    assert log.fleet.holders("default", "a", 1) == []
    assert log.fleet.holders("default", "b", 2) == []


def test_gateways_and_joining_workers_come_and_go() -> None:
    log = Log()
    log.gateway("g1", m.STATE_DRAINING)
    part = m.WorkerBeat(pool="default")
    joining = m.Heartbeat(instance="w1", state=m.STATE_JOINING, life=1, worker=part)
    log.put(worker_key("w1"), joining)
    assert [one.key for one in log.fleet.gateways()] == ["gateway/g1"]
    assert [one.key for one in log.fleet.joining()] == ["worker/w1"]
    member = log.fleet.member(worker_key("w1"))
    assert member is not None
    assert (member.life, member.offset) == (1, 1)
    log.put(worker_key("w1"), None)
    assert log.fleet.joining() == []
    log.tick(times=6)
    assert [one.key for one in log.fleet.gateways()] == ["gateway/clock"]


def test_a_beat_under_a_key_that_is_not_its_own_says_nothing() -> None:
    log = Log()
    part = m.WorkerBeat(pool="default", inbox=3, epoch=9)
    foreign = m.Heartbeat(instance="w", state=m.STATE_ACTIVE, life=1, worker=part)
    log.put(inbox_key("default", 4), foreign)
    log.put(worker_key("w"), foreign)
    gateway = m.Heartbeat(instance="g", state=m.STATE_ACTIVE, gateway=m.GatewayBeat())
    log.put(gateway_key("other"), gateway)
    log.put(worker_key("g"), gateway)
    log.put(gateway_key("none"), m.Heartbeat(instance="none"))
    assert log.fleet.leases("default") == []
    assert log.fleet.gateways() == []
    assert log.fleet.joining() == []


def test_holes_in_the_offsets_are_counted_after_the_first_record() -> None:
    log = Log()
    log.offset = 40
    log.tick()
    log.tick()
    assert (log.fleet.position, log.fleet.n_compacted) == (42, 0)
    log.offset = 50
    log.tick()
    assert (log.fleet.position, log.fleet.n_compacted) == (51, 8)


def test_a_reader_of_a_compacted_topic_sees_no_lease_older_than_it_is() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        records = []
        now_ms = 0
        for offset in range(200):
            now_ms += rng.choice((0, 100, 300, 5000))
            inbox = rng.randrange(4)
            part = m.WorkerBeat(pool="default", inbox=inbox, epoch=1)
            beat = m.Heartbeat(instance="w", state=m.STATE_ACTIVE, life=inbox, worker=part)
            records.append((offset, now_ms, inbox_key("default", inbox), beat))
        last = {key: offset for offset, _, key, _ in records}
        whole, compacted = Membership(), Membership()
        for offset, append_ms, key, beat in records:
            whole.apply(key, beat, offset=offset, append_ms=append_ms)
            if offset > 150 or last[key] == offset:
                compacted.apply(key, beat, offset=offset, append_ms=append_ms)
        for seen in compacted.leases("default"):
            true = whole.lease("default", seen.inbox)
            assert true is not None
            assert true.offset == seen.offset
            assert compacted.age_ms(seen) <= whole.age_ms(true)
        assert compacted.position == whole.position
    assert EXPIRY_MS == 6000


def test_claims_made_from_one_view_have_one_owner_for_every_reader() -> None:
    log = Log()
    log.tick(times=50)
    one, two = 3 << 60, 9 << 60
    claims = [(life, claim_epoch(log.fleet, "default", 0, life)) for life in (one, two)]
    assert claims[0][1] < claims[1][1]
    for hidden in ((), (0,), (1,)):
        # What compaction hides from a reader that starts late changes nothing once the owner beats.
        for first_two in (claims, claims[::-1]):
            seen = Log()
            seen.tick(times=50)
            for number, (life, epoch) in enumerate([*first_two, claims[1]]):
                if number not in hidden:
                    seen.worker(life, epoch)
            assert seen.owner()[0] == two


def test_an_epoch_is_above_the_highest_seen_and_the_position() -> None:
    log = Log()
    log.worker(1, claim_epoch(log.fleet, "default", 0, (1 << 64) - 1))
    (_, first, _) = log.owner()
    second = claim_epoch(log.fleet, "default", 0, 0)
    assert second > first
    log.tick(times=100)
    assert claim_epoch(log.fleet, "default", 0, 0) >> 20 == log.fleet.position
    log.worker(2, 1 << 62)
    assert 1 << 62 < claim_epoch(log.fleet, "default", 0, 0) < 1 << 64
