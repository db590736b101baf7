"""The leases hold their promises in a simulated fleet, and the simulation notices if they do not."""

from __future__ import annotations

import pytest

from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease, Membership
from inferbus_worker.control import lease as leases
from tests.fleet.simulation import BrokenError, World

N_SEEDS = 300
PARTS = 10


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_promises_hold_whatever_happens(part: int) -> None:
    for seed in range(part, N_SEEDS, PARTS):
        try:
            World(seed).run()
        except BrokenError as error:
            raise BrokenError(f"seed {seed}: {error}") from error
