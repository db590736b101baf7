"""The log is exact however often loggers die: at random, at each fail point, with two owners of
the same partitions all the time, and through a crash of Postgres."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from inferbus_logger import audit
from tests.support import answer_topics, predictions, reconcile
from tests.support.forkserver import ForkServer
from tests.support.logs import Log, forked, fresh_log, logger, until

KILLS = 100
PARTITIONS = 4
# Two loggers that both insist on partitions 1 and 2.
OWNERS = ("0,1,2", "1,2,3")
FAIL_POINTS = tuple(
    f"{name}:{n}"
    for name in ("after_update", "after_copy", "after_answers", "after_commit")
    for n in (1, 2, 4)
)
CHUNK = 600


async def _produce(log: Log, rng: random.Random, tenant: str, stop: asyncio.Event) -> set[bytes]:
    """Write records in small bursts until it is enough; return the ids that must have rows."""
    wanted: set[bytes] = set()
    while not stop.is_set():
        records, ids = predictions.mixture(
            rng, int(time.time() * 1000), CHUNK, range(PARTITIONS), tenant=tenant
        )
        await predictions.produce(log.bootstrap, log.topic, records)
        wanted |= ids
        await asyncio.sleep(0.2)
    return wanted


async def _first_rows_s(log: Log, server: ForkServer, tenant: str, output: Path) -> float:
    """Return how long a logger takes to its first rows on this machine, as busy as it is."""
    started_s = time.monotonic()
    told = {"log_partitions": "0,1,2,3", "answer_tenants": tenant}
    async with forked(server, log, output, **told):
        await until(lambda: _has_rows(log), 180)
    return time.monotonic() - started_s


async def _has_rows(log: Log) -> bool:
    return any((await log.next_offsets()).values())


async def _owner(
    log: Log,
    server: ForkServer,
    *,
    partitions: str,
    tenant: str,
    rng: random.Random,
    first_rows_s: float,
    output: Path,
) -> set[str]:
    """Start and kill one logger after another; return the fail points at which one ended."""
    reached: set[str] = set()
    for n in range(KILLS // len(OWNERS)):
        settings = {"log_partitions": partitions, "answer_tenants": tenant}
        # Every third is to kill itself at a certain place.
        point = FAIL_POINTS[n // 3 % len(FAIL_POINTS)]
        if n % 3 == 0:
            settings["fail_point"] = point
        pid = server.start(log.environment(**settings), output)
        if n % 3:
            await asyncio.sleep(first_rows_s * rng.uniform(0.1, 2.0))
        elif await _reached(server, pid, 10 * first_rows_s):
            reached.add(point)
        assert server.kill(pid) == -signal.SIGKILL, f"a logger ended by itself, see {output}"
    return reached


async def _reached(server: ForkServer, pid: int, timeout_s: float) -> bool:
    """Tell whether a logger came to its fail point in time."""
    deadline_s = time.monotonic() + timeout_s
    while server.ended(pid) is None:
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(0.05)
    return True


async def _crash_postgres(log: Log) -> None:
    """Kill a server process with SIGKILL: Postgres cuts all connections and recovers its WAL."""
    connection = await log.connect()
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(pid, signal.SIGKILL)
    connection.terminate()


@pytest.mark.chaos
@pytest.mark.timeout(1200)
async def test_rows_are_exact_whatever_dies(
    kafka_bootstrap: str, postgres_url: str, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201 -- needed to see a failure again
    output = tmp_path / "loggers.log"
    async with fresh_log(kafka_bootstrap, postgres_url, PARTITIONS) as log:
        stop = asyncio.Event()
        tenant = await answer_topics.tenant(log.bootstrap)
        producing = asyncio.create_task(_produce(log, rng, tenant, stop))
        with ForkServer("inferbus_logger") as server:
            first_s = await _first_rows_s(log, server, tenant, output)
            owners = [
                asyncio.create_task(
                    _owner(
                        log,
                        server,
                        partitions=partitions,
                        tenant=tenant,
                        rng=rng,
                        first_rows_s=first_s,
                        output=output,
                    )
                )
                for partitions in OWNERS
            ]
            await asyncio.sleep(10 * first_s)
            await _crash_postgres(log)
            reached = set().union(*await asyncio.gather(*owners))
        stop.set()
        wanted = await producing
        ends = await reconcile.end_offsets(log.bootstrap, log.topic)
        middle = sum((await log.next_offsets()).values())
        async with logger(log, output, answer_tenants=tenant):
            await log.caught_up(180)
        await _check(log, wanted)
        await _check_copies(log, tenant)
        assert reached == set(FAIL_POINTS)
        assert b'"fenced"' in output.read_bytes(), "the two owners never met"
        assert middle > sum(ends.values()) // 2, f"only {middle} were logged between the kills"


async def _check(log: Log, wanted: set[bytes]) -> None:
    rows = await log.fetch("SELECT request_id, outcome FROM log.predictions")
    ids = [row["request_id"].bytes for row in rows]
    assert len(ids) == len(set(ids)) == len(wanted)
    assert set(ids) == wanted
    # Each duplicate says deadline_exceeded: the first terminal record by offset won.
    assert {row["outcome"] for row in rows} == {"ok"}
    ends = await reconcile.end_offsets(log.bootstrap, log.topic)
    assert await log.next_offsets() == ends
    (counted,) = await log.fetch(
        "SELECT sum(n_rows + n_dups + n_nonterminal + n_quarantined) AS records, sum(n_dups) AS"
        " dups, sum(n_quarantined) AS quarantined, max(era) AS era FROM log.log_batches"
    )
    assert (counted["records"], counted["era"]) == (sum(ends.values()), 0)
    assert counted["dups"] > 0
    assert counted["quarantined"] > 0
    report = await audit.verify(log.postgres_url, log.topic)
    assert report.findings == []
    assert await reconcile.chain_violations(log.postgres_url, log.topic) == []


async def _check_copies(log: Log, tenant: str) -> None:
    """The tenant has the records of all rows, each at least once, and no other record."""
    rows = await log.fetch("SELECT k_partition, k_offset FROM log.predictions")
    logged = {(row["k_partition"], row["k_offset"]) for row in rows}
    sources = await answer_topics.records(log.bootstrap, log.topic)
    wanted = {record.value for record in sources if (record.partition, record.offset) in logged}
    copies = await answer_topics.records(log.bootstrap, answer_topics.name(tenant))
    assert len(wanted) == len(logged)
    assert {record.value for record in copies} == wanted
