"""Fixtures around a gateway in a process of its own; what they do stands in tests/support."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from inferbus_dev import ports, valkey
from inferbus_dev.supervisor import Supervisor
from tests.support import gateway_process, gateway_side
from tests.support.program import Program


@pytest.fixture
async def side(kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[gateway_side.GatewaySide]:
    """A model of this test alone."""
    async with gateway_side.deployed(kafka_bootstrap, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(
    kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[gateway_process.GatewayProcess]:
    """One gateway for the tests of a file that do not stop it: each deploys a model of its own."""
    with gateway_process.running(kafka_bootstrap, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
async def private_valkey(tmp_path: Path) -> AsyncIterator[str]:
    """One that a test may stall."""
    server = valkey.prepare(tmp_path, tmp_path / "valkey.log", ports.free_port())
    supervisor = Supervisor()
    await supervisor.start(valkey.child(server, dict))
    try:
        yield server.url
    finally:
        await supervisor.stop(["valkey-0"])


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=40) as client:
        yield client


@pytest.fixture
async def program(side: gateway_side.GatewaySide) -> Program:
    """A program whose tenant's topics are there."""
    made = Program(side)
    await made.start()
    return made
