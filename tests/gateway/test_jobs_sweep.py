"""What jobs leave behind goes, once they are old and have ended; on real Kafka and a real store."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import pytest

from inferbus_gateway.control.jobs.dispatch import Dispatcher, job_feed
from inferbus_gateway.control.jobs.fold import Fold
from inferbus_kit.consume import StateReader
from inferbus_kit.health import Health
from inferbus_kit.objects import Objects, open_store
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, ids, jobs, topics
from inferbus_schemas import messages as m
from tests.support import servers

pytestmark = pytest.mark.slow


def job(unix_ms: int, parent: bytes = b"") -> m.Job:
    return m.Job(
        id=ids.uuid7(unix_ms, secrets.randbits(74)),
        tenant="sweeping",
        model="digits",
        version=1,
        pool="default",
        n_rows=1,
        n_chunks=1,
        input=f"uploads/{secrets.token_hex(8)}",
        n_partitions=16,
        dispatched=True,
        key_sha256=secrets.token_bytes(32),
        parent=parent,
    )


async def test_old_jobs_that_ended_are_deleted(kafka_bootstrap: str, tmp_path: Path) -> None:
    await servers.fresh_topics(kafka_bootstrap, "")
    objects = Objects(open_store((tmp_path / "objects").as_uri()))
    producer = Producer(kafka_bootstrap, client_id="sweep")
    await producer.start()
    fold = Fold()
    health = Health()
    health.watch("jobs", 60.0)
    dispatcher = Dispatcher(producer, objects, fold, "gateway-test", health)
    now_ms = int(time.time() * 1000)
    old, running, continued = (job(now_ms - 10_000) for _ in range(3))
    young = job(now_ms, continued.id)
    everyone = (old, running, continued, young)
    topic = topics.topic(topics.JOB_STATUS)

    async def say(key: str, said: m.JobStatus) -> int:
        head = envelope.headers(topic.ce_type, "/inferbus/test", key)
        value = said.SerializeToString()
        sent = await producer.send(topic.name, 0, value, key=key.encode(), headers=head)
        return int((await sent).offset)

    for one in everyone:
        await objects.put(jobs.input_path(one.input, 0), b"rows")
        await objects.put(jobs.job_path(one.id), one.SerializeToString())
        await objects.put(jobs.key_path(one.tenant, one.key_sha256), one.id)
        await say(jobs.job_key(one.id), m.JobStatus(job=one))
        if one is not running:
            done = m.ChunkStatus(job=one.id, state=m.CHUNK_STATE_DONE, n_ok=1)
            await say(jobs.chunk_key(one.id, 0), m.JobStatus(chunk=done))
    reader = StateReader(kafka_bootstrap, topic.name, job_feed(fold), client_id="sweep")
    await reader.start()
    assert all(one.id in fold for one in everyone)

    await dispatcher.sweep(now_ms - 5_000)
    # Jobs of other tests may stand in the topic too, and go first.
    async with asyncio.timeout(20):
        while old.id in fold:  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.02)
    assert [one.id in fold for one in everyone] == [False, True, True, True]
    for one in everyone:
        for path in (
            jobs.input_path(one.input, 0),
            jobs.job_path(one.id),
            jobs.key_path(one.tenant, one.key_sha256),
        ):
            assert await objects.exists(path) == (one is not old), path
    await reader.stop()
    await producer.stop()
