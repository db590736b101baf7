"""Dead letters: records that nobody can work on, with what was wrong, at a bounded rate.

In: a record and an error. Out: a record on `<topic>.dlq`. Past the limit `put` waits: a
misconfiguration then stalls its partition in plain sight instead of dead-lettering everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from inferbus_kit.consume import Record
from inferbus_kit.produce import Producer
from inferbus_schemas import topics

_log = structlog.get_logger("dlq")

_MAX_RECORD_BYTES = 4 << 20
_MAX_KEY_BYTES = 4 << 10
_MAX_HEADERS_BYTES = 64 << 10
_HEADER_BYTES = 16
"""What a header counts beside its text; many may be empty."""
_MAX_LOG_BYTES = 8 << 10
_TOLD_EVERY_S = 60.0


class DeadLetters:
    """Writes dead letters, at most `per_minute` (a burst of as many is allowed).

    Invariants: `put` returns only when the letter is acknowledged, so the caller may then commit
    past the record. Those that wait for the limit go in their order and cost nothing meanwhile.
    """

    def __init__(self, producer: Producer, instance: str, *, per_minute: int = 600) -> None:
        self._producer = producer
        self._instance = instance
        self._rate_per_s = per_minute / 60
        self._burst = float(per_minute)
        self._tokens = float(per_minute)
        self._filled_s = time.monotonic()
        self._turn = asyncio.Lock()
        self._told_s = -_TOLD_EVERY_S
        self.n_written = 0

    async def put(
        self,
        record: Record,
        error: Exception,
        said: Sequence[str] = (),
        *,
        still: Callable[[], bool] = lambda: True,
    ) -> None:
        """Write `record` with its headers, where it came from and what was wrong.

        Args:
            record: what cannot be worked on.
            error: why.
            said: lines of a log that tell more; the last ones are kept.
            still: asked when the letter's turn has come; where it says no, nothing is written.
        """
        await self._take_token()
        if not still():
            self._tokens += 1
            return
        head = _kept(record.headers)
        head += [
            ("dlq_topic", record.topic.encode()),
            ("dlq_partition", str(record.partition).encode()),
            ("dlq_offset", str(record.offset).encode()),
            ("dlq_error", f"{type(error).__name__}: {error}"[:1000].encode()),
            ("dlq_by", self._instance.encode()),
        ]
        if said:
            head.append(("dlq_log", "\n".join(said).encode()[-_MAX_LOG_BYTES:]))
        value = record.value[:_MAX_RECORD_BYTES] if record.value is not None else None
        key = record.key[:_MAX_KEY_BYTES] if record.key is not None else None
        if value is None and key is None:
            value = b""  # aiokafka sends nothing without either
        delivery = await self._producer.send(
            topics.dead_letters(record.topic), 0, value, key=key, headers=head
        )
        await delivery
        self.n_written += 1
        _log.warning(
            "dead_letter",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error=str(error),
        )

    async def _take_token(self) -> None:
        async with self._turn:  # one sleeps, and the others wait for it
            while True:
                now = time.monotonic()
                grown = (now - self._filled_s) * self._rate_per_s
                self._tokens, self._filled_s = min(self._burst, self._tokens + grown), now
                if self._tokens >= 1:
                    self._tokens -= 1
                    return
                if now - self._told_s >= _TOLD_EVERY_S:
                    self._told_s = now
                    _log.error("dead_letter_limit", per_minute=round(self._rate_per_s * 60))
                await asyncio.sleep((1 - self._tokens) / self._rate_per_s)


def _kept(headers: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, bytes]]:
    """Return a record's own headers, as many as a letter has room for; no value is an empty one."""
    kept, n_bytes = [], 0
    for name, value in headers:
        n_bytes += _HEADER_BYTES + len(name) + len(value or b"")
        if n_bytes > _MAX_HEADERS_BYTES:
            break
        if not name.startswith("dlq_"):
            kept.append((name, value or b""))
    return kept
