"""Kill -9 of each service under load, and worse; then the clients' ledger and the log must agree.

Promises A (an answer has its row), B (one outcome) and D (the version answered is the version
pinned, and was live) as `check_ledger` states them. C (no offset before its result) does not show
here: gateways send again what a worker has lost. `tests/kit/test_pure.py` holds it for the offsets,
`tests/worker/test_inbox.py` for an inbox, `test_worker_kafka.py` for a worker that restarts.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from inferbus_dev.stack import Stack
from tests.chaos import adoption, frozen_and_grown
from tests.support import stacks
from tests.support.ledger import OUTCOME_UNKNOWN, Ledger
from tests.support.reconcile import Live, check_ledger, unknown_ended
from tests.support.traffic import Seen, Traffic

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(420)]

RATE_PER_S = 40
LIVE = Live(1, 0.0, math.inf)
"""The one version that is ever pushed."""
LATE_RECORD_S = 30.0
"""How long the record may take that a gateway owes to an answer `outcome_unknown`."""
VICTIMS = ("engine", "logger", "registry", "worker", "gateway", "postgres", "valkey", "kafka")


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    # A load balancer that looks ten times a second must see it go, however busy the machine is.
    async with stacks.running(n_workers=2, n_gateways=2, env={"INFERBUS_GRACE_S": "2"}) as running:
        await stacks.push(running, "breast-cancer")
        yield running


async def test_whoever_dies_or_stands_still_no_answer_is_lost(stack: Stack, tmp_path: Path) -> None:
    """One stack for all of it, since starting it is what costs."""
    path = tmp_path / "ledger"

    async def agrees(after: str) -> None:
        await unknown_ended(path, stack.postgres, LATE_RECORD_S)
        await stacks.at_rest(stack)
        violations = await check_ledger(path, stack.postgres, stack.kafka, live=[LIVE])
        assert not violations, (after, violations[:5])

    with Ledger(path) as ledger:
        for seed, victim in enumerate(VICTIMS):
            seen = await _under_load(stack, victim, ledger, seed)
            await agrees(victim)
            _expect(victim, seen)
        for step in frozen_and_grown.STEPS:
            await step(stack, ledger)
            await agrees(step.__name__)


async def _under_load(stack: Stack, victim: str, ledger: Ledger, seed: int) -> Seen:
    traffic = Traffic(
        lambda: stack.gateways,
        ledger,
        "breast-cancer",
        rate_per_s=RATE_PER_S,
        seed=seed,
    )
    async with traffic:
        await asyncio.sleep(1.0)
        await _kill(stack, victim)
        await asyncio.sleep(3.0)
    return traffic.seen


async def _kill(stack: Stack, victim: str) -> None:
    if victim == "engine":
        worker = psutil.Process(stack.process("worker", 0).pid)
        engines = worker.children()
        assert engines
        os.kill(engines[0].pid, signal.SIGKILL)
        return
    if victim == "worker":
        await adoption.a_worker_stays_dead(stack)
        return
    stack.kill(victim, 0, signal.SIGKILL)
    await stack.wait_ready(victim, 0)


def _expect(victim: str, seen: Seen) -> None:
    """What a client may see, by who died."""
    assert seen.n_sent > 50
    if victim in {"engine", "logger", "registry", "worker", "postgres", "valkey"}:
        assert seen.statuses == {200: seen.n_sent}, (victim, seen.failures[:3], seen.unknown)
    if victim == "gateway":
        # Connections to the dead one break; nobody is answered with an error, or told that a record
        # will follow, which the dead one could not write.
        assert not seen.failures, seen.failures[:3]
        assert OUTCOME_UNKNOWN not in seen.unknown
        assert seen.statuses[200] > seen.n_sent / 2
    if victim == "kafka":
        # Refused before acceptance, or answered once it is back; what is accepted ends once.
        assert set(seen.statuses) <= {200, 503, 504}, seen.failures[:3]
        assert seen.statuses[200] > seen.n_sent / 4
