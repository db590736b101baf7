"""Loggers that start without their imports, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.forkserver import ForkServer


@pytest.fixture(scope="package")
def loggers() -> Iterator[ForkServer]:
    """Processes of `inferbus_logger`."""
    with ForkServer("inferbus_logger") as one:
        yield one
