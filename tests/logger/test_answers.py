"""Copies for tenants that read their own answers: all of theirs, theirs alone, before the log."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client import CollectorRegistry

from inferbus_dev.ports import free_port
from inferbus_kit import produce
from inferbus_kit.health import Health
from inferbus_kit.metrics import logger_metrics
from inferbus_logger import answers, audit, plan, rows
from inferbus_logger.answer_clients import IDLE_S
from inferbus_logger.answers import Answers, AnswersError
from inferbus_logger.plan import Batch, Buffer
from inferbus_logger.positions import Position
from inferbus_logger.refusals import PATIENCE_S, RETRY_S
from inferbus_schemas import messages as m
from tests.support import answer_topics, predictions, proxy
from tests.support.forkserver import ForkServer
from tests.support.logs import forked, fresh_log, http, until


async def _copies(bootstrap: str, tenant: str) -> Counter[bytes]:
    """Return how often each value stands in a tenant's topic."""
    return Counter(
        record.value
        for record in await answer_topics.records(bootstrap, answer_topics.name(tenant))
    )


def _made(
    rng: random.Random, count: int, tenant: str, outcome: m.Outcome = m.OUTCOME_OK
) -> list[m.Prediction]:
    now_ms = int(time.time() * 1000)
    return [
        predictions.prediction(rng, now_ms, outcome=outcome, tenant=tenant) for _ in range(count)
    ]


def _again(first: m.Prediction) -> m.Prediction:
    late = predictions.prediction(random.Random(1), 1, outcome=m.OUTCOME_DEADLINE_EXCEEDED)
    late.id, late.tenant = first.id, first.tenant
    return late


def _around(record: Any) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    return record.key, record.value, [tuple(pair) for pair in record.headers]


async def _ended(loggers: ForkServer, pid: int) -> bool:
    return loggers.ended(pid) is not None


async def test_a_tenant_gets_what_it_was_answered_and_nothing_else(
    kafka_bootstrap: str, postgres_url: str, loggers: ForkServer, tmp_path: Path
) -> None:
    rng, port = random.Random(1), free_port()
    tenant, other = await asyncio.gather(
        answer_topics.tenant(kafka_bootstrap), answer_topics.tenant(kafka_bootstrap)
    )
    own = _made(rng, 40, tenant)
    own[7].client_request_id = "a\x00b"  # no row holds it as it is
    (failed,) = _made(rng, 1, tenant, m.OUTCOME_FAILED)
    (attempt,) = _made(rng, 1, tenant, m.OUTCOME_ATTEMPT_FAILED)
    noise: list[m.Prediction | bytes] = [attempt, b"\xff\xff", *_made(rng, 40, other)]
    async with fresh_log(kafka_bootstrap, postgres_url, 2) as log:
        told = {"log_partitions": "0,1", "answer_tenants": tenant}
        first = [(0, each) for each in [*own[:20], *noise, _again(own[0]), failed]]
        first += [(1, each) for each in own[20:]]
        await predictions.produce(log.bootstrap, log.topic, first)
        async with forked(loggers, log, tmp_path / "log", metrics_port=str(port), **told):
            await log.caught_up()
            _, page = await http(port, "/metrics")
        assert f'answers_total{{ended="copied",tenant="{tenant}"}} 41.0' in page.decode()
        # Another process does not remember these ids: only their rows say that they are doubles.
        (last,) = _made(rng, 1, tenant)
        second = [(0, _again(own[1])), (0, last), (1, _again(own[21]))]
        await predictions.produce(log.bootstrap, log.topic, second)
        async with forked(loggers, log, tmp_path / "log", **told):
            await log.caught_up()
        wanted = [[*own[:20], failed, last], own[20:]]
        sources = {
            record.value: record for record in await answer_topics.records(log.bootstrap, log.topic)
        }
        copies = await answer_topics.records(log.bootstrap, answer_topics.name(tenant))
        for partition, expected in enumerate(wanted):
            found = [_around(record) for record in copies if record.partition == partition]
            values = [each.SerializeToString() for each in expected]
            assert found == [_around(sources[value]) for value in values]
        assert len(copies) == 42
        assert await answer_topics.records(log.bootstrap, answer_topics.name(other)) == []


async def test_a_crash_may_double_a_copy_and_loses_none(
    kafka_bootstrap: str, postgres_url: str, loggers: ForkServer, tmp_path: Path
) -> None:
    rng, tenant = random.Random(2), await answer_topics.tenant(kafka_bootstrap)
    told = {"log_partitions": "0", "answer_tenants": tenant}
    wanted: list[bytes] = []
    async with fresh_log(kafka_bootstrap, postgres_url, 1) as log:

        async def crash(place: str) -> tuple[int, int]:
            """Add records and let a logger die; return how many copies and how many rows are."""
            made = _made(rng, 30, tenant)
            wanted.extend(each.SerializeToString() for each in made)
            await predictions.produce(log.bootstrap, log.topic, [(0, each) for each in made])
            output = tmp_path / "log"
            async with forked(loggers, log, output, fail_point=place, **told) as pid:
                await until(lambda: _ended(loggers, pid))
                assert loggers.ended(pid) == -signal.SIGKILL
            (counted,) = await log.fetch("SELECT count(*) AS n FROM log.predictions")
            return (await _copies(log.bootstrap, tenant)).total(), counted["n"]

        assert await crash("after_copy") == (0, 0)
        assert await crash("after_answers") == (60, 0)
        assert await crash("after_commit") == (150, 90)
        async with forked(loggers, log, tmp_path / "log", **told):
            await log.caught_up()
        copies = await _copies(log.bootstrap, tenant)
        assert [copies[value] for value in wanted] == [2] * 60 + [1] * 30
        assert set(copies) == set(wanted)
        assert (await audit.verify(log.postgres_url, log.topic)).findings == []


async def test_answers_that_are_refused_hold_up_their_own_partition_of_the_log_alone(
    kafka_bootstrap: str, postgres_url: str, loggers: ForkServer, tmp_path: Path
) -> None:
    rng, gone, there = random.Random(3), f"t{secrets.token_hex(4)}", "another"
    told = {"log_partitions": "0,1,2", "answer_tenants": gone, "log_connections": "1"}
    async with fresh_log(kafka_bootstrap, postgres_url, 3) as log:

        async def logged() -> dict[int, int]:
            return {number: n for number, n in (await log.next_offsets()).items() if n}

        async def others() -> bool:
            return (await logged()).keys() >= {1, 2}

        made = [(0, each) for each in _made(rng, plan.MAX_RECORDS + 100, gone)]
        made += [(partition, _made(rng, 1, there)[0]) for partition in (0, 1, 2, 1, 2)]
        await predictions.produce(log.bootstrap, log.topic, made)
        async with forked(loggers, log, tmp_path / "log", **told):
            await until(others)
            assert await logged() == {1: 2, 2: 2}
            await answer_topics.make(log.bootstrap, gone)
            await log.caught_up()
        copies = await _copies(log.bootstrap, gone)
        assert list(copies.values()) == [1] * (plan.MAX_RECORDS + 100)


@dataclass(frozen=True)
class Record:
    value: bytes
    offset: int
    partition: int = 3
    timestamp: int = 0
    key: bytes | None = b"m"
    headers: tuple[tuple[str, bytes], ...] = (("ce_id", b"1"),)


@dataclass
class Copying:
    """Copies of some tenants without a log, told the time."""

    answers: Answers
    registry: CollectorRegistry
    health: Health
    bootstrap: str
    now_s: float = 1000.0

    def batch(self, base: int, *tenants: str, partition: int = 3) -> Batch:
        """Return a batch with one record for each name, from `base` on."""
        buffer = Buffer(partition, base)
        for offset, tenant in enumerate(tenants, base):
            (made,) = _made(random.Random(offset), 1, tenant)
            record = Record(made.SerializeToString(), offset, partition)
            buffer.offer(rows.read(record, 0, answered=frozenset(tenants)), 0.0)
        return buffer.take(0, 0.0)

    def counted(self, tenant: str, ended: str) -> float:
        told = {"tenant": tenant, "ended": ended}
        return self.registry.get_sample_value("inferbus_log_answers_total", told) or 0

    async def n_copies(self, tenant: str) -> list[int]:
        """Return how often each copy stands there."""
        return list((await _copies(self.bootstrap, tenant)).values())


@asynccontextmanager
async def _copying(bootstrap: str, tenants: Sequence[str]) -> AsyncIterator[Copying]:
    registry, health = CollectorRegistry(), Health()
    health.ready("start")
    clock: Callable[[], float] = lambda: copying.now_s  # noqa: E731 -- it is made below
    made = Answers(
        bootstrap,
        client_id="test",
        tenants=tenants,
        metrics=logger_metrics(registry),
        health=health,
        clock=clock,
    )
    copying = Copying(made, registry, health, bootstrap)
    await made.start()
    try:
        yield copying
    finally:
        await made.stop()


@asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def test_a_topic_that_is_gone_holds_the_others_up_for_a_moment_only(
    kafka_bootstrap: str,
) -> None:
    gone, there = [await answer_topics.tenant(kafka_bootstrap) for _ in "ab"]
    async with _copying(kafka_bootstrap, [gone, there]) as at, _admin(kafka_bootstrap) as admin:
        await at.answers.hand_over([at.batch(0, gone, there)])
        await admin.delete_topics([answer_topics.name(gone)])
        while answer_topics.name(gone) in await admin.list_topics():  # noqa: ASYNC110 -- Kafka tells nobody
            await asyncio.sleep(0.05)
        gone_client = await at.answers._clients.of(gone)
        await gone_client.client.force_metadata_update()
        batch = at.batch(2, gone, there, gone)
        for _ in range(2):
            with pytest.raises(AnswersError, match=f"refuses the answers of {gone}"):
                await at.answers.hand_over([batch])
        at.now_s += PATIENCE_S
        await at.answers.hand_over([batch])
        at.now_s += RETRY_S / 2
        await at.answers.hand_over([at.batch(5, there, gone)])
        assert (at.counted(gone, "copied"), at.counted(gone, "refused")) == (1, 3)
        assert list(at.health.reasons()) == [f"answers of {gone}"]
        await answer_topics.make(kafka_bootstrap, gone)
        at.now_s += RETRY_S
        await at.answers.hand_over([at.batch(7, there, gone)])
        assert at.health.reasons() == {}
        assert await at.n_copies(gone) == [1]
        assert await at.n_copies(there) == [1] * 4


async def test_a_topic_that_is_not_there_yet_is_told_and_looked_for(kafka_bootstrap: str) -> None:
    tenant = f"t{secrets.token_hex(4)}"
    async with _copying(kafka_bootstrap, [tenant]) as at:
        at.answers.look({3: Position(0, 0)})
        (said,) = at.health.reasons().values()
        assert "INFERBUS_ANSWER_TENANTS: Kafka shows this logger no topic" in said
        assert f"inferbus topics add-tenant {tenant}" in said
        await answer_topics.make(kafka_bootstrap, tenant)
        assert at.answers._clients._scout is not None
        await at.answers._clients._scout.client.force_metadata_update()
        at.answers.look({3: Position(0, 0)})
        assert at.health.reasons() == {}
        await at.answers.hand_over([at.batch(0, tenant)])
        assert await at.n_copies(tenant) == [1]


@pytest.fixture
async def between(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[proxy.Proxy]:
    async with proxy.before_kafka(kafka_bootstrap, monkeypatch) as one:
        yield one


async def test_of_a_client_that_was_dropped_nothing_lives_on(
    kafka_bootstrap: str, between: proxy.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await answer_topics.tenant(kafka_bootstrap)
    monkeypatch.setattr(produce, "_STOP_S", 0.1)
    monkeypatch.setattr(produce, "_CUT_S", 0.3)
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.3)
    async with _copying(kafka_bootstrap, [tenant]) as at:
        tasks, looking = asyncio.all_tasks(), between.n_connections
        await at.answers.hand_over([at.batch(0, tenant)])
        assert between.n_connections > looking
        between.hold()
        # Both go to one partition: the second waits in the client for the first.
        under_way, queued = at.batch(1, tenant), at.batch(0, tenant, partition=7)
        with pytest.raises(AnswersError):
            await at.answers.hand_over([under_way, queued])
        await asyncio.wait(at.answers._clients._closing)
        between.go_on()

        async def alone() -> bool:
            return between.n_connections == looking

        await until(alone)
        left = [task.get_coro() for task in asyncio.all_tasks() - tasks]
        assert [each for each in left if "aiokafka" in repr(each)] == []
        monkeypatch.setattr(answers, "TIMEOUT_S", 5.0)
        await at.answers.hand_over([under_way, queued])
        assert len(await at.n_copies(tenant)) == 3
        assert at.counted(tenant, "copied") == 3


async def test_what_a_dropped_client_had_queued_only_the_next_one_sends(
    kafka_bootstrap: str, between: proxy.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await answer_topics.tenant(kafka_bootstrap)
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.3)
    async with _copying(kafka_bootstrap, [tenant]) as at:
        await at.answers.hand_over([at.batch(0, tenant)])
        between.hold()
        under_way, queued = at.batch(1, tenant), at.batch(0, tenant, partition=7)
        with pytest.raises(AnswersError):
            await at.answers.hand_over([under_way, queued])
        between.go_on()
        await asyncio.wait(at.answers._clients._closing)
        assert queued.rows[0].value not in await _copies(kafka_bootstrap, tenant)
        monkeypatch.setattr(answers, "TIMEOUT_S", 5.0)
        await at.answers.hand_over([under_way, queued])
        assert await at.n_copies(tenant) == [1, 1, 1]  # what was under way was acknowledged yet
        assert at.health.reasons() == {}


async def test_while_kafka_answers_nobody_nothing_is_given_up(
    kafka_bootstrap: str, between: proxy.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await answer_topics.tenant(kafka_bootstrap)
    monkeypatch.setattr(answers, "TIMEOUT_S", 0.3)
    async with _copying(kafka_bootstrap, [tenant]) as at:
        batches = [at.batch(0, tenant), at.batch(1, tenant, tenant)]
        await at.answers.hand_over(batches[:1])
        await between.cut()
        for _ in range(2):
            at.now_s += 10 * PATIENCE_S
            with pytest.raises(AnswersError, match=f"does not take the answers of {tenant}"):
                await at.answers.hand_over(batches)
            assert list(at.health.reasons()) == [f"answers of {tenant}"]
        await between.heal()
        monkeypatch.setattr(answers, "TIMEOUT_S", 5.0)
        await at.answers.hand_over(batches)
        assert at.health.reasons() == {}
        copies = await _copies(kafka_bootstrap, tenant)
        assert len(copies) == 3
        assert copies[batches[0].rows[0].value] == 1  # it was acknowledged before
        assert at.counted(tenant, "refused") == 0


async def test_a_tenant_whose_kafka_hangs_fails_no_other(
    kafka_bootstrap: str, between: proxy.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes = [await answer_topics.tenant(kafka_bootstrap) for _ in "ab"]
    async with _copying(kafka_bootstrap, [hangs, goes]) as at:
        await at.answers.hand_over([at.batch(0, hangs)])
        between.hold_known()
        await at.answers.hand_over([at.batch(0, goes, partition=1)])
        client = await at.answers._clients.of(goes)
        stuck = at.batch(1, hangs)
        monkeypatch.setattr(answers, "TIMEOUT_S", 1.0)
        failing = asyncio.create_task(at.answers.hand_over([stuck]))
        await at.answers.hand_over([at.batch(1, goes, partition=1)])
        with pytest.raises(AnswersError, match=f"does not take the answers of {hangs}"):
            await failing
        await at.answers.hand_over([at.batch(2, goes, partition=1)])
        assert await at.answers._clients.of(goes) is client
        assert list(at.health.reasons()) == [f"answers of {hangs}"]
        between.go_on()
        await at.answers.hand_over([stuck])
        assert await at.n_copies(goes) == [1, 1, 1]
        assert len(await at.n_copies(hangs)) == 2


async def test_a_client_that_nobody_asks_for_is_closed_and_made_anew(kafka_bootstrap: str) -> None:
    quiet, busy = [await answer_topics.tenant(kafka_bootstrap) for _ in "ab"]
    async with _copying(kafka_bootstrap, [quiet, busy]) as at:
        assert len(at.answers._clients) == 0
        await at.answers.hand_over([at.batch(0, quiet, busy)])
        at.now_s += IDLE_S / 2
        await at.answers.hand_over([at.batch(2, busy)])
        at.now_s += IDLE_S / 2
        at.answers.look({3: Position(0, 3)})
        assert len(at.answers._clients) == 1
        await at.answers.hand_over([at.batch(3, quiet, busy)])
        assert await at.n_copies(quiet) == [1, 1]
        assert await at.n_copies(busy) == [1, 1, 1]
