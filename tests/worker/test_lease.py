"""The lease of inboxes, step by step; what fleets of them do is in `tests/fleet`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership, gateway_key
from inferbus_worker.control.lease import (
    Action,
    Close,
    Facts,
    Lease,
    ReadEnd,
    Reading,
    StartReading,
    StopReading,
    Tombstone,
    WriteBeat,
)

ME = 1


class Desk:
    """A lease, the heartbeats that it reads, and what is known of the inboxes."""

    def __init__(self, *, n_inboxes: int = 1, instance: str = "w1") -> None:
        self.fleet = Membership()
        self.instance = instance
        self.lease = Lease("default", instance, ME, self.fleet)
        self.n_inboxes = n_inboxes
        self.behind: frozenset[int] | None = frozenset()
        self.readings: dict[int, Reading] = {}
        self.offset = 0
        self.now_ms = 0

    def step(self) -> list[Action]:
        return self.lease.step(Facts(self.n_inboxes, self.behind, self.readings))

    def put(self, key: str, beat: m.Heartbeat | None) -> None:
        self.fleet.apply(key, beat, offset=self.offset, append_ms=self.now_ms)
        self.offset += 1

    def read_back(self, actions: Iterable[Action]) -> None:
        """Let beats arrive, as those of this life."""
        for said in actions:
            if isinstance(said, Tombstone):
                self.put(said.key, None)
            elif isinstance(said, WriteBeat):
                part = m.WorkerBeat(
                    pool="default", inbox=said.inbox, epoch=said.epoch, end_offset=said.end_offset
                )
                beat = m.Heartbeat(instance=self.instance, state=said.state, life=ME, worker=part)
                self.put(said.key, beat)

    def other(
        self, epoch: int, state: m.State = m.STATE_ACTIVE, *, inbox: int = 0, life: int = 2
    ) -> None:
        part = m.WorkerBeat(pool="default", inbox=inbox, epoch=epoch)
        beat = m.Heartbeat(instance=f"w{life}", state=state, life=life, worker=part)
        self.put(f"default/{inbox}", beat)

    def pass_s(self, seconds: int) -> None:
        """Let time pass with this worker beating, and with it the topic's clock."""
        for _ in range(seconds):
            self.now_ms += 1000
            self.read_back(self.lease.beats())
            beat = m.Heartbeat(instance="g", state=m.STATE_ACTIVE, gateway=m.GatewayBeat())
            self.put(gateway_key("g"), beat)

    def claim(self) -> WriteBeat:
        """Join and choose; return the claim, which is not read back yet."""
        self.read_back(self.step())
        (claim,) = self.step()
        assert isinstance(claim, WriteBeat)
        return claim

    def own(self) -> int:
        claim = self.claim()
        self.read_back([claim])
        assert claim.inbox is not None
        assert self.step() == [StartReading(claim.inbox), Tombstone(f"worker/{self.instance}")]
        self.readings[claim.inbox] = Reading(5, 5, n_open=0, stopped=False)
        assert self.lease.active
        return claim.inbox


def test_it_joins_and_claims_only_after_it_has_read_its_own_beat() -> None:
    desk = Desk()
    assert desk.step() == [WriteBeat("worker/w1", m.STATE_JOINING)]
    assert desk.step() == []
    desk.read_back(desk.lease.beats())
    desk.behind = None
    assert desk.step() == []
    desk.behind = frozenset()
    assert desk.step() == [WriteBeat("default/0", m.STATE_ACTIVE, 0, 1 << 20)]
    assert desk.step() == []
    assert desk.lease.inbox is None


def test_a_beat_of_an_earlier_life_is_not_its_own() -> None:
    desk = Desk()
    desk.step()
    part = m.WorkerBeat(pool="default")
    desk.put("worker/w1", m.Heartbeat(instance="w1", state=m.STATE_JOINING, life=9, worker=part))
    assert desk.step() == []


def test_the_epoch_is_above_the_highest_seen_and_not_below_the_position() -> None:
    seen, position = Desk(), Desk()
    seen.other(70 << 20 | 5, m.STATE_RELEASED)
    position.offset = 400
    position.other(70 << 20 | 5, m.STATE_RELEASED)
    assert seen.claim().epoch == 71 << 20
    assert position.claim().epoch == 402 << 20


def test_it_takes_what_is_behind_first_and_nothing_that_lives() -> None:
    desk = Desk(n_inboxes=4)
    desk.other(1, inbox=2)
    desk.behind = frozenset({2, 3})
    assert desk.claim().inbox == 3


def test_joiners_choose_apart() -> None:
    chosen = {Desk(n_inboxes=16, instance=f"w{number}").claim().inbox for number in range(16)}
    assert len(chosen) >= 8


def test_without_a_free_inbox_it_waits_and_says_so() -> None:
    desk = Desk()
    desk.other(1)
    desk.read_back(desk.step())
    assert desk.step() == []
    assert desk.lease.no_inbox_free
    desk.other(1, m.STATE_RELEASED)
    assert [type(one) for one in desk.step()] == [WriteBeat]
    assert not desk.lease.no_inbox_free


def test_it_chooses_again_when_another_claimed_first() -> None:
    desk = Desk(n_inboxes=2)
    claim = desk.claim()
    assert claim.inbox is not None
    desk.other(claim.epoch, inbox=claim.inbox)
    desk.read_back([claim])
    assert desk.step() == []
    (again,) = desk.step()
    assert isinstance(again, WriteBeat)
    assert again.inbox == 1 - claim.inbox
    assert again.epoch > claim.epoch


def test_a_claim_read_back_across_a_hole_in_the_topic_does_not_count() -> None:
    desk = Desk()
    claim = desk.claim()
    desk.offset += 1
    desk.read_back([claim])
    assert desk.step() == []
    assert desk.lease.inbox is None
    desk.other(claim.epoch + 3, m.STATE_RELEASED)
    (again,) = desk.step()
    assert isinstance(again, WriteBeat)
    assert again.epoch > claim.epoch + 3


def test_it_beats_as_owner_and_ignores_lower_epochs() -> None:
    desk = Desk()
    desk.own()
    desk.other(0)
    assert desk.step() == []
    (beat,) = desk.lease.beats()
    assert (beat.key, beat.state, beat.inbox) == ("default/0", m.STATE_ACTIVE, 0)


def test_a_lost_inbox_is_stopped_at_once_finished_and_not_committed() -> None:
    desk = Desk()
    desk.own()
    desk.other(50 << 20)
    assert desk.step() == [StopReading(0, commit=False)]
    assert desk.lease.beats() == [WriteBeat("worker/w1", m.STATE_JOINING)]
    desk.readings[0] = Reading(9, 5, n_open=2, stopped=True)
    assert desk.step() == []
    desk.readings[0] = Reading(9, 5, n_open=0, stopped=True)
    assert desk.step() == [Close(0)]
    del desk.readings[0]
    assert desk.step() == [WriteBeat("worker/w1", m.STATE_JOINING)]


def test_a_lost_inbox_that_never_ends_holds_it_up_for_a_minute_at_most() -> None:
    desk = Desk()
    desk.own()
    desk.other(50 << 20)
    assert desk.step() == [StopReading(0, commit=False)]
    desk.readings[0] = Reading(9, 5, n_open=1, stopped=True)
    desk.pass_s(59)
    assert desk.step() == []
    desk.pass_s(1)
    assert desk.step() == [Close(0)]


def test_a_drain_reads_on_for_two_beats_then_to_the_end_then_finishes() -> None:
    desk = Desk()
    desk.own()
    desk.lease.drain()
    (draining,) = desk.step()
    assert isinstance(draining, WriteBeat)
    assert draining.state == m.STATE_DRAINING
    desk.read_back([draining, draining])
    assert desk.step() == [], "two beats, but no time has passed"
    desk.pass_s(1)
    assert desk.step() == [ReadEnd(0)]
    desk.lease.end_found(0, 8)
    assert desk.step() == []
    desk.readings[0] = Reading(9, 5, n_open=3, stopped=False)
    assert desk.step() == [StopReading(0, commit=True)]
    for position, committed, n_open in ((9, 5, 3), (9, 8, 1), (9, 8, 0)):
        desk.readings[0] = Reading(position, committed, n_open, stopped=True)
        assert desk.step() == []
    desk.readings[0] = Reading(9, 9, n_open=0, stopped=True)
    (released,) = desk.step()
    assert isinstance(released, WriteBeat)
    assert (released.state, released.end_offset) == (m.STATE_RELEASED, 9)
    assert desk.step() == []
    assert desk.lease.beats() == [released]
    desk.read_back([released])
    assert desk.step() == [Close(0)]
    assert desk.step() == [Tombstone("worker/w1")]
    assert desk.lease.done
    assert desk.lease.beats() == []
    assert desk.step() == []


def test_a_drain_that_loses_its_inbox_releases_nothing() -> None:
    desk = Desk()
    desk.own()
    desk.lease.drain()
    desk.read_back(desk.step())
    desk.other(50 << 20)
    assert desk.step() == [StopReading(0, commit=False)]
    desk.readings[0] = Reading(5, 5, n_open=0, stopped=True)
    assert desk.step() == [Close(0)]
    assert desk.step() == [Tombstone("worker/w1")]
    assert desk.lease.done


def test_a_drain_while_joining_only_says_goodbye() -> None:
    desk = Desk()
    desk.read_back(desk.step())
    desk.lease.drain()
    assert desk.step() == [Tombstone("worker/w1")]
    assert desk.lease.done


def test_a_drain_while_claiming_releases_everything_unread() -> None:
    desk = Desk()
    claim = desk.claim()
    desk.lease.drain()
    released = WriteBeat(claim.key, m.STATE_RELEASED, 0, claim.epoch, 0)
    assert desk.step() == [released]
    desk.read_back([claim, released])
    assert desk.step() == []
    assert desk.step() == [Tombstone("worker/w1")]


@pytest.mark.parametrize("state", [m.STATE_ACTIVE, m.STATE_RELEASED])
def test_it_adopts_what_the_dead_left_and_shows_it_draining(state: m.State) -> None:
    desk = Desk(n_inboxes=2)
    mine = desk.own()
    left = 1 - mine
    desk.other(1, state, inbox=left)
    desk.behind = frozenset({left})
    desk.pass_s(6)
    assert desk.step() == [], "not before it has been left for more than six seconds"
    desk.pass_s(1)
    (claim,) = desk.step()
    assert isinstance(claim, WriteBeat)
    assert (claim.inbox, claim.state) == (left, m.STATE_DRAINING)
    desk.read_back([claim])
    assert desk.step() == [StartReading(left)]
    assert (desk.lease.inbox, desk.lease.adopted) == (mine, left)
    assert [beat.inbox for beat in desk.lease.beats()] == [mine, left]
    desk.readings[left] = Reading(4, 4, n_open=0, stopped=False)
    desk.pass_s(1)
    desk.step()
    desk.pass_s(1)
    assert desk.step() == [ReadEnd(left)]
    desk.lease.end_found(left, 4)
    assert desk.step() == [StopReading(left, commit=True)]
    desk.readings[left] = Reading(4, 4, n_open=0, stopped=True)
    (released,) = desk.step()
    desk.read_back([released])
    assert desk.step() == [Close(left)]
    assert desk.lease.adopted is None
    assert desk.lease.active


def test_it_adopts_nothing_that_is_drained_or_that_lives() -> None:
    desk = Desk(n_inboxes=3)
    mine = desk.own()
    empty, lives = (inbox for inbox in range(3) if inbox != mine)
    desk.other(1, m.STATE_RELEASED, inbox=empty)
    desk.behind = frozenset({lives})
    for _ in range(12):
        desk.other(1, inbox=lives)
        desk.pass_s(1)
        assert desk.step() == []


def test_workers_adopt_by_turns() -> None:
    waits = []
    for instance in ("w1", "w3", "w4"):
        desk = Desk(n_inboxes=4, instance=instance)
        mine = desk.own()
        others = [inbox for inbox in range(4) if inbox != mine]
        left = 3 if mine != 3 else 2
        desk.other(1, m.STATE_RELEASED, inbox=left)
        desk.behind = frozenset({left})
        mates = [inbox for inbox in others if inbox != left]
        for waited_s in range(30):
            for life, inbox in zip((7, 8), mates, strict=True):
                desk.other(1, inbox=inbox, life=life)
            desk.pass_s(1)
            if desk.step():
                waits.append(waited_s)
                break
    assert len(waits) == 3
    assert set(waits) <= {6, 7, 8, 9, 10, 11}
    assert len(set(waits)) > 1


def test_a_worker_that_stops_drains_what_it_adopted_too() -> None:
    desk = Desk(n_inboxes=2)
    mine = desk.own()
    left = 1 - mine
    desk.other(1, inbox=left)
    desk.behind = frozenset({left})
    desk.pass_s(7)
    desk.read_back(desk.step())
    assert desk.step() == [StartReading(left)]
    desk.readings[left] = Reading(0, 0, n_open=0, stopped=False)
    desk.lease.drain()
    for _ in range(20):
        actions = desk.step()
        for action in actions:
            if isinstance(action, ReadEnd):
                desk.lease.end_found(action.inbox, desk.readings[action.inbox].position)
            elif isinstance(action, StopReading):
                at = desk.readings[action.inbox].position
                desk.readings[action.inbox] = Reading(at, at, n_open=0, stopped=True)
            elif isinstance(action, Close):
                del desk.readings[action.inbox]
        desk.read_back(actions)
        if desk.lease.done:
            break
        desk.pass_s(1)
    assert desk.lease.done
    assert all(lease.state == m.STATE_RELEASED for lease in desk.fleet.leases("default"))
