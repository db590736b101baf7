"""The fleet as this registry sees it: the fold of `fleet.heartbeats`, followed while Kafka is up.

In: the heartbeats topic. Out: `Membership`, or None while it is not known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog
from aiokafka.errors import KafkaError

from inferbus_kit.consume import Record, StateReader
from inferbus_kit.errors import BusUnavailableError
from inferbus_kit.lifecycle import Fail, cancel, watched
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership

_log = structlog.get_logger("fleet")

_RETRY_S = 2.0
_STALE_S = 15.0


class Fleet:
    """Follows the heartbeats.

    Invariants: `membership` is None until the topic was read to its end, and again when nothing
    could be read for a while: a decision needs the fleet as it is. An error that is not Kafka's
    ends the following and calls `on_failure`.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        client_id: str,
        on_failure: Fail | None = None,
        on_uses: Callable[[Iterable[m.KeyUse]], None] | None = None,
    ) -> None:
        self._on_uses = on_uses
        self._on_failure = on_failure
        self._bootstrap = bootstrap
        self._topic = topic
        self._client_id = client_id
        self._members = Membership()
        self._reader: StateReader | None = None
        self._started = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        work = asyncio.create_task(self._connect(), name="fleet")
        self._task = watched(work, self._on_failure)

    async def stop(self) -> None:
        await cancel(self._task)
        if self._reader is not None:
            await self._reader.stop()

    @property
    def membership(self) -> Membership | None:
        """The fleet, or None while it is not known."""
        if not self._started or self._reader is None:
            return None
        silent_s = time.monotonic() - self._reader.last_heard_monotonic_s
        return self._members if silent_s < _STALE_S else None

    async def _connect(self) -> None:
        """Start reading; Kafka may come up after us."""
        while not self._started:
            self._members = Membership()
            self._reader = StateReader(
                self._bootstrap,
                self._topic,
                self._apply,
                client_id=self._client_id,
                on_failure=self._on_failure,
            )
            try:
                await self._reader.start()
                self._started = True
            except (BusUnavailableError, KafkaError, TimeoutError) as error:
                _log.warning("fleet_unknown", error=repr(error))
                await self._reader.stop()
                await asyncio.sleep(_RETRY_S)

    def _apply(self, record: Record) -> None:
        key = (record.key or b"").decode("utf-8", "replace")
        beat = None if record.value is None else m.Heartbeat.FromString(record.value)
        self._members.apply(key, beat, offset=record.offset, append_ms=record.timestamp)
        if beat is not None and beat.gateway.key_uses and self._on_uses is not None:
            self._on_uses(beat.gateway.key_uses)
