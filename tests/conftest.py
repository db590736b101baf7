"""Fixtures that every folder of tests may use; what they do stands in tests/support."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from xdist.remote import Producer

from tests.support import servers, sharing

if TYPE_CHECKING:
    from collections.abc import Iterator

# Brokers that live for seconds: what Java's second compiler would gain they never see, and what it
# costs is a quarter of all that a test of a whole stack computes.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> sharing.Scheduling:
    """Keep the tests that share a stack in one worker."""
    return sharing.Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: sharing.rank(item.nodeid))


@pytest.fixture(scope="session")
def infra() -> Iterator[servers.Infra]:
    """Real Kafka, Postgres and Valkey, once a session, on free ports."""
    with servers.infra_process() as running:
        yield running


@pytest.fixture(scope="session")
def kafka_bootstrap(infra: servers.Infra) -> str:
    """The address of the session's broker; topics: `servers.fresh_topics`."""
    return infra.kafka


@pytest.fixture(scope="session")
def postgres_url(infra: servers.Infra) -> str:
    """The URL of the session's database; shared, so prefer `postgres_database`."""
    return infra.postgres


@pytest.fixture(scope="session")
def valkey_url(infra: servers.Infra) -> str:
    """The URL of the session's Valkey; shared, so keys carry a name of the test's own."""
    return infra.valkey


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of this test alone."""
    with asyncio.Runner() as runner:
        context = servers.fresh_database(postgres_url)
        url = runner.run(context.__aenter__())
        try:
            yield url
        finally:
            runner.run(context.__aexit__(None, None, None))
