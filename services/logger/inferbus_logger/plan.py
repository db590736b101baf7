"""Which records of one partition share a batch; pure, told the time.

In: items in the order of their offsets. Out: batches over gap-free ranges of offsets, each closed
at 2,000 records, 8 MiB or the linger, and within a batch only the first terminal record of an id.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

import msgspec

from inferbus_logger.rows import Item

MAX_RECORDS: Final = 2_000
MAX_BYTES: Final = 8 << 20
LINGER_S: Final = 0.1
"""With the consumer's own wait for more records this makes 200 ms."""
REMEMBERED_IDS: Final = 50_000


class Batch(msgspec.Struct, frozen=True):
    """What one gap-free range of a partition's offsets brings.

    Invariants: len(rows) + n_dups + n_nonterminal + n_quarantined = end - base, except for the
    kinds `gap` and `control`, which count nothing; rows are in the order of their offsets, ids are
    distinct; `last_id` names the record at end - 1 and is empty where there is none.
    """

    partition: int
    era: int
    base: int
    end: int
    kind: Literal["data", "control", "gap"] = "data"
    rows: tuple[Item, ...] = ()
    quarantine: tuple[Item, ...] = ()
    n_dups: int = 0
    n_nonterminal: int = 0
    n_quarantined: int = 0
    last_id: bytes = b""


class Buffer:
    """Records of one partition that were read and are not in the log.

    Invariants: `end` is the only offset that `offer` accepts next; batches leave in order and cover
    every offset from the start on, once; an id of a committed batch is remembered for a while, so
    that its redelivery does not cost the slow path.
    """

    __slots__ = ("_first_s", "_items", "_known", "_order", "end", "n_bytes", "partition", "start")

    def __init__(self, partition: int, start: int) -> None:
        self.partition = partition
        self.start = start
        self.end = start
        self.n_bytes = 0
        self._items: deque[Item] = deque()
        self._first_s = 0.0
        self._known: set[bytes] = set()
        self._order: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: Item, now_s: float) -> None:
        """Take the next item.

        Raises:
            ValueError: it does not begin at `end`.
        """
        if item.offset != self.end:
            raise ValueError("an offset is missing or repeated")
        if not self._items:
            self._first_s = now_s
        self._items.append(item)
        self.n_bytes += item.size_bytes
        self.end = item.end

    def full(self) -> bool:
        """Tell whether a batch is closed by its size."""
        return len(self._items) >= MAX_RECORDS or self.n_bytes >= MAX_BYTES

    def due_s(self) -> float | None:
        """Return when the batch that is open now closes; None where nothing waits."""
        if not self._items:
            return None
        return 0.0 if self.full() else self._first_s + LINGER_S

    def take(self, era: int, now_s: float) -> Batch:
        """Return the next batch; something must be waiting."""
        base = self._items[0].offset
        if self._items[0].kind == "hole":
            end = self._items.popleft().end
            return Batch(self.partition, era, base, end, kind="control")
        rows: list[Item] = []
        quarantine: list[Item] = []
        seen: set[bytes] = set()
        n_dups = n_nonterminal = n_quarantined = n_bytes = n_taken = 0
        while self._items and n_taken < MAX_RECORDS and n_bytes < MAX_BYTES:
            item = self._items[0]
            if item.kind == "hole":
                break
            self._items.popleft()
            n_taken += 1
            n_bytes += item.size_bytes
            last = item
            if item.kind == "attempt":
                n_nonterminal += 1
            elif item.kind == "unreadable":
                n_quarantined += 1
                quarantine.append(item)
            elif item.id in seen or item.id in self._known:
                n_dups += 1
            else:
                seen.add(item.id)
                rows.append(item)
        self.n_bytes -= n_bytes
        self._first_s = now_s
        return Batch(
            self.partition,
            era,
            base,
            last.end,
            rows=tuple(rows),
            quarantine=tuple(quarantine),
            n_dups=n_dups,
            n_nonterminal=n_nonterminal,
            n_quarantined=n_quarantined,
            last_id=last.id,
        )

    def remember(self, batch: Batch) -> None:
        """Note that the batch is committed, so that its ids have rows."""
        for item in batch.rows:
            self._known.add(item.id)
            self._order.append(item.id)
        while len(self._order) > REMEMBERED_IDS:
            self._known.discard(self._order.popleft())
