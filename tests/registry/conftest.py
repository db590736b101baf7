"""One registry process for the tests that only talk to it."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.support import registry, servers
from tests.support.provider import Provider, provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx


@pytest.fixture(scope="module")
def idp() -> Iterator[Provider]:
    """A provider with one key."""
    with provider() as made:
        made.add()
        yield made


@pytest.fixture(scope="module")
def running(
    kafka_bootstrap: str, postgres_url: str, idp: Provider
) -> Iterator[registry.RegistryProcess]:
    """A registry on a database of its own, with small limits, which takes the provider's tokens."""
    with asyncio.Runner() as runner:
        context = servers.fresh_database(postgres_url)
        url = runner.run(context.__aenter__())
        registry.migrate_process(url)
        told = {
            "INFERBUS_MAX_BLOB_BYTES": str(300 << 20),
            "INFERBUS_BLOB_STALL_S": "1",
            **idp.environment,
        }
        try:
            with registry.registry_process(kafka_bootstrap, url, env=told) as process:
                yield process
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def parts(kafka_bootstrap: str, postgres_database: str) -> AsyncIterator[registry.Parts]:
    """Database and leaders on topics of this test alone."""
    names = await servers.fresh_topics(kafka_bootstrap)
    async with registry.parts(kafka_bootstrap, names, postgres_database) as made:
        yield made


@pytest.fixture
def client(running: registry.RegistryProcess) -> Iterator[httpx.Client]:
    with running.client as made:
        yield made


@pytest.fixture
def model() -> str:
    return f"m-{secrets.token_hex(4)}"
