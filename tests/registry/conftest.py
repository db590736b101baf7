"""One registry process for the tests that only talk to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support import registry, servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def running(kafka_bootstrap: str, postgres_url: str) -> Iterator[registry.RegistryProcess]:
    """A registry on a database of its own, with small limits."""
    with asyncio.Runner() as runner:
        context = servers.fresh_database(postgres_url)
        url = runner.run(context.__aenter__())
        registry.migrate_process(url)
        limits = {"INFERBUS_MAX_BLOB_BYTES": str(300 << 20), "INFERBUS_BLOB_STALL_S": "1"}
        try:
            with registry.registry_process(kafka_bootstrap, url, env=limits) as process:
                yield process
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def parts(kafka_bootstrap: str, postgres_database: str) -> AsyncIterator[registry.Parts]:
    """Database and leaders on topics of this test alone."""
    names = await servers.fresh_topics(kafka_bootstrap)
    async with registry.parts(kafka_bootstrap, names, postgres_database) as made:
        yield made
