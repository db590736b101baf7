"""The leases hold their promises in a simulated fleet; where they do not, it is noticed."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease, Membership
from inferbus_worker.control import lease as leases
from tests.fleet.simulation import BrokenError, World

N_SEEDS = 300
PARTS = 6


def first_broken(seeds: Iterable[int], world: type[World]) -> str | None:
    for seed in seeds:
        try:
            world(seed).run()
        except BrokenError as error:
            return f"seed {seed}: {error}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_promises_hold_whatever_happens(part: int) -> None:
    assert first_broken(range(part, N_SEEDS, PARTS), World) is None


def test_the_world_is_as_bad_as_it_says() -> None:
    n_frames = n_compacted = n_lives = n_claims = 0
    for seed in range(20):
        world = World(seed)
        world.run()
        n_frames += sum(len(frames) for frames in world.bus.finished)
        n_compacted += sum(world.bus.gone)
        n_lives += world.n_lives
        n_claims += len(world.owners)
    assert n_frames > 500
    assert n_compacted > 100
    assert n_lives > 60
    assert n_claims > 60


class Deaf(leases.Lease):
    """Does not heed a higher epoch."""

    def _lost(self, hold: leases._Hold, lease: InboxLease | None) -> bool:
        return hold.phase is leases._Phase.CLAIMING and super()._lost(hold, lease)


class Hasty(leases.Lease):
    """Releases what it has read, finished or not."""

    def _step_stopping(
        self, hold: leases._Hold, reading: leases.Reading | None, out: list[leases.Action]
    ) -> None:
        if reading is not None:
            at = reading.position
            reading = leases.Reading(at, at, n_open=0, stopped=reading.stopped)
        super()._step_stopping(hold, reading, out)


class Greedy(leases.Lease):
    """Releases more than it has read."""

    def _step_stopping(
        self, hold: leases._Hold, reading: leases.Reading | None, out: list[leases.Action]
    ) -> None:
        super()._step_stopping(hold, reading, out)
        if hold.state == m.STATE_RELEASED:
            hold.end_offset += 1
            out[:] = [self._beat(hold)]


class Unkind(leases.Lease):
    """Leaves what the dead left."""

    def _adopt(self, facts: leases.Facts, out: list[leases.Action]) -> None:
        """Adopt nothing."""


class Shy(leases.Lease):
    """Takes only what was never claimed."""

    def _free(self, inbox: int) -> bool:
        return self._membership.lease(self._pool, inbox) is None


class Naive(leases.Lease):
    """Claims one above the highest epoch that it has seen."""

    def _claim(self, inbox: int, state: m.State, out: list[leases.Action]) -> leases._Hold:
        hold = super()._claim(inbox, state, out)
        lease = self._membership.lease(self._pool, inbox)
        hold.epoch = 0 if lease is None else lease.epoch + 1
        out[-1] = self._beat(hold)
        return hold


class Forgetful(Membership):
    """Takes the last record of an inbox for its lease, whatever its epoch."""

    def _apply_inbox(self, key: str, beat: m.Heartbeat, offset: int) -> None:
        self._leases.pop((beat.worker.pool, beat.worker.inbox), None)
        super()._apply_inbox(key, beat, offset)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lease", "membership", "complaint"),
    [
        (Deaf, Membership, "owners for ever"),
        (Hasty, Membership, "released before it is finished"),
        (Greedy, Membership, "released above what was read"),
        (Unkind, Membership, "nobody finishes"),
        (Shy, Membership, "stranded"),
        (Naive, Membership, "two owners"),
        (leases.Lease, Forgetful, "two owners"),
    ],
)
def test_a_broken_machine_is_noticed(
    lease: type[leases.Lease], membership: type[Membership], complaint: str
) -> None:
    class BrokenWorld(World):
        new_lease = lease
        new_membership = membership

    found = []
    for seed in range(N_SEEDS):
        said = first_broken([seed], BrokenWorld)
        if said is not None:
            found.append(said)
            if complaint in said:
                return
    pytest.fail(f"no seed shows {complaint!r}; seen: {found[:5]}")
