"""The dynamic batcher of one version; pure.

In: requests with a bucket (equal shapes but for rows, equal datatypes). Out: batches, each with the
reason for its release, and the requests whose deadline passed while they waited.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

ReleasedBy = Literal["rows", "bytes", "deadline", "idle"]


class Waiting(Protocol):
    """What the batcher knows of a request. Times are seconds of one monotonic clock."""

    @property
    def rows(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def arrived_s(self) -> float: ...
    @property
    def deadline_s(self) -> float: ...


Item = TypeVar("Item", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_rows` and `max_bytes` of a batch; `max_wait_s` of its oldest request."""

    max_rows: int
    max_wait_s: float
    max_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Released(Generic[Item]):
    """A batch: requests in the order of their arrival, and what released it."""

    items: list[Item]
    rows: int
    released_by: ReleasedBy


class _Bucket(Generic[Item]):
    """Requests of one shape, oldest first, with their sums."""

    __slots__ = ("items", "n_bytes", "rows")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.rows = 0
        self.n_bytes = 0


class Batcher(Generic[Item]):
    """Gathers requests into batches.

    Invariants: a request leaves exactly once, in a batch or as expired; a batch holds requests of
    one bucket in the order in which they were added, at most `max_rows` rows and `max_bytes`
    bytes, or else a single request; among buckets that may be released the one whose oldest
    request waits longest goes first; with an idle engine nothing waits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buckets: dict[Hashable, _Bucket[Item]] = {}
        self.rows = 0
        self.n_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._buckets)

    @property
    def oldest_s(self) -> float | None:
        """Arrival of the request that waits longest; None where none waits."""
        return min((b.items[0].arrived_s for b in self._buckets.values()), default=None)

    @property
    def due_s(self) -> float | None:
        """When `take` will release something although the engine is busy; None where never."""
        oldest = self.oldest_s
        return None if oldest is None else oldest + self._limits.max_wait_s

    def add(self, bucket: Hashable, item: Item) -> None:
        """Queue a request."""
        queue = self._buckets.get(bucket)
        if queue is None:
            queue = self._buckets[bucket] = _Bucket()
        queue.items.append(item)
        queue.rows += item.rows
        queue.n_bytes += item.n_bytes
        self.rows += item.rows
        self.n_bytes += item.n_bytes

    def take(self, now_s: float, *, idle: bool) -> Released[Item] | None:
        """Return the next batch that should run now.

        Args:
            now_s: the present.
            idle: the engine has nothing to do, so waiting would win nothing.
        """
        best: tuple[float, Hashable, ReleasedBy] | None = None
        for key, queue in self._buckets.items():
            arrived_s = queue.items[0].arrived_s
            if best is not None and arrived_s >= best[0]:
                continue
            reason = self._reason(queue, now_s, idle=idle)
            if reason is not None:
                best = (arrived_s, key, reason)
        if best is None:
            return None
        _, key, reason = best
        items, rows = self._fill(self._buckets[key])
        if not self._buckets[key].items:
            del self._buckets[key]
        return Released(items, rows, reason)

    def _reason(self, queue: _Bucket[Item], now_s: float, *, idle: bool) -> ReleasedBy | None:
        limits = self._limits
        if queue.rows >= limits.max_rows:
            return "rows"
        if queue.n_bytes >= limits.max_bytes:
            return "bytes"
        head = queue.items[0]
        if now_s >= head.arrived_s + limits.max_wait_s or now_s >= head.deadline_s:
            return "deadline"
        return "idle" if idle else None

    def _fill(self, queue: _Bucket[Item]) -> tuple[list[Item], int]:
        limits = self._limits
        items: list[Item] = []
        rows = n_bytes = 0
        waiting = queue.items
        while waiting:
            item = waiting[0]
            if items and (
                rows + item.rows > limits.max_rows or n_bytes + item.n_bytes > limits.max_bytes
            ):
                break
            items.append(waiting.popleft())
            rows += item.rows
            n_bytes += item.n_bytes
        queue.rows -= rows
        queue.n_bytes -= n_bytes
        self.rows -= rows
        self.n_bytes -= n_bytes
        return items, rows

    def expire(self, now_s: float) -> list[Item]:
        """Remove and return the requests whose deadline has passed."""
        return self._remove(lambda item: item.deadline_s <= now_s)

    def drain(self) -> list[Item]:
        """Remove and return everything that waits."""
        return self._remove(lambda _: True)

    def _remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        gone: list[Item] = []
        for key, queue in list(self._buckets.items()):
            out = [item for item in queue.items if unwanted(item)]
            if not out:
                continue
            gone += out
            if len(out) == len(queue.items):
                del self._buckets[key]
            else:
                queue.items = deque(item for item in queue.items if not unwanted(item))
            rows, n_bytes = sum(i.rows for i in out), sum(i.n_bytes for i in out)
            queue.rows -= rows
            queue.n_bytes -= n_bytes
            self.rows -= rows
            self.n_bytes -= n_bytes
        return gone
