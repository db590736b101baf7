"""Tenants that write without end: each has its turn, and what waits is bounded."""

from __future__ import annotations

import asyncio

import pytest

from inferbus_gateway.hot import submission_work, submissions
from inferbus_schemas import messages as m
from tests.support.program import Program, metric
from tests.support.scripted_worker import echo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


async def test_what_a_tenant_writes_without_end_takes_no_turn_from_another(
    program: Program,
) -> None:
    """Of what room there is at a worker each has its share, however much one has waiting."""
    flooding = Program(program.side)
    await flooding.start()
    worker = await program.side.worker(echo)
    worker.backlog_rows = submissions.MAX_BACKLOG_ROWS
    await worker.beat()
    gateway = await program.side.gateway(
        INFERBUS_SUBMISSION_TENANTS=f"{program.tenant},{flooding.tenant}"
    )
    for _ in range(4):
        flooding.submit(*(flooding.one(f"flood-{number}") for number in range(1000)))

    async def held() -> float:
        return await metric(gateway, "inferbus_submission_bytes")

    await program.side.until_async(held, lambda said: said > 4 << 20, 30.0)
    program.submit(program.one("mine"), program.one("mine too"))
    worker.backlog_rows = submissions.MAX_BACKLOG_ROWS - 20  # so many a beat
    async with asyncio.timeout(30.0):
        await program.ended("mine", "mine too")
    assert len(worker.requests) < 1000


async def test_what_cannot_run_ends_at_a_bounded_rate_each_tenant_in_turn(
    program: Program,
) -> None:
    """No limit of rows or of requests a second slows who writes only what is refused."""
    flooding = Program(program.side)
    await flooding.start()
    await program.side.worker(echo)
    gateway = await program.side.gateway(
        INFERBUS_SUBMISSION_TENANTS=f"{program.tenant},{flooding.tenant}"
    )
    await program.side.until(lambda: '"event": "assigned"' in gateway.log.read_text(), 30.0)
    for part in range(12):
        flooding.submit(
            *(flooding.one(f"{part}/{number}", model="no-such") for number in range(900)),
            partition=part % 4,
        )

    def ended() -> int:
        return sum(one.tenant == flooding.tenant for _, one in program.side.all_predictions)

    await program.side.until(lambda: ended() > 500)
    program.submit(program.one("mine", model="no-such"), program.one("in time", timeout_ms=20_000))
    async with asyncio.timeout(20.0):
        assert (await program.ended("mine"))["mine"].error_code == "unknown_model"
        assert (await program.ended("in time"))["in time"].outcome == m.OUTCOME_OK
    assert ended() < 5000
    await program.side.until(lambda: ended() == 12 * 900, 30.0)
    await program.side.until(lambda: flooding.committed() == 12)


async def test_junk_without_end_is_bounded_and_holds_up_nobody_else(program: Program) -> None:
    """What waits for its dead letter counts as read, and each tenant has a limit of its own."""
    flooding = Program(program.side)
    await flooding.start()
    await program.side.worker(echo)
    gateway = await program.side.gateway(
        INFERBUS_SUBMISSION_TENANTS=f"{program.tenant},{flooding.tenant}"
    )
    flooding.flood(b"", 60_000)

    async def held() -> float:
        return await metric(gateway, "inferbus_submission_bytes")

    limit = submission_work.MAX_TENANT_BYTES
    await program.side.until_async(held, lambda said: said >= limit, 30.0)
    assert await held() <= limit + (2 << 20)
    program.write(b"junk of another")
    program.submit(program.one("mine"))
    async with asyncio.timeout(30.0):
        assert (await program.ended("mine"))["mine"].outcome == m.OUTCOME_OK
        await program.side.until(lambda: program.committed() == 2)
