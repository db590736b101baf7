"""Loggers that start without their imports, once for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.support import forkserver


@pytest.fixture(scope="session")
def loggers() -> forkserver.ForkServer:
    """Processes of `inferbus_logger`."""
    return forkserver.server("inferbus_logger")
