"""What stands around a worker process; what it does stands in tests/support."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.worker_side import Side


@pytest.fixture
async def side(kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[Side]:
    """A pool of this test alone."""
    around = Side(kafka_bootstrap, tmp_path)
    await around.start()
    try:
        yield around
    finally:
        await around.stop()
