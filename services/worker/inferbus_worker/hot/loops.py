"""Loops that keep a worker working; one that dies or falls silent is seen.

In: coroutines and their beats. Out: tasks; a crash fails the process, silence makes it not live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from inferbus_kit.health import Health
from inferbus_kit.lifecycle import Fail, watched

_MAX_SILENCE_S = 30.0
"""Longer than any bounded wait for Kafka: its absence must not look like a dead loop."""


class Loops:
    """Starts tasks that nobody awaits.

    Invariants: a task that raises calls `fail` once; one that is cancelled or returns does not.
    """

    def __init__(self, health: Health, fail: Fail) -> None:
        self._health = health
        self._fail = fail

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background; if it raises, the process is told to end."""
        return watched(asyncio.create_task(work, name=name), self._fail)

    def beat(self, name: str) -> None:
        """Say that a loop went round; it is watched from its first beat on."""
        # Not `Health.beat`: of two lives of one inbox the earlier may end after the later began.
        self._health.watch(name, _MAX_SILENCE_S)

    def rest(self, name: str) -> None:
        """Expect no beat of a loop until its next one."""
        self._health.unwatch(name)
