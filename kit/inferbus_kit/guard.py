"""The guard in front of uvicorn's parser: header bytes, header count, header time.

uvicorn with httptools reads headers without any bound; this protocol refuses with 431 past
32 KiB or 100 headers and closes a connection whose headers are not complete within 10 s.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 32 << 10
MAX_HEADERS = 100
HEADER_TIMEOUT_S = 10.0


class GuardedProtocol(HttpToolsProtocol):
    """httptools' protocol with bounds on what stands before a body."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
