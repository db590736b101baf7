"""Kafka as the fleet sees it, in virtual time: ordered logs, late, doubled, away, compacted.

In: records to append, with what shall happen when the broker answers. Out: logs with append times,
acknowledgements that may be lost.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[int | None], None]
"""Takes the offset, or None where it is not known whether the record was appended."""
_UNANSWERED_S = 5.0


@dataclass(slots=True)
class Log:
    """One partition. `gone` marks what compaction dropped."""

    records: list[tuple[float, str, Any]] = field(default_factory=list)
    gone: list[bool] = field(default_factory=list)

    @property
    def end(self) -> int:
        return len(self.records)

    def compact(self, before_s: float) -> None:
        """Drop what a later closed record of its key replaces."""
        later: set[str] = set()
        closed = next((i for i, one in enumerate(self.records) if one[0] >= before_s), self.end)
        for offset in range(closed - 1, -1, -1):
            key = self.records[offset][1]
            self.gone[offset] = self.gone[offset] or key in later
            later.add(key)


class Broker:
    """All logs, the clock and what is due.

    Invariants: writes of one producer to one log are appended in their order, late copies aside;
    nothing is appended or answered while the broker is away.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now_s = 1000.0
        self.away_until_s = 0.0
        self.loss = 0.0
        self.slowness = 1.0
        self.logs: defaultdict[str, Log] = defaultdict(Log)
        self.committed: defaultdict[int, int] = defaultdict(int)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._n = 0
        self._last_s: dict[tuple[str, str], float] = {}

    @property
    def up(self) -> bool:
        return self.now_s >= self.away_until_s

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Call `what` then."""
        self._n += 1
        heapq.heappush(self._due, (when_s, self._n, what))

    def run_until(self, when_s: float) -> None:
        """Let the time pass."""
        while self._due and self._due[0][0] <= when_s:
            due_s, _, what = heapq.heappop(self._due)
            self.now_s = max(self.now_s, due_s)
            what()
        self.now_s = when_s

    def delay_s(self) -> float:
        """Return how long something takes on the way."""
        return self.rng.choice((0.002, 0.005, 0.01, 0.03, 0.2)) * self.slowness

    def produce(self, who: str, log: str, key: str, value: Any, answer: Answer) -> None:
        """Append after a while; answer, or lose the record, the answer, or neither twice."""
        due_s = max(self.now_s + self.delay_s(), self._last_s.get((who, log), 0.0))
        self._last_s[who, log] = due_s
        self.at(due_s, lambda: self._append(log, key, value, answer))

    def slow(self, who: str, log: str, delay_s: float) -> None:
        """Let the next write of this producer to this log, and those behind it, hang."""
        at_s = self.now_s + delay_s
        self._last_s[who, log] = max(at_s, self._last_s.get((who, log), 0.0))

    def _append(self, log: str, key: str, value: Any, answer: Answer) -> None:
        if not self.up:
            # In the order of their coming, since the heap keeps it.
            self.at(self.away_until_s, lambda: self._append(log, key, value, answer))
            return
        luck = self.rng.random()
        if luck < self.loss:
            self.at(self.now_s + _UNANSWERED_S, lambda: answer(None))
            return
        offset = self._put(log, key, value)
        if luck < 2 * self.loss:
            self.at(self.now_s + _UNANSWERED_S, lambda: answer(None))
            return
        if luck > 1 - self.loss:
            self.at(self.now_s + self.rng.random() * 8, lambda: self._late_copy(log, key, value))
        self.at(self.now_s + self.delay_s(), lambda: answer(offset))

    def _late_copy(self, log: str, key: str, value: Any) -> None:
        if self.up:
            self._put(log, key, value)

    def _put(self, log: str, key: str, value: Any) -> int:
        target = self.logs[log]
        target.records.append((self.now_s, key, value))
        target.gone.append(False)
        return target.end - 1


class Tail:
    """A reader of one log."""

    def __init__(self, broker: Broker, log: str, start: int = 0) -> None:
        self._broker = broker
        self._log = broker.logs[log]
        self.position = start

    def read(self, limit: int = 10_000) -> list[tuple[int, float, str, Any]]:
        """Return offset, append time, key and value of what is new; sometimes not all of it."""
        if self.at_end or not self._broker.up:
            return []
        end = min(self._log.end, self.position + limit)
        if self._broker.rng.random() < 0.1:
            end = self._broker.rng.randint(self.position, end)
        out = [
            (offset, *self._log.records[offset])
            for offset in range(self.position, end)
            if not self._log.gone[offset]
        ]
        self.position = end
        return out

    @property
    def at_end(self) -> bool:
        return self.position >= self._log.end
