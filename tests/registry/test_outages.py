"""Servers that go away and come back, and a leader that is killed: nothing is lost, none dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from inferbus_dev.stack import Stack
from inferbus_schemas import messages as m
from inferbus_schemas import topics
from tests.support import registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.registry import RegistryProcess

MODEL = "outage"
BACK_S = 40.0


async def move(running: RegistryProcess, version: int) -> httpx.Response:
    """Move the alias through one registry."""
    url = f"{running.url}/v1/registry/models/{MODEL}/aliases/champion"
    head = registry.authorization(registry.ADMIN_KEY)
    async with httpx.AsyncClient(trust_env=False, timeout=30.0, headers=head) as client:
        return await client.put(url, json={"version": version})


async def eventually(true: Callable[[], Any]) -> None:
    """Wait until a blocking question is answered with yes."""
    deadline = time.monotonic() + BACK_S
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def probe(running: RegistryProcess, path: str) -> int:
    """Return the status of a health address."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{running.metrics_url}{path}")).status_code


async def becomes(running: RegistryProcess, status: int) -> None:
    """Wait until `/readyz` answers with a status."""
    async with asyncio.timeout(BACK_S):
        while await probe(running, "/readyz") != status:  # noqa: ASYNC110 -- it is another process
            await asyncio.sleep(0.2)


async def last_generation(bootstrap: str) -> int:
    """Return the generation of the model's last record."""
    place = TopicPartition(topics.topic(topics.DEPLOYMENTS).name, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        await consumer.seek_to_beginning(place)
        found = 0
        while await consumer.position(place) < end:
            for record in (await consumer.getmany(place, timeout_ms=500)).get(place, []):
                found = int(m.Deployment.FromString(record.value).generation)
        return found
    finally:
        await consumer.stop()


async def follows(bootstrap: str, generation: int) -> None:
    """Wait until the topic's last record is of this generation."""
    async with asyncio.timeout(BACK_S):
        while await last_generation(bootstrap) != generation:  # noqa: ASYNC110 -- Kafka has no event for it
            await asyncio.sleep(0.3)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(300)
async def test_outages_one_after_another(tmp_path: Path) -> None:
    stack = Stack(tmp_path / ".inferbus", free_ports=True, only={"kafka", "postgres"})
    with contextlib.ExitStack() as processes:
        await stack.start_infra()
        try:
            await asyncio.to_thread(registry.migrate_process, stack.postgres)
            first, second = [
                await asyncio.to_thread(
                    processes.enter_context, registry.registry_process(stack.kafka, stack.postgres)
                )
                for _ in range(2)
            ]
            for factor in (1.0, 2.0):
                await asyncio.to_thread(first.push, MODEL, factor)
            await postgres_goes(stack, first)
            await kafka_goes(stack, first, second)
            await leader_is_killed(stack, first, second)
        finally:
            await asyncio.to_thread(processes.close)
            await stack.stop()


async def postgres_goes(stack: Stack, first: RegistryProcess) -> None:
    spec = stack.supervisor.members["postgres-0"].spec
    await stack.supervisor.stop(["postgres-0"])
    refused = await move(first, 1)
    assert refused.status_code == 503
    assert refused.json()["code"] == "database_unavailable"
    assert "retry-after" in refused.headers
    assert await probe(first, "/livez") == 200
    await becomes(first, 503)
    await stack.supervisor.start(spec)
    await becomes(first, 200)
    moved = await move(first, 1)
    assert moved.status_code == 200
    await follows(stack.kafka, moved.json()["generation"])


async def kafka_goes(stack: Stack, first: RegistryProcess, second: RegistryProcess) -> None:
    spec = stack.supervisor.members["kafka-0"].spec
    await stack.supervisor.stop(["kafka-0"])
    moved = await move(second, 2)
    assert moved.status_code == 200
    assert await probe(first, "/readyz") == 200
    await asyncio.sleep(2)
    moved = await move(second, 1)
    await stack.supervisor.start(spec)
    await follows(stack.kafka, moved.json()["generation"])


async def leader_is_killed(stack: Stack, first: RegistryProcess, second: RegistryProcess) -> None:
    def leader() -> RegistryProcess | None:
        leads = [one for one in (first, second) if one.metric("inferbus_outbox_leader") == 1]
        assert len(leads) < 2
        return leads[0] if leads else None

    await eventually(leader)
    killed = leader()
    assert killed is not None
    other = second if killed is first else first
    killed.process.send_signal(signal.SIGKILL)
    moved = await move(other, 2)
    assert moved.status_code == 200
    await follows(stack.kafka, moved.json()["generation"])
    assert other.metric("inferbus_outbox_leader") == 1


@pytest.mark.slow
def test_a_registry_starts_without_its_servers() -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with registry.registry_process("127.0.0.1:1", nowhere, wait="/livez") as running:
        deadline = time.monotonic() + 20
        answer = None
        while answer is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError), running.client as client:
                answer = client.get("/models")
        assert answer is not None
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        ready = httpx.get(f"{running.metrics_url}/readyz", trust_env=False)
        assert ready.status_code == 503
        assert "does not answer" in ready.json()["reasons"]["postgres"]
