"""A load balancer's view of the gateways: who may be sent requests now.

In: the gateways' addresses. Out: those whose `/v2/health/ready` answered 200 a moment ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

import httpx

from inferbus_kit.lifecycle import cancel

POLL_S = 0.1


class Balancer:
    """Asks every gateway over and over; used as a context.

    Invariants: an address is in `ready` only if its last answer, at most a poll ago, was 200; where
    no gateway is ready all are, since some must be named.
    """

    def __init__(self, gateways: Callable[[], Sequence[str]]) -> None:
        self._gateways = gateways
        self._ready: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as client:
            await self._poll(client)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_error: object) -> None:
        await cancel(self._task)

    def ready(self) -> Sequence[str]:
        """Return the addresses to send to."""
        return self._ready or self._gateways()

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as client:
            while True:
                await asyncio.sleep(POLL_S)
                await self._poll(client)

    async def _poll(self, client: httpx.AsyncClient) -> None:
        urls = self._gateways()
        fit = await asyncio.gather(*(self._is_ready(client, url) for url in urls))
        self._ready = [url for url, one in zip(urls, fit, strict=True) if one]

    @staticmethod
    async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
        try:
            return (await client.get(f"{url}/v2/health/ready")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False
