"""Load and unload: what the registry is asked, and when a call is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from inferbus_gateway import errors
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.route import Routes
from inferbus_schemas import messages as m
from tests.gateway.fleet_records import Fleet, deployment, version


class Registry:
    """Answers every request alike, and writes down its first lines."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.presented: list[str] = []
        self.status = 200
        self.body = b'{"model": "m", "aliases": [], "generation": 2}'

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b"\r\n")[0].decode())
        self.presented = [
            line.decode() for line in head.split(b"\r\n") if line.startswith(b"authorization")
        ]
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (self.status, len(self.body), self.body)
        )
        await writer.drain()
        writer.close()


class Gateway:
    """Routing state with version 1 of `m` loaded by generation 1, and a repository on it."""

    def __init__(self, registry: Registry, url: str) -> None:
        self.registry = registry
        self.fleet = Fleet()
        self.routes = Routes(Pins(), self.fleet.seen, Placement(self.fleet.seen, 1))
        for number in (1, 2):
            self.routes.apply_version(version("m", number))
        self.routes.apply_deployment(deployment("m", 1, {"champion": (1, 1)}, (1,)))
        self.repository = ModelRepository(self.routes, url, follow_s=0.3)

    def holds(self, *ready: tuple[str, int], **said: Any) -> None:
        self.fleet.worker(0, *ready, **said)
        self.routes.fleet_changed()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    registry = Registry()
    server = await asyncio.start_server(registry.serve, "127.0.0.1", 0)
    async with server:
        yield Gateway(registry, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_a_load_is_done_when_workers_hold_what_the_aliases_want(gateway: Gateway) -> None:
    gateway.holds(("m", 1))
    work = asyncio.ensure_future(gateway.repository.load("m", ""))
    await asyncio.sleep(0.1)
    assert not work.done(), "the registry's change is not seen yet"
    gateway.routes.apply_deployment(deployment("m", 2, {"champion": (2, 0)}, (1, 2)))
    await asyncio.sleep(0.1)
    assert not work.done(), "version 2 is not loaded yet"
    gateway.holds(("m", 1), ("m", 2))
    await work
    assert not gateway.registry.presented
    assert gateway.registry.asked == ["POST /v1/registry/models/m/load HTTP/1.1"]


async def test_a_load_that_fails_says_why(gateway: Gateway) -> None:
    gateway.routes.apply_deployment(deployment("m", 2, {"champion": (2, 0)}, (1, 2)))
    broken = m.Resident(model="m", version=2, readiness=m.READINESS_FAILED, reason="bad graph")
    gateway.holds(others=[broken])
    with pytest.raises(errors.LoadFailedError, match="failed to load m: version 2: bad graph"):
        await gateway.repository.load("m", "")


async def test_a_load_that_takes_too_long_goes_on(gateway: Gateway) -> None:
    with pytest.raises(errors.DeadlineExceededError, match="it goes on"):
        await gateway.repository.load("m", "")


async def test_an_unload_is_done_when_this_gateway_has_seen_it(gateway: Gateway) -> None:
    gateway.holds(("m", 1))
    work = asyncio.ensure_future(gateway.repository.unload("m", "Bearer k"))
    await asyncio.sleep(0.1)
    assert not work.done()
    gateway.routes.apply_deployment(deployment("m", 2, {}, (1,)))
    await work
    assert gateway.registry.presented == ["authorization: Bearer k"]
    with pytest.raises(errors.UnknownModelError):
        gateway.routes.resolve("m")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.UnauthorizedError),
        (403, errors.ForbiddenError),
        (404, errors.UnknownModelError),
        (503, errors.RegistryUnavailableError),
        (500, errors.RegistryUnavailableError),
    ],
)
async def test_a_refusal_of_the_registry_is_told(
    gateway: Gateway, status: int, kind: type[Exception]
) -> None:
    gateway.registry.status = status
    for work in (gateway.repository.load("m", ""), gateway.repository.unload("m", "")):
        with pytest.raises(kind, match="failed to"):
            await work
