"""Rows per second of the logger's sink: direct, with 2 % duplicates, and through staging.

In: a Postgres of its own (fsync on), and a broker for the whole logger. Out: rates of each repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import asyncpg

from bench.record import store
from inferbus_logger import audit, database, plan, rows
from inferbus_logger.migrate import migrate
from inferbus_logger.partitions import Partitions
from inferbus_logger.plan import Buffer
from inferbus_logger.sink import Planned, Sink
from inferbus_telemetry.spans import configure_logs
from tests.support import predictions, reconcile, servers

TOPIC = "bench"
PARTITIONS = 16


@dataclass(frozen=True)
class Record:
    """A record as the consumer gives it."""

    value: bytes
    partition: int
    offset: int
    timestamp: int
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def _records(count: int, duplicates: float, seed: int) -> list[list[Record]]:
    """Return records per partition, with redeliveries of earlier ids."""
    rng = random.Random(seed)
    now_ms = int(time.time() * 1000)
    out: list[list[Record]] = [[] for _ in range(PARTITIONS)]
    earlier: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    for n in range(count):
        part = n % PARTITIONS
        if earlier[part] and rng.random() < duplicates:
            value = rng.choice(earlier[part])
        else:
            value = predictions.prediction(rng, now_ms + n // 40).SerializeToString()
            earlier[part].append(value)
        out[part].append(Record(value, part, len(out[part]), now_ms))
    return out


async def _begin(url: str) -> None:
    connection = await database.connect(url, "bench")
    await Partitions().ahead(connection, dt.datetime.now(dt.UTC).date())
    await connection.executemany(
        "INSERT INTO log.sink_offsets (topic, topic_id, part, era, start_offset, next_offset,"
        " last_id, chain) VALUES ($1, '', $2, 0, 0, 0, '', $3)",
        [(TOPIC, part, rows.NO_CHAIN) for part in range(PARTITIONS)],
    )
    await database.close(connection)


async def _partition(
    url: str, sink: Sink, records: Sequence[Record], *, staged: bool, known: bool
) -> None:
    """Write one partition in batches, one transaction at a time."""
    connection = await database.connect(url, "bench")
    buffer, chain = Buffer(records[0].partition, 0), rows.NO_CHAIN
    for start in range(0, len(records), plan.MAX_RECORDS):
        for record in records[start : start + plan.MAX_RECORDS]:
            buffer.offer(rows.read(record, 0), 0.0)
        planned = Planned(buffer.take(0, 0.0), chain)
        try:
            if staged:
                raise asyncpg.UniqueViolationError  # noqa: TRY301 -- straight to the slow path
            (written,) = await sink.write(connection, [planned])
        except asyncpg.UniqueViolationError:
            written = await sink.write_staged(connection, planned)
        chain = written.chain
        if known:
            buffer.remember(written.batch)
    await database.close(connection)


async def _sink(postgres: str, count: int, repeats: int) -> list[dict[str, object]]:
    """Time the sink alone: records in memory, two partitions at a time."""
    out = []
    for name, duplicates, staged, known in (
        ("direct", 0.0, False, True),
        ("direct, 2 % duplicates, ids remembered", 0.02, False, True),
        ("2 % duplicates, ids forgotten", 0.02, False, False),
        ("staging", 0.02, True, False),
    ):
        rates = []
        for repeat in range(repeats):
            records = _records(count, duplicates, repeat)
            size = sum(len(r.value) for part in records for r in part) / count
            async with servers.fresh_database(postgres) as url:
                await migrate(url)
                await _begin(url)
                sink, gate = Sink(TOPIC), asyncio.Semaphore(2)
                started = time.perf_counter()

                async def one(part: Sequence[Record], run: Callable[..., object]) -> None:
                    async with gate:  # noqa: B023 -- awaited within the round
                        await run(url, sink, part, staged=staged, known=known)  # type: ignore[misc]  # noqa: B023

                await asyncio.gather(*(one(part, _partition) for part in records))
                rates.append(count / (time.perf_counter() - started))
                report = await audit.verify(url, TOPIC)
                assert report.ok, report.findings
        out.append(_result(name, rates, size))
    return out


def _result(name: str, rates: Sequence[float], size: float) -> dict[str, object]:
    print(f"{name:42} {min(rates):8.0f} - {max(rates):.0f} records/s")
    return {
        "case": name,
        "records_per_s": [round(rate) for rate in rates],
        "record_bytes": round(size),
    }


async def _whole(infra: servers.Infra, count: int, repeats: int) -> dict[str, object]:
    """Time a logger process from Kafka to Postgres, once it has begun."""
    rates, size = [], 0.0
    for repeat in range(repeats):
        topic = await servers.fresh_topic(infra.kafka, partitions=PARTITIONS)
        mixed, _ = predictions.mixture(
            random.Random(repeat), int(time.time() * 1000), count, range(PARTITIONS)
        )
        size = sum(
            len(each) if isinstance(each, bytes) else each.ByteSize() for _, each in mixed
        ) / len(mixed)
        await predictions.produce(infra.kafka, topic, mixed)
        ends = await reconcile.end_offsets(infra.kafka, topic)
        async with servers.fresh_database(infra.postgres) as url:
            await migrate(url)
            rates.append(await _drain(infra.kafka, url, topic, sum(ends.values())))
    return _result("whole logger, Kafka to Postgres, mixed", rates, size)


async def _drain(bootstrap: str, url: str, topic: str, total: int) -> float:
    told = {
        **os.environ,
        "INFERBUS_KAFKA_BOOTSTRAP": bootstrap,
        "INFERBUS_POSTGRES_URL": url,
        "INFERBUS_LOG_TOPIC": topic,
        "INFERBUS_LOG_PARTITIONS": ",".join(map(str, range(PARTITIONS))),
        "INFERBUS_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "inferbus_logger"]
    logger = subprocess.Popen(command, env=told)  # noqa: ASYNC220 -- starting takes no time
    connection = await asyncpg.connect(url)
    query = "SELECT coalesce(sum(next_offset), 0)::bigint FROM log.sink_offsets"
    try:
        begun: tuple[float, int] | None = None
        while (done := await connection.fetchval(query)) < total:
            if begun is None and done:
                begun = (time.perf_counter(), done)
            await asyncio.sleep(0.01)
        assert begun is not None
        return float((total - begun[1]) / (time.perf_counter() - begun[0]))
    finally:
        await connection.close()
        logger.send_signal(signal.SIGTERM)
        await asyncio.to_thread(logger.wait, 20)


async def _measure(count: int, repeats: int) -> dict[str, object]:
    with servers.infra_process() as infra:
        cases = await _sink(infra.postgres, count, repeats)
        cases.append(await _whole(infra, count, repeats))
        connection = await asyncpg.connect(infra.postgres)
        postgres = await connection.fetchval("SHOW server_version")
        await connection.close()
    return {"postgres": postgres, "cases": cases}


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(prog="python -m bench log_sink")
    parser.add_argument("name")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    said = parser.parse_args()
    configure_logs("warning")
    path = store("log_sink", asyncio.run(_measure(said.rows, said.repeats)))
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
