"""The promises to a request hold in a simulated fleet; the simulation notices where they do not.

`INFERBUS_FLEET_SEEDS=2000` runs more seeds than a normal run has time for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from inferbus_gateway.hot.pending import Entry, Frame, Pending
from inferbus_gateway.hot.pins import Pins
from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease, Membership
from inferbus_worker.control.holding import Key
from tests.fleet.process_model import (
    CALM,
    DEATHS,
    EVERYTHING,
    HURRIED,
    LONELY,
    PROMPT,
    Classes,
    Faults,
)
from tests.fleet.simulation import BrokenError
from tests.fleet.whole_fleet import World

N_SEEDS = int(os.environ.get("INFERBUS_FLEET_SEEDS", "36"))
PARTS = 4
MUTANT_SEEDS = 16
MODES = {
    "calm": CALM,
    "prompt": PROMPT,
    "lonely": LONELY,
    "deaths": DEATHS,
    "everything": EVERYTHING,
    "hurried": HURRIED,
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("mode", MODES)
def test_promises_hold_whatever_happens(mode: str, part: int) -> None:
    for seed in range(part, N_SEEDS, PARTS):
        try:
            World(seed, MODES[mode]).run()
        except BrokenError as error:
            raise BrokenError(f"{mode}, seed {seed}: {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prompt", "lonely"])
def test_resends_alone_answer_in_time_where_nobody_adopts(mode: str) -> None:
    for seed in range(MUTANT_SEEDS):
        World(seed, MODES[mode], Classes(adoption=False)).run()


def breaks(faults: Faults, classes: Classes) -> str:
    for seed in range(MUTANT_SEEDS):
        try:
            World(seed, faults, classes).run()
        except BrokenError as error:
            return str(error)
    return ""


class IgnoresReleases(Pending):
    def lease_seen(self, lease: InboxLease, *, expired: bool, now_s: float) -> list[Entry]:
        if lease.state == m.STATE_RELEASED:
            return []
        return super().lease_seen(lease, expired=expired, now_s=now_s)


class IgnoresExpiry(Pending):
    def lease_seen(self, lease: InboxLease, *, expired: bool, now_s: float) -> list[Entry]:
        del expired
        return super().lease_seen(lease, expired=False, now_s=now_s)


class IgnoresFailedAttempts(Pending):
    def ended(self, request_id: bytes, attempt: int, outcome: int, now_s: float) -> Entry | None:
        if outcome == m.OUTCOME_ATTEMPT_FAILED:
            return None
        return super().ended(request_id, attempt, outcome, now_s)


class TakesAnyRecordAsTheEnd(Pending):
    def ended(self, request_id: bytes, attempt: int, outcome: int, now_s: float) -> Entry | None:
        if outcome == m.OUTCOME_ATTEMPT_FAILED:
            outcome = m.OUTCOME_FAILED
        return super().ended(request_id, attempt, outcome, now_s)


class ChangesTheVersion(Pending):
    def placed(self, entry: Entry, lease: InboxLease, frame: Frame) -> None:
        super().placed(entry, lease, frame)
        entry.request.version = entry.request.version % 4 + 1


class HidesWhatIsInFlight(Pins):
    def beat(self, in_flight: object) -> list[m.GatewayModel]:
        del in_flight
        return super().beat(())


class PinsAtOnce(Pins):
    @staticmethod
    def _ready(fleet: Membership, deployment: m.Deployment, version: int) -> bool:
        del fleet, deployment, version
        return True


def drop_at_once(
    deployments: Mapping[str, m.Deployment], _fleet: Membership, pool: str, _held: object
) -> dict[Key, int]:
    return {
        (model, version): deployment.generation
        for model, deployment in deployments.items()
        for part in deployment.pools
        if part.pool == pool
        for version in part.versions
    }


def serve_at_once(deployment: m.Deployment, _fleet: Membership) -> m.Deployment | None:
    following = m.Deployment()
    following.CopyFrom(deployment)
    wanted = deployment.aliases[0].wanted
    following.aliases[0].serving = wanted
    following.pools[0].versions[:] = [wanted]
    return following if following != deployment else None


BROKEN: dict[str, tuple[Faults, Classes]] = {
    "ignores releases": (PROMPT, Classes(pending=IgnoresReleases, adoption=False)),
    "ignores expiry": (LONELY, Classes(pending=IgnoresExpiry, adoption=False)),
    "ignores failed attempts": (PROMPT, Classes(pending=IgnoresFailedAttempts)),
    "takes any record as the end": (PROMPT, Classes(pending=TakesAnyRecordAsTheEnd)),
    "changes the version": (CALM, Classes(pending=ChangesTheVersion)),
    "hides what is in flight": (CALM, Classes(pins=HidesWhatIsInFlight)),
    "pins at once": (CALM, Classes(pins=PinsAtOnce)),
    "drops at once": (CALM, Classes(hold=drop_at_once, converge=serve_at_once)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_the_simulation_notices_one_that(name: str) -> None:
    assert breaks(*BROKEN[name])
