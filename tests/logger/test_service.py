"""Whole loggers on real Kafka and Postgres: sharing, stopping, losing what they stand on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition

from inferbus_dev.ports import free_port
from inferbus_dev.topics import create_topics
from inferbus_logger import audit
from inferbus_logger.rewind import rewind
from tests.support import predictions, reconcile
from tests.support.forkserver import ForkServer
from tests.support.logs import Log, forked, fresh_log, http, until
from tests.support.proxy import Proxy


@pytest.fixture
async def log(kafka_bootstrap: str, postgres_url: str) -> AsyncIterator[Log]:
    async with fresh_log(kafka_bootstrap, postgres_url, 4) as one:
        yield one


async def _produce(log: Log, count: int, seed: int = 1) -> set[bytes]:
    records, wanted = predictions.mixture(
        random.Random(seed), int(time.time() * 1000), count, range(4)
    )
    await predictions.produce(log.bootstrap, log.topic, records)
    return wanted


async def _ids(log: Log) -> set[bytes]:
    return {row["request_id"].bytes for row in await log.fetch("SELECT * FROM log.predictions")}


async def _exact(log: Log, wanted: set[bytes]) -> None:
    assert await _ids(log) == wanted
    report = await audit.verify(log.postgres_url, log.topic)
    assert report.findings == []


async def _ready(port: int) -> bool:
    return (await http(port, "/readyz"))[0] == 200


async def _reasons(port: int) -> str:
    _, body = await http(port, "/readyz")
    return " ".join(json.loads(body)["reasons"].values()) if body else ""


async def test_two_loggers_share_the_partitions_and_one_inherits_them(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    out, ports = tmp_path / "log", (free_port(), free_port())
    wanted = await _produce(log, 3000)
    async with forked(loggers, log, out, metrics_port=str(ports[0])):
        async with forked(loggers, log, out, metrics_port=str(ports[1])) as leaving:
            for port in ports:
                await until(lambda port=port: _ready(port))  # type: ignore[misc]
            wanted |= await _produce(log, 3000, seed=2)
            await log.caught_up()
            os.kill(leaving, signal.SIGTERM)
            await until(lambda: _ended(loggers, leaving))
            assert loggers.ended(leaving) == 0
        wanted |= await _produce(log, 3000, seed=3)
        await log.caught_up()
        await until(lambda: _measures(ports[0], 'inferbus_log_lag_records{partition="3"} 0.0'))
        # Those that the other one wrote count as well.
        await until(lambda: _counts(ports[0], len(wanted)))
    async with forked(loggers, log, out, metrics_port=str(ports[1])):
        wanted |= await _produce(log, 500, seed=4)
        await log.caught_up()
        await until(lambda: _counts(ports[1], len(wanted)))
    await _exact(log, wanted)


async def _measures(port: int, line: str) -> bool:
    return line in (await http(port, "/metrics"))[1].decode()


async def _counts(port: int, n_rows: int) -> bool:
    page = (await http(port, "/metrics"))[1].decode()
    found = re.findall(r"inferbus_log_stored_rows{.*} (.*)", page)
    return sum(map(float, found)) == n_rows


async def _ended(loggers: ForkServer, pid: int) -> bool:
    return loggers.ended(pid) is not None


async def test_a_logger_that_was_stopped_for_a_while_is_fenced(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    out = tmp_path / "log"
    wanted = await _produce(log, 2000)
    async with forked(loggers, log, out, log_partitions="0,1,2,3") as zombie:
        await log.caught_up()
        os.kill(zombie, signal.SIGSTOP)
        async with forked(loggers, log, out, log_partitions="0,1,2,3"):
            wanted |= await _produce(log, 2000, seed=2)
            await log.caught_up()
        os.kill(zombie, signal.SIGCONT)
        wanted |= await _produce(log, 2000, seed=3)
        await log.caught_up()
    assert b'"fenced"' in out.read_bytes()
    await _exact(log, wanted)


async def test_while_postgres_is_away_kafka_holds_the_log(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    out, port = tmp_path / "log", free_port()
    url = urlsplit(log.postgres_url)
    async with Proxy("127.0.0.1", url.port or 0) as proxy:
        through = log.postgres_url.replace(f":{url.port}/", f":{proxy.port}/")
        told = {"postgres_url": through, "metrics_port": str(port)}
        async with forked(loggers, log, out, log_partitions="0,1,2,3", **told):
            wanted = await _produce(log, 1000)
            await log.caught_up()
            await proxy.cut()
            wanted |= await _produce(log, 5000, seed=2)
            await until(lambda: _tells(port, "Postgres does not answer"))
            assert (await http(port, "/livez"))[0] == 200
            await proxy.heal()
            await log.caught_up()
            await until(lambda: _ready(port))
    await _exact(log, wanted)


async def _tells(port: int, text: str) -> bool:
    return text in await _reasons(port)


async def test_another_topic_of_the_same_name_stops_until_it_is_rewound(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    out, port = tmp_path / "log", free_port()
    told = {"log_partitions": "0,1,2,3", "metrics_port": str(port)}
    wanted = await _produce(log, 1000)
    async with forked(loggers, log, out, log_partitions="0,1,2,3"):
        await log.caught_up()
    await _make_again(log)
    # More than before, so that offsets alone would not tell.
    wanted |= await _produce(log, 3000, seed=2)
    async with forked(loggers, log, out, **told):
        await until(lambda: _tells(port, "inferbus log rewind --partition 3"))
        before = await _ids(log)
        assert len(before) < 1000
        for partition in range(4):
            await rewind(log.postgres_url, log.bootstrap, log.topic, partition, None)
        await log.caught_up()
        await until(lambda: _ready(port))
    await _exact(log, wanted)
    assert {row["era"] for row in await log.fetch("SELECT era FROM log.log_batches")} == {0, 1}


async def _make_again(log: Log) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=log.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([log.topic])
        while log.topic in await admin.list_topics():  # noqa: ASYNC110 -- Kafka tells nobody
            await asyncio.sleep(0.1)
    finally:
        await admin.close()
    await create_topics(log.bootstrap, [(log.topic, 4, 1, {})])


async def test_records_that_kafka_dropped_are_a_gap_and_never_silent(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    out = tmp_path / "log"
    await _produce(log, 1000)
    async with forked(loggers, log, out, log_partitions="0,1,2,3"):
        await log.caught_up()
    before = await log.next_offsets()
    await _produce(log, 1000, seed=2)
    admin = AIOKafkaAdminClient(bootstrap_servers=log.bootstrap)
    await admin.start()
    try:
        cut = RecordsToDelete(before_offset=before[2] + 5)
        await admin.delete_records({TopicPartition(log.topic, 2): cut})
    finally:
        await admin.close()
    async with forked(loggers, log, out, log_partitions="0,1,2,3"):
        await log.caught_up()
    gaps = await log.fetch("SELECT * FROM log.log_batches WHERE kind <> 'data'")
    assert [(row["kind"], row["part"], row["base_offset"], row["last_offset"]) for row in gaps] == [
        ("gap", 2, before[2], before[2] + 4)
    ]
    assert b'"gap"' in out.read_bytes()
    report = await audit.verify(log.postgres_url, log.topic)
    assert report.findings == []
    assert sum(part.n_gaps for part in report.partitions) == 1


async def test_another_record_in_the_last_place_stops_the_partition(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    out, port = tmp_path / "log", free_port()
    await _produce(log, 400)
    async with forked(loggers, log, out, log_partitions="0,1,2,3"):
        await log.caught_up()
    await log.fetch("UPDATE log.sink_offsets SET last_id = sha256(last_id) WHERE part = 1")
    offset = (await log.next_offsets())[1]
    await _produce(log, 400, seed=2)
    told = {"log_partitions": "0,1,2,3", "metrics_port": str(port)}
    async with forked(loggers, log, out, **told):
        await until(lambda: _tells(port, f"offset {offset - 1} now holds another record"))
        _, metrics = await http(port, "/metrics")
        assert b"inferbus_log_stopped_partitions 1.0" in metrics
        # The others go on.
        ends = await reconcile.end_offsets(log.bootstrap, log.topic) | {1: offset}
        await until(lambda: _at(log, ends))


async def _at(log: Log, offsets: dict[int, int]) -> bool:
    return await log.next_offsets() == offsets


async def test_markers_of_transactions_are_accounted_for(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    rng = random.Random(5)
    made = [predictions.prediction(rng, int(time.time() * 1000)) for _ in range(6)]
    producer = AIOKafkaProducer(bootstrap_servers=log.bootstrap, transactional_id=log.topic)
    await producer.start()
    try:
        for each in made:
            async with producer.transaction():
                await producer.send(log.topic, each.SerializeToString(), partition=0)
    finally:
        await producer.stop()
    last = predictions.prediction(rng, int(time.time() * 1000))
    await predictions.produce(log.bootstrap, log.topic, [(0, last)])
    async with forked(loggers, log, tmp_path / "log", log_partitions="0,1,2,3"):
        await log.caught_up()
    await _exact(log, {each.id for each in [*made, last]})
    kinds = await log.fetch("SELECT kind, count(*) AS n FROM log.log_batches GROUP BY kind")
    assert {row["kind"]: row["n"] for row in kinds}["control"] == 6


async def test_a_logger_without_its_topic_says_so(
    log: Log, loggers: ForkServer, tmp_path: Path
) -> None:
    out = tmp_path / "log"
    pid = loggers.start(log.environment(log_topic="test.none"), out)
    await until(lambda: _ended(loggers, pid))
    assert loggers.ended(pid) == 2
    assert "Kafka has no topic test.none" in out.read_text().splitlines()[-1]
