"""A producer of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from inferbus_kit.produce import Producer


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[Producer]:
    made = Producer(kafka_bootstrap, client_id="test")
    await made.start()
    yield made
    await made.stop()
