"""The state of each partition between Kafka and Postgres; no I/O, told the time.

In: records, decisions of the opener and results of writers. Out: work for writers, seeks for the
reader. A lane is one partition; the board is all lanes of this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from inferbus_kit.metrics import LoggerMetrics
from inferbus_logger import positions, rows
from inferbus_logger.plan import Buffer
from inferbus_logger.positions import Position, Stored
from inferbus_logger.sink import Planned, Written

_log = structlog.get_logger("lanes")

TRANSACTION_RECORDS: Final = 8_000
TRANSACTION_BYTES: Final = 16 << 20
ROOM_RECORDS: Final = 40_000
ROOM_BYTES: Final = 64 << 20
_FIRST_REST_S: Final = 0.1
_LAST_REST_S: Final = 3.0


class Lane:
    """One partition on its way into the log.

    Invariants: at most one writer holds it (`in_flight`); records enter only while it is open, in
    order and without a gap; a lane that is `stale` must be opened anew before it is written again;
    a `stopped` lane waits for an operator's rewind; one that waits for a topic of answers rests
    between tries, for longer each time, until it commits.
    """

    __slots__ = (
        "began", "buffer", "chain", "era", "expect_id", "in_flight", "n_rows", "n_waits",
        "next_offset", "partition", "rests_until_s", "seek_to", "stale", "stopped", "stored",
        "suspected",
    )  # fmt: skip

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.in_flight: Planned | None = None
        self.stale = True
        self.stopped = ""
        self.era = 0
        self.chain = b""
        self.next_offset = 0
        self.buffer: Buffer | None = None
        self.stored: Stored | None = None
        self.seek_to: int | None = None
        self.expect_id = b""
        self.suspected: tuple[int, int] | None = None
        self.began: tuple[int, int] = (0, 0)
        """Era and offset at which it was opened; `n_rows` were logged since."""
        self.n_rows = 0
        self.n_waits = 0
        """Tries since the last commit that Kafka did not take the answers of."""
        self.rests_until_s = 0.0

    @property
    def open(self) -> bool:
        """Whether it takes records and gives batches."""
        return self.buffer is not None and not self.stale and not self.stopped

    def close(self) -> None:
        """Forget what was read; it must be opened anew."""
        self.stale = True
        self.buffer = None
        self.seek_to = None

    def begin(self, stored: Stored, resume: positions.Resume) -> None:
        """Open at the stored position; the reader seeks before it reads on."""
        self.stored = stored
        self.era = stored.era
        self.chain = stored.chain
        self.next_offset = resume.offset
        self.began, self.n_rows = (stored.era, resume.offset), 0
        self.expect_id = resume.expect_id
        self.seek_to = resume.offset - 1 if resume.expect_id else resume.offset
        self.buffer = None
        self.stale = False

    def sought(self) -> int | None:
        """Return where the reader must seek, once; from then on records are taken."""
        offset, self.seek_to = self.seek_to, None
        if offset is not None and self.buffer is None:
            self.buffer = Buffer(self.partition, self.next_offset)
        return offset

    def stop(self, stop: positions.Stop, stored: Stored | None) -> None:
        """Stop until a rewind begins another era."""
        self.stored = stored
        self.stopped = stop.reason
        self.buffer = None
        _log.error("partition_stopped", partition=self.partition, reason=stop.reason)

    def offer(
        self,
        records: Sequence[rows.Record],
        now_s: float,
        *,
        traced: bool,
        answered: frozenset[str],
    ) -> None:
        """Take records in the order of their offsets."""
        for record in records:
            if not self._passes(record) or self.buffer is None:
                continue
            if record.offset > self.buffer.end and not self._confirmed(record.offset, now_s):
                return
            item = rows.read(record, self.era, traced=traced, answered=answered)
            self.buffer.offer(item, now_s)

    def _passes(self, record: rows.Record) -> bool:
        """Check the record before the first one that is wanted; tell whether this one is."""
        if self.buffer is None or self.stopped:
            return False
        if self.expect_id:
            expected, self.expect_id = self.expect_id, b""
            found = rows.read(record, self.era).id
            if record.offset != self.next_offset - 1 or found != expected:
                assert self.stored is not None  # noqa: S101 -- set where expect_id is
                self.stop(positions.another_record(self.stored), self.stored)
                return False
        return record.offset >= self.buffer.end

    def _confirmed(self, offset: int, now_s: float) -> bool:
        """Take a hole between records only when a second read shows it too."""
        assert self.buffer is not None  # noqa: S101 -- the caller looked
        found = (self.buffer.end, offset)
        if self.suspected != found:
            self.suspected = found
            self.seek_to = self.buffer.end
            return False
        _log.info("hole", partition=self.partition, start=found[0], end=offset)
        self.buffer.offer(rows.hole(*found), now_s)
        return True

    def take(self, now_s: float) -> Planned:
        """Return the next batch with the chain before it; it is in flight from now on."""
        assert self.buffer is not None  # noqa: S101 -- the board looked
        self.in_flight = Planned(self.buffer.take(self.era, now_s), self.chain)
        return self.in_flight

    def rest(self, now_s: float) -> None:
        """Wait before the next try."""
        self.n_waits += 1
        rest_s = _FIRST_REST_S * 2 ** min(self.n_waits - 1, 8)
        self.rests_until_s = now_s + min(rest_s, _LAST_REST_S)

    def due_s(self) -> float | None:
        """Return when it should be written; None where there is nothing to write now."""
        if not self.open or self.in_flight is not None or self.buffer is None:
            return None
        due_s = self.buffer.due_s()
        return None if due_s is None else max(due_s, self.rests_until_s)

    def committed(self, written: Written) -> None:
        """Note that a batch is in the log."""
        self.in_flight = None
        self.n_waits, self.rests_until_s = 0, 0.0
        self.chain = written.chain
        self.next_offset = written.batch.end
        self.n_rows += len(written.batch.rows)
        if self.buffer is not None:
            self.buffer.remember(written.batch)


class Board:
    """All lanes of this process.

    Invariants: `to_write` and `to_open` are set whenever there may be something to do; the sum of
    what waits is bounded by `crowded` and `held_back`, which the reader obeys.
    """

    def __init__(self, metrics: LoggerMetrics, clock: Callable[[], float]) -> None:
        self.lanes: dict[int, Lane] = {}
        self.to_write = asyncio.Event()
        self.to_open = asyncio.Event()
        self.settled = asyncio.Event()
        self._metrics = metrics
        self._clock = clock

    def assign(self, partitions: Iterable[int]) -> None:
        """Add lanes; they are opened before anything is read into them."""
        for partition in partitions:
            self.lanes.setdefault(partition, Lane(partition))
        self.to_open.set()

    def release(self, partitions: Iterable[int]) -> None:
        """Take lanes away; those in a transaction must have ended or do not matter any more."""
        for partition in partitions:
            self.lanes.pop(partition, None)

    def reopen(self, partitions: Iterable[int] | None = None) -> None:
        """Make lanes stale, all of them by default: their place is read from Postgres again."""
        for partition in list(self.lanes) if partitions is None else partitions:
            lane = self.lanes.get(partition)
            if lane is not None and not lane.stopped:
                lane.close()
        self.to_open.set()

    def to_be_opened(self) -> list[Lane]:
        """Return the lanes that are stale and in no transaction."""
        return [
            lane
            for lane in self.lanes.values()
            if lane.stale and lane.in_flight is None and not lane.stopped
        ]

    def positions(self) -> dict[int, Position | None]:
        """Return how far the log of each partition is; None before it was opened."""
        return {
            lane.partition: None if lane.stored is None else Position(lane.era, lane.next_offset)
            for lane in self.lanes.values()
        }

    def held_back(self) -> set[int]:
        """Return the partitions that wait for answers with a whole batch: no more is read there."""
        return {
            lane.partition
            for lane in self.lanes.values()
            if lane.n_waits and lane.buffer is not None and lane.buffer.full()
        }

    def crowded(self) -> bool:
        """Tell whether the reader should wait; not for lanes that are held back by themselves."""
        buffers = [
            lane.buffer
            for lane in self.lanes.values()
            if lane.buffer is not None and not lane.n_waits
        ]
        return (
            sum(len(buffer) for buffer in buffers) > ROOM_RECORDS
            or sum(buffer.n_bytes for buffer in buffers) > ROOM_BYTES
        )

    def work(self) -> tuple[list[Planned], float | None]:
        """Return batches for one transaction, or none and the time when there will be some.

        Once one lane is due all that waits goes along: at low load 16 partitions then cost one
        transaction and not 16. Lanes that wait for answers go by themselves, in one transaction at
        a time, so that no others wait with them; and first, once they have rested, or they would
        wait for as long as others have whole batches.
        """
        now_s = self._clock()
        waited_for = any(lane.n_waits and lane.in_flight for lane in self.lanes.values())
        waiting = [
            (due, lane)
            for lane in self.lanes.values()
            if (due := lane.due_s()) is not None and not (lane.n_waits and waited_for)
        ]
        if not waiting:
            return [], None
        waiting.sort(key=lambda one: (not (one[1].n_waits and one[0] <= now_s), one[0]))
        if waiting[0][0] > now_s:
            return [], waiting[0][0]
        taken: list[Planned] = []
        n_records = n_bytes = 0
        apart = waiting[0][1].n_waits > 0
        for due_s, lane in waiting:
            if (lane.n_waits > 0) is not apart or (apart and due_s > now_s):
                continue
            before = lane.buffer.n_bytes if lane.buffer else 0
            planned = lane.take(now_s)
            taken.append(planned)
            n_records += planned.batch.end - planned.batch.base
            n_bytes += before - (lane.buffer.n_bytes if lane.buffer else 0)
            if n_records >= TRANSACTION_RECORDS or n_bytes >= TRANSACTION_BYTES:
                break
        return taken, None

    def committed(self, planned: Sequence[Planned], written: Sequence[Written]) -> None:
        """Note a transaction that took hold."""
        for plan, each in zip(planned, written, strict=True):
            batch = each.batch
            self._metrics.rows.inc(len(batch.rows))
            self._metrics.duplicates.inc(batch.n_dups)
            self._metrics.non_terminal.inc(batch.n_nonterminal)
            self._metrics.quarantined.inc(batch.n_quarantined)
            # Revoked and assigned again meanwhile, it is another lane.
            if (lane := self.lanes.get(batch.partition)) and lane.in_flight is plan:
                lane.committed(each)
        self._settled()

    def abandoned(self, planned: Iterable[Planned]) -> None:
        """Note a transaction whose end is no or not known; its lanes are opened anew."""
        for each in planned:
            lane = self.lanes.get(each.batch.partition)
            if lane is not None and lane.in_flight is each:
                lane.in_flight = None
                self.reopen([lane.partition])
        self._settled()

    def set_apart(self, planned: Sequence[Planned]) -> None:
        """Note batches that wait for a topic of answers, though all else is well."""
        now_s = self._clock()
        for each in planned:
            lane = self.lanes.get(each.batch.partition)
            if lane is not None and lane.in_flight is each:
                lane.rest(now_s)
        self.abandoned(planned)

    def _settled(self) -> None:
        self.to_write.set()
        if any(lane.stale for lane in self.lanes.values()):
            self.to_open.set()
        self.settled.set()

    async def settle(self, partitions: Iterable[int], timeout_s: float) -> bool:
        """Wait until these lanes are in no transaction; tell whether that came in time."""
        waiting = set(partitions)
        try:
            async with asyncio.timeout(timeout_s):
                while any(
                    lane.in_flight is not None
                    for lane in self.lanes.values()
                    if lane.partition in waiting
                ):
                    self.settled.clear()
                    await self.settled.wait()
        except TimeoutError:
            return False
        return True

    def stopped(self) -> list[Lane]:
        """Return the lanes that wait for an operator."""
        return [lane for lane in self.lanes.values() if lane.stopped]

    def revive(self, eras: dict[int, int]) -> None:
        """Open the stopped lanes that were rewound: their era is another one now."""
        for lane in self.stopped():
            if lane.stored is not None and eras.get(lane.partition) != lane.stored.era:
                lane.stopped = ""
                lane.close()
