"""Kafka and a gateway stopped for seconds, and topics that grow; parts of a test under load.

In: a stack with two workers and two gateways, and the ledger of its clients. Out: an assertion
where one was told what it should not be; whether ledger and log agree is asked after each step.
"""

from __future__ import annotations

import asyncio
import os
import signal

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from inferbus_dev.stack import Stack
from inferbus_schemas import topics
from tests.support import stacks
from tests.support.balancer import Balancer
from tests.support.ledger import OUTCOME_UNKNOWN, Ledger
from tests.support.traffic import Traffic

MODEL = "breast-cancer"
KAFKA_FROZEN_S = 8.0
"""Longer than a lease is good for, were the broker's silence held against its owner."""
GATEWAY_FROZEN_S = 5.0
TIMEOUT_MS = 3_000
"""Shorter than either, so that deadlines pass meanwhile."""
GROWN = {topics.REQUESTS: 20, topics.PREDICTIONS: 128}


async def _frozen(stack: Stack, role: str, seconds: float) -> None:
    pid = stack.process(role, 0).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def _traffic(stack: Stack, ledger: Ledger, seed: int, *, timeout_ms: int = TIMEOUT_MS) -> Traffic:
    return Traffic(
        lambda: stack.gateways,
        ledger,
        MODEL,
        rate_per_s=40,
        timeout_ms=timeout_ms,
        seed=seed,
    )


async def kafka_stands_still(stack: Stack, ledger: Ledger) -> None:
    """Refused before acceptance, or ended once by a record; no process needs a restart."""
    before = _pids(stack)
    async with _traffic(stack, ledger, 101) as traffic:
        await asyncio.sleep(1.0)
        await _frozen(stack, "kafka", KAFKA_FROZEN_S)
        await asyncio.sleep(4.0)
    assert set(traffic.seen.statuses) <= {200, 503, 504}, traffic.seen.failures[:3]
    # Each of them must end by a record all the same, which the ledger's check asks for.
    assert set(traffic.seen.unknown) == {OUTCOME_UNKNOWN}
    assert traffic.seen.statuses[503]
    await _serves(stack, ledger, 102)
    assert _pids(stack) == before


async def a_gateway_stands_still(stack: Stack, ledger: Ledger) -> None:
    """Its requests end once, late; those of the other one do not notice."""
    async with _traffic(stack, ledger, 103) as traffic:
        await asyncio.sleep(1.0)
        await _frozen(stack, "gateway", GATEWAY_FROZEN_S)
        await asyncio.sleep(2.0)
    assert set(traffic.seen.statuses) <= {200, 503, 504}, traffic.seen.failures[:3]
    assert traffic.seen.statuses[200] > traffic.seen.n_sent / 2
    await _serves(stack, ledger, 104)


async def _serves(stack: Stack, ledger: Ledger, seed: int) -> None:
    """What was disturbed answers everything once it is ready again."""
    for role, index in (("gateway", 0), ("gateway", 1), ("worker", 0), ("worker", 1)):
        await stack.wait_ready(role, index)
    async with _traffic(stack, ledger, seed, timeout_ms=20_000) as traffic:
        await asyncio.sleep(1.0)
    assert traffic.seen.statuses == {200: traffic.seen.n_sent}, traffic.seen.failures[:3]


async def topics_grow(stack: Stack, ledger: Ledger) -> None:
    """More inboxes and more reply partitions; gateways that restart then take the new ones."""
    async with (
        Balancer(lambda: stack.gateways) as balancer,
        Traffic(balancer.ready, ledger, MODEL, rate_per_s=40, seed=105) as traffic,
    ):
        await asyncio.sleep(1.0)
        await _grow(stack, GROWN)
        await asyncio.sleep(1.0)
        # Between the two growths a gateway that starts must find its place all the same.
        await stack.restart("gateway", 0)
        await stack.wait_ready("gateway", 0)
        await _grow(stack, {topics.TOKENS: GROWN[topics.PREDICTIONS]})
        for attempt in range(8):
            await stack.restart("gateway", attempt % 2)
            await stack.wait_ready("gateway", attempt % 2)
            url = stack.gateways[attempt % 2]
            inputs = stacks.sample_inputs(MODEL)[0]
            answer = await stacks.infer(url, MODEL, inputs, ledger, f"grown-{attempt}")
            assert answer.status_code == 200, answer.text
            used = int(answer.headers["x-inferbus-receipt"].partition(":")[0])
            if used >= topics.topic(topics.PREDICTIONS).partitions["one-machine"]:
                break
        else:
            raise AssertionError("no gateway took a new reply partition")
        await asyncio.sleep(2.0)
    assert traffic.seen.statuses == {200: traffic.seen.n_sent}, traffic.seen.failures[:3]
    assert not traffic.seen.unknown


async def _grow(stack: Stack, grown: dict[str, int]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
    await admin.start()
    try:
        wanted = {
            topics.topic(name, "default").name: NewPartitions(total_count=total)
            for name, total in grown.items()
        }
        answer = await admin.create_partitions(wanted)
        assert [error[1] for error in answer.topic_errors] == [0] * len(wanted), answer
    finally:
        await admin.close()


def _pids(stack: Stack) -> dict[str, int]:
    roles = ("gateway", "worker", "logger", "registry", "kafka", "postgres")
    counts = {"gateway": 2, "worker": 2}
    return {
        f"{role}-{index}": stack.process(role, index).pid
        for role in roles
        for index in range(counts.get(role, 1))
    }


STEPS = (kafka_stands_still, a_gateway_stands_still, topics_grow)
