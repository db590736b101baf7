"""A registry for the command to talk to."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.support import registry, servers
from tests.support.command import NOWHERE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.registry import RegistryProcess


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    with asyncio.Runner() as runner:
        context = servers.fresh_database(postgres_url)
        url = runner.run(context.__aenter__())
        registry.migrate_process(url)
        try:
            yield url
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def running(kafka_bootstrap: str, database: str) -> Iterator[RegistryProcess]:
    # Its provider of tokens is down: that is no reason not to start, nor to take keys.
    env = {
        "INFERBUS_OIDC_ISSUER": "https://idp.example",
        "INFERBUS_OIDC_AUDIENCE": "inferbus",
        "INFERBUS_OIDC_JWKS_URL": f"{NOWHERE}/keys",
    }
    with registry.registry_process(kafka_bootstrap, database, env=env) as process:
        yield process


@pytest.fixture
def model() -> str:
    return f"c-{secrets.token_hex(4)}"
