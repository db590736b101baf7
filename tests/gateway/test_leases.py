"""The shared count on a real Valkey: the script, ten thousand at once, a server that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError

from inferbus_dev import valkey
from inferbus_dev.ports import free_port
from inferbus_dev.supervisor import Supervisor
from inferbus_gateway import errors
from inferbus_gateway.control import leases
from inferbus_gateway.control.leases import Leases
from inferbus_gateway.hot.limits import Limits, Part, Quota
from inferbus_kit.health import Health
from inferbus_kit.metrics import gateway_metrics
from inferbus_schemas import access
from inferbus_schemas import messages as m
from inferbus_schemas.access import LEAST_RATE_PER_S
from inferbus_schemas.membership import Membership
from tests.support.gcra import Gcra

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

RATE, BURST = 200.0, 100


def caller(name: str) -> access.Principal:
    limits = m.Limits(requests_per_s=RATE, burst=BURST)
    return access.principal("acme", name, ["infer:*"], limits=limits)


class Gateway:
    """One gateway's limits and its leases."""

    def __init__(self, url: str, fleet: Membership) -> None:
        self.limits = Limits()
        self.shared = gateway_metrics(CollectorRegistry()).limits_shared
        self.leases = Leases(url, self.limits, fleet, self.shared)

    def take(self, who: access.Principal) -> bool:
        try:
            self.limits.take(who, time.monotonic())
        except errors.RateLimitedError:
            return False
        return True

    def is_shared(self) -> bool:
        return self.limits.part.shared


@contextlib.asynccontextmanager
async def gateways(url: str, count: int) -> AsyncIterator[list[Gateway]]:
    fleet = Membership()
    for number in range(count):
        beat = m.Heartbeat(instance=f"g{number}", state=m.STATE_ACTIVE, life=1)
        beat.gateway.reply_partition = number
        fleet.apply(f"gateway/g{number}", beat, offset=number, append_ms=1000)
    made = [Gateway(url, fleet) for _ in range(count)]
    tasks = [asyncio.create_task(one.leases.run(Health())) for one in made]
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in made:
            await one.leases.stop()


async def test_the_script_does_what_the_reference_does(valkey_url: str) -> None:
    client = leases.client(valkey_url)
    quota = Quota(RATE, BURST, Part(), 0.0)
    name = secrets.token_hex(4)
    model = Gcra(RATE, BURST)
    try:
        for owed, want in [(0, 0), (0, 20), (90, 20), (0, 5), (60, 0), (0, 1), (0, 300), (3, 3)]:
            call = leases.arguments(name, quota, owed, want)
            granted, room, now_us = await client.eval(leases.SCRIPT, 1, *call)
            assert (granted, room) == model.spend(owed, want, now_us / 1e6), (owed, want)
            await asyncio.sleep(0.02)
        left_ms = await client.pttl(f"{leases.PREFIX}{{{name}}}")
        assert 0 < left_ms <= 2000, "what is paid back is forgotten"
    finally:
        await client.aclose()


@pytest.mark.parametrize("rate_per_s", [1e-300, 1e-17, LEAST_RATE_PER_S, 1e6])
@pytest.mark.parametrize("burst", [1, 1_000_000_000])
async def test_no_quota_makes_the_script_fail(
    valkey_url: str, rate_per_s: float, burst: int
) -> None:
    client = leases.client(valkey_url)
    quota, name = Quota(rate_per_s, burst, Part(), 0.0), secrets.token_hex(4)
    try:
        for owed, want in [(1, 0), (0, 64), (1_000_000_000, 64), (1, 1)]:
            granted, room, _ = await client.eval(
                leases.SCRIPT, 1, *leases.arguments(name, quota, owed, want)
            )
            assert granted >= 0
            if rate_per_s >= LEAST_RATE_PER_S:
                assert room <= burst
        assert await client.pttl(f"{leases.PREFIX}{{{name}}}") > 0
    finally:
        await client.aclose()


@pytest.mark.parametrize("n_gateways", [1, 4])
async def test_of_ten_thousand_at_once_no_more_than_the_limit(
    valkey_url: str, n_gateways: int
) -> None:
    who = caller(f"key:{secrets.token_hex(4)}")
    accepted, asked = 0, 0
    async with gateways(valkey_url, n_gateways) as fleet:
        started_s = time.monotonic()

        async def ask(number: int) -> None:
            nonlocal accepted, asked
            await asyncio.sleep((number % 500) / 1000)
            asked += 1
            accepted += fleet[number % n_gateways].take(who)

        await asyncio.gather(*(ask(number) for number in range(10_000)))
        took_s = time.monotonic() - started_s
        async with asyncio.timeout(5):
            while not all(one.is_shared() for one in fleet):  # noqa: ASYNC110 -- a plain poll
                await asyncio.sleep(0.01)
    assert asked == 10_000
    assert accepted <= BURST + RATE * max(1.0, took_s)
    assert accepted >= BURST, "the limit is not the number of gateways smaller"


async def test_a_valkey_that_goes_away_limits_on(tmp_path: Path) -> None:
    who = caller("key:1")
    server = valkey.prepare(tmp_path, tmp_path / "valkey.log", free_port())
    supervisor = Supervisor()
    spec = valkey.child(server, dict)
    await supervisor.start(spec)
    try:
        async with gateways(server.url, 2) as fleet:

            async def becomes(shared: float) -> None:
                async with asyncio.timeout(10):
                    while any(one.shared._value.get() != shared for one in fleet):
                        for one in fleet:
                            one.take(who)
                        await asyncio.sleep(0.02)

            await becomes(1)
            await supervisor.stop(["valkey-0"])
            await becomes(0)
            started_s = time.monotonic()
            accepted = 0
            while time.monotonic() - started_s < 0.5:
                accepted += sum(one.take(who) for one in fleet)
                await asyncio.sleep(0.001)
            assert 0 < accepted <= 2 * (BURST + RATE * (time.monotonic() - started_s))
            await supervisor.start(spec)
            await becomes(1)
    finally:
        await supervisor.stop(["valkey-0"])


async def test_a_client_without_the_password_is_refused(tmp_path: Path) -> None:
    server = valkey.prepare(tmp_path, tmp_path / "valkey.log", free_port())
    assert (tmp_path / "valkey.conf").stat().st_mode & 0o777 == 0o600
    supervisor = Supervisor()
    await supervisor.start(valkey.child(server, dict))
    client = leases.client(server.url.replace(server.password, "wrong"))
    try:
        with pytest.raises(RedisError):
            await client.ping()
    finally:
        await client.aclose()
        await supervisor.stop(["valkey-0"])
