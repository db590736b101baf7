"""Chunks of jobs at a worker process, on real Kafka and a real store."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import numpy as np
import pytest

from inferbus_kit.consume import Record
from inferbus_kit.objects import Objects, open_store
from inferbus_schemas import envelope, ids, jobs, topics
from inferbus_schemas import messages as m
from tests.support.worker_side import REPLY_PARTITION, Side, tensor_set
from tests.worker.deployed_models import busy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def store(side: Side) -> Objects:
    return Objects(open_store(side.store.as_uri()))


def a_row(at: int, value: int) -> m.Row:
    raw = tensor_set(("n", "INT64", (1,), np.array([value], np.int64).tobytes()))
    return m.Row(number=at, tensors=raw, client_request_id=f"row-{at}")


async def submitted(side: Side, store: Objects, model: str, *rows: m.Row) -> m.ChunkCommand:
    """Write a job of one chunk as a gateway does, and its command."""
    job = m.Job(
        id=ids.uuid7(int(time.time() * 1000), secrets.randbits(74)),
        tenant="acme",
        model=model,
        version=1,
        pool=side.pool,
        n_rows=len(rows),
        n_chunks=1,
        input=f"uploads/{secrets.token_hex(8)}",
        n_partitions=16,
    )
    await store.put(jobs.input_path(job.input, 0), m.Chunk(rows=rows).SerializeToString())
    return m.ChunkCommand(job=job, chunk=0)


async def send(side: Side, command: m.ChunkCommand, partition: int = 0) -> None:
    topic = topics.topic(topics.JOB_CHUNKS, side.pool)
    head = envelope.headers(topic.ce_type, "/inferbus/gateway/test", secrets.token_hex(8))
    value = command.SerializeToString()
    await (await side.producer.send(topic.name, partition, value, headers=head))


async def results(store: Objects, command: m.ChunkCommand) -> list[m.RowResult]:
    """Wait until nothing is left to do for a chunk; return its results."""
    async with asyncio.timeout(60):
        while not await store.exists(  # noqa: ASYNC110 -- a plain poll is clearest
            jobs.done_path(command.job.id, command.chunk)
        ):
            await asyncio.sleep(0.02)
    raw = await store.get(jobs.results_path(command.job.id, command.chunk))
    return list(m.ChunkResults.FromString(raw or b"").rows)


def of(side: Side, command: m.ChunkCommand) -> list[m.Prediction]:
    """Return the predictions of a job's rows in the partition that the test reads."""
    mine = {jobs.row_id(command.job.id, at) for at in range(1000)}
    return [said for _, said in side.predictions if said.id in mine]


async def test_a_chunk_runs_and_each_row_is_accounted_for(
    side: Side, store: Objects, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    side.spawn()
    rows = [a_row(at, at % 7) for at in range(200)]
    rows[3] = m.Row(number=3, refused="it is not JSON")
    rows[4] = m.Row(number=4, tensors=tensor_set(("other", "INT64", (1,), bytes(8))))
    command = await submitted(side, store, model, *rows)
    await send(side, command)
    found = await results(store, command)
    assert [row.number for row in found] == list(range(200))
    ends = {row.number: row.prediction.outcome for row in found}
    assert [at for at, end in ends.items() if end != m.OUTCOME_OK] == [3, 4]
    assert found[3].prediction.error_message == "it is not JSON"
    assert {(row.prediction.tenant, row.prediction.version) for row in found} == {("acme", 1)}
    here = [
        row.prediction
        for row in found
        if jobs.row_partition(row.prediction.id, 16) == REPLY_PARTITION
    ]
    assert here
    assert await side.until(lambda: len(of(side, command)) == len(here))
    assert sorted(of(side, command), key=lambda one: one.id) == sorted(here, key=lambda one: one.id)

    # The same command again costs a look and writes nothing.
    await send(side, command)
    after = await submitted(side, store, model, a_row(0, 1))
    await send(side, after)
    await results(store, after)
    assert len(of(side, command)) == len(here)


async def test_the_stream_gets_what_the_object_that_won_holds(
    side: Side, store: Objects, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    command = await submitted(side, store, model, *(a_row(at, 1) for at in range(64)))
    won = m.ChunkResults()
    for at in range(64):
        said = m.Prediction(id=jobs.row_id(command.job.id, at), outcome=m.OUTCOME_OK, model=model)
        won.rows.add(number=at, prediction=said)
        won.rows[-1].prediction.served_by = "somebody else"
    path = jobs.results_path(command.job.id, 0)
    assert await store.create(path, won.SerializeToString())
    side.spawn()
    await send(side, command)
    assert await results(store, command) == list(won.rows)
    assert await side.until(lambda: of(side, command))
    assert {said.served_by for said in of(side, command)} == {"somebody else"}
    assert not await store.exists(jobs.attempt_path(command.job.id, 0, 1))


async def test_a_chunk_that_was_begun_too_often_is_a_dead_letter(
    side: Side, store: Objects, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    command = await submitted(side, store, model, a_row(0, 1), m.Row(number=1, refused="bad"))
    for attempt in range(1, jobs.MAX_ATTEMPTS + 1):
        await store.create(jobs.attempt_path(command.job.id, 0, attempt), b"%016x" % attempt)
    letters: list[Record] = []
    chunks = topics.topic(topics.JOB_CHUNKS, side.pool).name
    await side.follow(topics.dead_letters(chunks), 0, "earliest", letters.append)
    side.spawn()
    await send(side, command)
    found = await results(store, command)
    codes = [(row.prediction.outcome, row.prediction.error_code) for row in found]
    assert codes == [
        (m.OUTCOME_FAILED, "too_many_attempts"),
        (m.OUTCOME_INVALID_INPUT, "invalid_input"),
    ]
    (letter,) = await side.until(lambda: letters)
    assert m.ChunkCommand.FromString(letter.value or b"") == command
    assert b"begun 3 times" in dict(letter.headers)["dlq_error"]


async def test_what_is_no_command_is_buried_and_passed_by(
    side: Side, store: Objects, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    side.spawn()
    topic = topics.topic(topics.JOB_CHUNKS, side.pool)
    await (await side.producer.send(topic.name, 0, b"\xff\xff"))
    command = await submitted(side, store, model, a_row(0, 1))
    await send(side, command)
    assert (await results(store, command))[0].prediction.outcome == m.OUTCOME_OK


async def test_a_cancelled_job_has_all_of_its_rows(
    side: Side, store: Objects, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    rows = [a_row(at, 200_000) for at in range(300)]
    command = await submitted(side, store, model, *rows)
    worker = side.spawn()
    await send(side, command)
    began = side.store / jobs.attempt_path(command.job.id, 0, 1)
    assert await side.until(began.exists)
    await store.create(jobs.cancel_path(command.job.id), b"")
    found = await results(store, command)
    ends = [row.prediction.outcome for row in found]
    assert len(ends) == 300
    assert set(ends) <= {m.OUTCOME_OK, m.OUTCOME_CANCELLED}
    assert ends.count(m.OUTCOME_CANCELLED) > 100
    assert worker.stop() == 0


async def test_a_worker_that_stops_gives_its_chunk_back(
    side: Side, store: Objects, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    rows = [a_row(at, 200_000) for at in range(500)]
    command = await submitted(side, store, model, *rows)
    worker = side.spawn()
    await send(side, command)
    began = side.store / jobs.attempt_path(command.job.id, 0, 1)
    assert await side.until(began.exists)
    assert await asyncio.to_thread(worker.stop, 60.0) == 0
    assert not began.exists()
    await store.create(jobs.cancel_path(command.job.id), b"")
    side.spawn()
    assert len(await results(store, command)) == 500


async def test_a_version_is_held_for_a_job_alone(
    side: Side, store: Objects, tmp_path: Path
) -> None:
    model = await busy(side, tmp_path)
    await side.deploy(model, [], generation=time.time_ns())
    side.spawn()
    command = await submitted(side, store, model, a_row(0, 1))
    await side.beat_as_gateway(model, acts_on=2**63, pinned=[], job_version=1)
    await send(side, command)
    assert (await results(store, command))[0].prediction.outcome == m.OUTCOME_OK
