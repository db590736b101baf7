"""What a gateway's tests of jobs need beside the gateway: a worker's part, and eyes.

In: commands, as a job's gateway wrote them. Out: results objects and statuses as a worker writes
them; what is left in the store.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from inferbus_kit.objects import Objects
from inferbus_schemas import jobs, topics
from inferbus_schemas import messages as m
from tests.support.gateway_side import GatewaySide
from tests.support.scripted_worker import prediction


async def commands(side: GatewaySide, job_id: bytes) -> list[m.ChunkCommand]:
    """Return a job's commands, as they stand in the topic now."""
    topic = topics.topic(topics.JOB_CHUNKS, side.pool).name
    places = [
        TopicPartition(topic, number) for number in range(await side.producer.n_partitions(topic))
    ]
    consumer = AIOKafkaConsumer(bootstrap_servers=side.bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(places)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(places)
        left = {place for place, end in ends.items() if end}
        found = []
        while left:
            for place, records in (await consumer.getmany(timeout_ms=100)).items():
                found += [m.ChunkCommand.FromString(record.value or b"") for record in records]
                if records and records[-1].offset + 1 >= ends[place]:
                    left.discard(place)
    finally:
        await consumer.stop()
    return sorted((one for one in found if one.job.id == job_id), key=lambda one: one.chunk)


async def finish(
    side: GatewaySide, store: Objects, command: m.ChunkCommand, *, fail: bool = False
) -> None:
    """Do what a worker does with a chunk: answer with the inputs, or fail each row."""
    job = command.job
    raw = await store.get(jobs.input_path(job.input, command.chunk))
    results = m.ChunkResults()
    for row in m.Chunk.FromString(raw or b"").rows:
        request = m.Request(
            id=jobs.row_id(job.id, row.number),
            tenant=job.tenant,
            model=job.model,
            version=job.version,
            tensors=row.tensors,
            client_request_id=row.client_request_id,
        )
        outcome = m.OUTCOME_FAILED if fail or row.refused else m.OUTCOME_OK
        said = prediction(request, outcome)
        if outcome != m.OUTCOME_OK:
            said.error_code = "no"
        results.rows.add(number=row.number, prediction=said)
    path = jobs.results_path(job.id, command.chunk)
    await store.create(path, results.SerializeToString())
    n_failed = sum(row.prediction.outcome != m.OUTCOME_OK for row in results.rows)
    status = m.ChunkStatus(
        job=job.id,
        chunk=command.chunk,
        state=m.CHUNK_STATE_DONE,
        n_ok=len(results.rows) - n_failed,
        n_failed=n_failed,
    )
    key = jobs.chunk_key(job.id, command.chunk)
    await side.write(topics.JOB_STATUS, 0, key, m.JobStatus(chunk=status).SerializeToString())


def kept(side: GatewaySide) -> set[Path]:
    """Return the folders of uploads that hold something."""
    uploads = side.folder / "objects" / "uploads"
    return {path.parent for path in uploads.rglob("*") if path.is_file()}


async def ended(http: httpx.AsyncClient, job: str) -> dict[str, Any]:
    async with asyncio.timeout(15):
        while True:
            found: dict[str, Any] = (await http.get(f"/v1/jobs/{job}")).json()
            if found["state"] in {"completed", "cancelled"}:
                return found
            await asyncio.sleep(0.02)


def job_id(answer: httpx.Response) -> bytes:
    found = jobs.parse_id(answer.json()["id"])
    assert found is not None
    return found


async def results(http: httpx.AsyncClient, job: str) -> list[str]:
    answer = await http.get(f"/v1/jobs/{job}/results")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return answer.text.splitlines()
