"""Turns on the event loop: long work of a job lets the requests of others go first.

In: how long a stretch of work took, and whether requests are open. Out: a pause between stretches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_TURN_S = 0.002

Busy = Callable[[], bool]
"""Tells whether requests wait for this process."""


class Turns:
    """The turns of one upload or download.

    Invariants: no stretch between two calls of `pause` that are close together grows much over two
    milliseconds; while requests are open, the pauses are as long as the work.
    """

    def __init__(self, busy: Busy) -> None:
        self._busy = busy
        self._since_s = time.monotonic()

    async def pause(self) -> None:
        """Let others go on, if this stretch has been long enough."""
        took_s = time.monotonic() - self._since_s
        if took_s < _TURN_S:
            return
        await asyncio.sleep(min(took_s, _TURN_S) if self._busy() else 0)
        self._since_s = time.monotonic()
