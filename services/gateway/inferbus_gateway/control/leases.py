"""The shared count of requests in Valkey: asked in the background, never by a request.

In: quotas that owe or want. Out: leases and room, or, where Valkey does not answer, silence: each
gateway then counts its share alone. The count is GCRA in one script, on the server's own clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog
from prometheus_client import Gauge
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inferbus_gateway.hot.limits import Limits, Quota
from inferbus_kit.health import Health
from inferbus_schemas.membership import Membership

_log = structlog.get_logger("leases")

PREFIX = "inferbus:limit:"
PAUSE_S = 0.01
"""Between two turns, so that a busy gateway asks a hundred times a second at most."""
TIMEOUT_S = 0.5
"""Nobody waits for an answer, so a busy machine may take its time."""
_LONGEST_PAUSE_S = 1.0
_SWEEP_S = 10.0

SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local owed, want = tonumber(ARGV[3]), tonumber(ARGV[4])
local ahead = math.max(0, (tonumber(redis.call('GET', KEYS[1])) or now) - now) + owed * interval
local room = math.floor((burst * interval - ahead) / interval + 0.000001)
local granted = math.max(0, math.min(want, room))
ahead = ahead + granted * interval
if owed + granted > 0 then
  local kept = math.min(math.ceil(ahead / 1000) + 1, 1e13)
  redis.call('SET', KEYS[1], string.format('%.0f', now + ahead), 'PX', string.format('%.0f', kept))
end
return {granted, room - granted, now}
"""
"""GCRA. The key holds the time at which all that was spent is paid back; ARGV: microseconds a
request, burst, what is owed (debited whether or not there is room), what is wanted. Answers what is
granted, the room that is left, and the time of the server. No quota makes it fail, which would be
taken for a server that is away."""


def client(url: str) -> Redis:
    """Return a client that gives up soon and never tries twice."""
    return Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        single_connection_client=True,
    )


def arguments(name: str, quota: Quota, owed: int, want: int) -> tuple[str, ...]:
    """Return what the script is called with."""
    interval_us = 1e6 / quota.rate_per_s
    # In braces, so that a cluster keeps each count in one place.
    return (f"{PREFIX}{{{name}}}", f"{interval_us:.6f}", str(quota.burst), str(owed), str(want))


class Leases:
    """Settles quotas with Valkey.

    Invariants: a quota has one question open at a time; while Valkey is away it is asked for at
    growing intervals up to a second, and requests go on; `shared` says which it is.
    """

    def __init__(self, url: str, limits: Limits, fleet: Membership, shared: Gauge) -> None:
        self._client = client(url) if url else None
        self._limits = limits
        self._fleet = fleet
        self._shared = shared
        self._n_failures = 0
        self._due = asyncio.Event()
        if url:
            limits.wake = self._due.set

    async def run(self, health: Health) -> None:
        """Settle until cancelled."""
        health.watch("leases", 10.0)
        swept_s = time.monotonic()
        task = asyncio.current_task()
        # The client's own timeouts may swallow a cancellation that meets them.
        while task is None or not task.cancelling():
            health.beat("leases")
            self._limits.part.share = 1.0 / max(1, len(list(self._fleet.gateways())))
            try:
                async with asyncio.timeout(1.0):
                    await self._due.wait()
            except TimeoutError:
                pass
            else:
                self._due.clear()
                await self._settle(self._limits.due())
            if time.monotonic() - swept_s > _SWEEP_S:
                swept_s = time.monotonic()
                self._limits.forget_idle(swept_s)

    async def _settle(self, quotas: dict[str, Quota]) -> None:
        now_s = time.monotonic()
        calls = []
        for name, quota in quotas.items():
            asked = quota.ask(now_s)
            calls.append(arguments(name, quota, asked.owed, asked.want))
        try:
            answers = await self._call(calls)
        except (RedisError, OSError, TimeoutError) as error:
            for quota in quotas.values():
                quota.unanswered()
            await self._away(error)
            return
        if self._n_failures:
            _log.info("limits_shared_again")
        self._n_failures = 0
        self._shared.set(1)
        self._limits.part.shared = True
        now_s = time.monotonic()
        for (name, quota), (granted, room, _) in zip(quotas.items(), answers, strict=True):
            quota.answered(granted, room, self._limits.part, now_s)
            if quota.owed and not quota.queued:
                self._limits.queue(name, quota)
        await asyncio.sleep(PAUSE_S)

    async def _call(self, calls: list[tuple[str, ...]]) -> list[Any]:
        assert self._client is not None  # noqa: S101 -- the caller looked
        pipe = self._client.pipeline(transaction=False)
        for call in calls:
            pipe.eval(SCRIPT, 1, *call)
        found: list[Any] = await pipe.execute()
        return found

    async def _away(self, error: Exception) -> None:
        self._shared.set(0)
        self._limits.part.shared = False
        self._n_failures += 1
        if self._n_failures == 1:
            # Its text may name the address, and that a password.
            _log.warning("limits_counted_here_alone", error=type(error).__name__)
        await asyncio.sleep(min(_LONGEST_PAUSE_S, 0.05 * 2 ** min(self._n_failures, 6)))

    async def stop(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.aclose()
