"""A rollout end to end with a fleet that only beats: wanted, serving, held, and what is told."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from inferbus_schemas import membership, topics
from inferbus_schemas import messages as m
from tests.support import registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.registry import RegistryProcess

TIMEOUT_S = 25.0


class Beating:
    """A worker and gateways that beat what the test says, until it says nothing more."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._beats: dict[str, m.Heartbeat] = {}
        self.name = secrets.token_hex(3)

    def gateway(self, number: int, model: str, generation: int, *pinned: int) -> None:
        instance = f"g{number}-{self.name}"
        used = m.GatewayModel(model=model, generation=generation, pinned=pinned)
        self._beats[membership.gateway_key(instance)] = m.Heartbeat(
            instance=instance, state=m.STATE_ACTIVE, life=1, gateway=m.GatewayBeat(models=[used])
        )

    def worker(self, model: str, version: int, readiness: Any, reason: str = "") -> None:
        resident = m.Resident(model=model, version=version, reason=reason)
        resident.readiness = readiness
        part = m.WorkerBeat(pool="default", inbox=15, epoch=time.time_ns(), residents=[resident])
        self._beats[membership.inbox_key("default", 15)] = m.Heartbeat(
            instance=f"w-{self.name}", state=m.STATE_ACTIVE, life=1, worker=part
        )

    async def run(self) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, acks="all")
        await producer.start()
        topic = topics.topic(topics.HEARTBEATS).name
        try:
            while True:
                for key, beat in list(self._beats.items()):
                    await producer.send_and_wait(
                        topic, beat.SerializeToString(), key=key.encode(), partition=0
                    )
                await asyncio.sleep(0.3)
        finally:
            for key in list(self._beats):
                await producer.send_and_wait(topic, None, key=key.encode(), partition=0)
            await producer.stop()


@pytest.fixture
async def beating(kafka_bootstrap: str) -> AsyncIterator[Beating]:
    made = Beating(kafka_bootstrap)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class Watch:
    """The rollout of one model, asked for until it is as it should be."""

    def __init__(self, running: RegistryProcess, model: str) -> None:
        self._running = running
        self.model = model

    async def rollout(self) -> dict[str, Any]:
        url = f"{self._running.url}/v1/registry/models/{self.model}/rollout"
        head = registry.authorization(registry.ADMIN_KEY)
        async with httpx.AsyncClient(trust_env=False, headers=head) as client:
            answer = await client.get(url)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    async def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while not true(found := await self.rollout()):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.1)
        return found


def alias(found: dict[str, Any]) -> tuple[int, int]:
    one = found["aliases"][0]
    return one["wanted"], one["serving"]


async def test_a_version_serves_once_all_gateways_pin_it(
    running: RegistryProcess, beating: Beating
) -> None:
    watch = Watch(running, f"m-{secrets.token_hex(4)}")
    model = watch.model
    beating.gateway(1, model, 0)
    beating.gateway(2, model, 0)
    await asyncio.to_thread(running.push, model, 1.0, "champion")
    found = await watch.until(lambda now: now["fleet_known"] and len(now["gateways"]) == 2)
    assert alias(found) == (1, 0)
    assert found["pools"] == [{"pool": "default", "versions": [1], "min_ready": 1}]

    beating.worker(model, 1, m.READINESS_LOADING)
    await watch.until(lambda now: _held(now) == [(1, "loading")])
    beating.worker(model, 1, m.READINESS_FAILED, "no memory")
    found = await watch.until(lambda now: _held(now) == [(1, "failed")])
    assert found["workers"][0]["versions"][0]["reason"] == "no memory"
    beating.worker(model, 1, m.READINESS_READY)
    await watch.until(lambda now: _held(now) == [(1, "ready")])

    beating.gateway(1, model, found["generation"], 1)
    await asyncio.sleep(2.0)
    assert alias(await watch.rollout()) == (1, 0)
    beating.gateway(2, model, found["generation"], 1)
    served = await watch.until(lambda now: alias(now) == (1, 1))
    assert served["generation"] > found["generation"]

    # The next version: both are held until no gateway uses the first.
    moved = await asyncio.to_thread(running.push, model, 2.0, "champion")
    assert moved["version"] == 2
    rolling = await watch.rollout()
    assert (alias(rolling), rolling["pools"][0]["versions"]) == ((2, 1), [1, 2])
    for number in (1, 2):
        beating.gateway(number, model, rolling["generation"], 2, *([1] if number == 2 else []))
    await asyncio.sleep(1.5)
    assert alias(await watch.rollout()) == (2, 1), "the one worker has not loaded it"
    beating.worker(model, 2, m.READINESS_READY)
    done = await watch.until(lambda now: alias(now) == (2, 2))
    assert done["pools"][0]["versions"] == [1, 2]
    beating.gateway(2, model, done["generation"], 2)
    beating.gateway(1, model, done["generation"], 2)
    await watch.until(lambda now: now["pools"][0]["versions"] == [2])

    with running.client as client:
        told = client.get(f"/models/{model}/events").json()["events"]
    assert [(one["what"], one["who"]) for one in told] == [
        ("version_registered", registry.ADMIN),
        ("alias_moved", registry.ADMIN),
        ("alias_serving", "registry"),
        ("version_registered", registry.ADMIN),
        ("alias_moved", registry.ADMIN),
        ("alias_serving", "registry"),
        ("pool_holds", "registry"),
    ]


def _held(now: dict[str, Any]) -> list[tuple[int, str]]:
    return [
        (one["version"], one["readiness"])
        for worker in now["workers"]
        for one in worker["versions"]
    ]
