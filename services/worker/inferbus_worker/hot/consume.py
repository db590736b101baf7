"""Frames in: one consumer on one inbox, and what every request of a frame goes through first.

In: records of the inbox. Out: requests to the executors of their versions, a record at once for
those that cannot run, dead letters for records that cannot be read, and committed offsets.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog
from aiokafka.errors import KafkaError
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from inferbus_kit.consume import PartitionReader, Record
from inferbus_kit.lifecycle import cancel
from inferbus_kit.metrics import WorkerMetrics
from inferbus_kit.offsets import ContiguousOffsets
from inferbus_schemas import envelope, topics
from inferbus_schemas import messages as m
from inferbus_worker.hot.emit import Emitter
from inferbus_worker.hot.execute import Executor
from inferbus_worker.hot.generate import Generator
from inferbus_worker.hot.letters import Letters
from inferbus_worker.hot.loops import Loops
from inferbus_worker.hot.work import MAX_FRAME_AGE_MS, Frame, Work
from inferbus_worker.hot.work import Inbox as FramesOf

_log = structlog.get_logger("inbox")

_COMMIT_EVERY_S = 0.2
_MAX_OPEN_REQUESTS = 20_000
_MAX_OPEN_BYTES = 128 << 20
_ID_BYTES = 16
_CANCELLED_REMEMBERED = 10_000
_FULL_S = 0.005
_RETRY_S = 0.5
_POSITION_TIMEOUT_S = 5.0


def group(pool: str) -> str:
    """Return the name under which workers of a pool commit; they never join it."""
    return f"worker.inbox.{pool}"


class UnreadableFrameError(ValueError):
    """A record that is no frame, or holds a request that nobody could be answered about."""


class Desk:
    """What all inboxes of a worker share: the executors, the emitter, the count of open work.

    Invariants: `n_open` is the number of requests that were accepted and have no record yet;
    each accepted request gets exactly one.
    """

    def __init__(
        self,
        emitter: Emitter,
        metrics: WorkerMetrics,
        skew_ms: Callable[[], float],
        ce_type: str,
    ) -> None:
        self.emitter = emitter
        emitter.on_written = self._written
        self._predictions = metrics.predictions
        self._counters: dict[tuple[str, int, int], Counter] = {}
        self.executors: dict[tuple[str, int], Executor | Generator] = {}
        self._cancelled: OrderedDict[bytes, None] = OrderedDict()
        self.skew_ms = skew_ms
        self.ce_type = ce_type
        self.n_open = 0
        self.open_rows = 0
        self.open_bytes = 0
        self.rows_done = 0
        self.last_s = float("-inf")
        """When a request came or got its record last, by the monotonic clock."""

    def take(
        self,
        record: Record,
        said: m.RequestFrame,
        inbox: FramesOf,
        now_s: float,
        now_ms: float,
        *,
        inherited: bool = False,
    ) -> set[Executor | Generator]:
        """Accept the requests of one record, which says `said`; return the executors to pump.

        `inherited`: another worker may have begun to answer them. It is lost, and of a stream two
        runs make no answer, so it is for the gateway to decide on those.
        """
        touched: set[Executor | Generator] = set()
        requests = said.requests
        self.last_s = now_s
        frame = Frame(inbox, record, len(requests))
        for request in requests:
            self._accept(request, frame, now_s, now_ms, touched, inherited=inherited)
        if not requests:
            inbox.frame_done(record.offset)
        return touched

    def decode(self, record: Record) -> m.RequestFrame:
        """Return the frame that a record holds.

        Raises:
            UnreadableFrameError: the record cannot be read.
        """
        try:
            envelope.check(record.headers, self.ce_type)
            frame = m.RequestFrame.FromString(record.value or b"")
        except (envelope.EnvelopeError, DecodeError) as error:
            raise UnreadableFrameError(str(error)) from error
        for request in frame.requests:
            if len(request.id) != _ID_BYTES or request.reply_partition < 0:
                raise UnreadableFrameError("a request has no id or no reply partition")
        return frame

    def _accept(
        self,
        request: m.Request,
        frame: Frame,
        now_s: float,
        now_ms: float,
        touched: set[Executor | Generator],
        *,
        inherited: bool,
    ) -> None:
        if self.emitter.has_ended(request.id):
            frame.member_done()
            return
        left_ms = frame.append_ms + request.ttl_ms - now_ms
        work = Work(request, frame, now_s, now_s + left_ms / 1000)
        self.n_open += 1
        self.open_bytes += len(request.tensors)
        executor = self.executors.get((request.model, request.version))
        if left_ms <= 0:
            self.emitter.expired(work, None if executor is None else executor.served)
        elif executor is None:
            self.emitter.attempt_failed(
                work, "version_not_held", "this worker does not hold the version"
            )
        elif request.id in self._cancelled:
            self.emitter.cancelled(work, executor.served)
        elif inherited and request.generation.stream:
            self.emitter.attempt_failed(
                work, "worker_lost", "the worker that had the stream is lost", executor.served
            )
        elif executor.add(work):
            self.open_rows += work.rows
            touched.add(executor)

    def cancel(self, request_id: bytes) -> None:
        """End a request for which nobody waits, also one that comes only now."""
        self._cancelled[request_id] = None
        if len(self._cancelled) > _CANCELLED_REMEMBERED:
            self._cancelled.popitem(last=False)
        for executor in self.executors.values():
            if isinstance(executor, Generator):
                executor.cancel(request_id)

    def _written(self, work: Work, outcome: int) -> None:
        """Note that a request has its record."""
        request = work.request
        key = (request.model, request.version, outcome)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._predictions.labels(
                request.model, str(request.version), m.outcome_name(outcome)
            )
        counter.inc()
        self.last_s = time.monotonic()
        self.n_open -= 1
        self.open_bytes -= len(work.request.tensors)
        if work.rows:
            self.open_rows -= work.rows
            self.rows_done += work.rows

    @property
    def full(self) -> bool:
        """Whether reading on would only fill memory."""
        return (
            self.n_open + self.emitter.n_unacknowledged > _MAX_OPEN_REQUESTS
            or self.open_bytes + self.emitter.unacknowledged_bytes > _MAX_OPEN_BYTES
        )


class _Frames:
    """The frames of one life of an inbox's log.

    Invariants: what was read from an earlier life counts in that one only: offsets come again.
    """

    __slots__ = ("offsets",)

    def __init__(self, start: int) -> None:
        self.offsets = ContiguousOffsets(start)

    def frame_done(self, offset: int) -> None:
        self.offsets.done(offset)


class Inbox:
    """One inbox that this worker reads.

    Invariants: the committed offset never passes a frame with a member that has no acknowledged
    record, nor a record that cannot be read and has no acknowledged dead letter; frames are read
    in order, one poll at a time; a record counts as read only when nothing can stop it halfway.
    """

    def __init__(
        self,
        bootstrap: str,
        pool: str,
        inbox: int,
        desk: Desk,
        letters: Letters,
        *,
        loops: Loops,
        client_id: str,
        claimed_ms: int = 0,
    ) -> None:
        topic = topics.topic(topics.REQUESTS, pool)
        self.inbox = inbox
        self._desk = desk
        self._letters = letters
        self._loops = loops
        self._read_name, self._commit_name = f"inbox:{inbox}", f"commit:{inbox}"
        self._reader = PartitionReader(
            bootstrap,
            topic.name,
            inbox,
            client_id=client_id,
            group=group(pool),
            start="committed",
        )
        self._frames = _Frames(0)
        self._read_task: asyncio.Task[None] | None = None
        self._commit_task: asyncio.Task[None] | None = None
        self._may_commit = True
        self._claimed_ms = claimed_ms
        self.position = -1
        self.committed = -1

    async def start(self) -> None:
        """Connect at the committed offset, else at the earliest, and read.

        Raises:
            BusUnavailableError: no broker answered in time.
        """
        self.position = self.committed = await self._reader.start()
        self._frames = _Frames(self.position)
        self._read_task = self._loops.start(self._read_name, self._read())
        self._commit_task = self._loops.start(self._commit_name, self._commit())

    @property
    def n_open(self) -> int:
        """Frames that were read and are not done."""
        return self._frames.offsets.n_open

    async def end_offset(self) -> int:
        """Return the end of the inbox now."""
        return (await self._reader.bounds())[1]

    async def stop_reading(self, *, commit: bool = True) -> int:
        """Read no more; what was read is finished and, with `commit`, still committed.

        Returns:
            The offset up to which, exclusive, frames were read; -1 where it never began.
        """
        self._may_commit = commit
        await cancel(self._read_task)
        self._read_task = None
        return self.position

    async def stop(self) -> None:
        """Read no more, commit what is done, disconnect."""
        await cancel(self._read_task)
        await cancel(self._commit_task)
        self._read_task = self._commit_task = None
        if self.position >= 0:
            await self.commit()
        await self._reader.stop()

    @property
    def committable(self) -> int:
        """The offset below which every frame is done."""
        # With nothing open the position counts: the last records may be gone from the log.
        offsets = self._frames.offsets
        return self.position if offsets.n_open == 0 else offsets.committable

    async def commit(self) -> None:
        """Commit the contiguous prefix of done frames."""
        offset = self.committable
        if self._may_commit and offset > self.committed and await self._reader.commit(offset):
            self.committed = offset

    async def _commit(self) -> None:
        try:
            while True:
                self._loops.beat(self._commit_name)
                await asyncio.sleep(_COMMIT_EVERY_S)
                await self.commit()
        finally:
            self._loops.rest(self._commit_name)

    async def _read(self) -> None:
        try:
            while True:
                self._loops.beat(self._read_name)
                await self._read_once()
        finally:
            self._loops.rest(self._read_name)

    async def _read_once(self) -> None:
        if self._desk.full:
            await asyncio.sleep(_FULL_S)
            return
        try:
            records = await self._reader.read(timeout_ms=500)
            if not records:
                async with asyncio.timeout(_POSITION_TIMEOUT_S):
                    self.position = max(self.position, await self._reader.position())
        except (KafkaError, TimeoutError) as error:
            _log.warning("read_failed", inbox=self.inbox, error=repr(error))
            await asyncio.sleep(_RETRY_S)
        else:
            await self._take(records)

    async def _take(self, records: list[Record]) -> None:
        now_s, now_ms = self._now()
        touched: set[Executor | Generator] = set()
        for record in records:
            if record.offset < self.position:
                self._begin_again(record.offset)
            if now_ms - record.timestamp > MAX_FRAME_AGE_MS:
                self._note_read(record.offset)
                self._frames.frame_done(record.offset)
                continue
            try:
                said = self._desk.decode(record)
            except UnreadableFrameError as error:
                # What was accepted before must not wait for the dead letter.
                _pump(touched, now_s)
                touched.clear()
                # Its partition stands still meanwhile, and no beat is due.
                self._loops.rest(self._read_name)
                await self._letters.bury(record, error)
                self._note_read(record.offset)
                self._frames.frame_done(record.offset)
                now_s, now_ms = self._now()
                continue
            self._note_read(record.offset)
            inherited = record.timestamp < self._claimed_ms
            touched |= self._desk.take(
                record, said, self._frames, now_s, now_ms, inherited=inherited
            )
        _pump(touched, now_s)

    def _now(self) -> tuple[float, float]:
        """Return the monotonic time in seconds and the broker's in milliseconds."""
        return time.monotonic(), time.time() * 1000 + self._desk.skew_ms()

    def _note_read(self, offset: int) -> None:
        self._frames.offsets.read(offset)
        self.position = offset + 1

    def _begin_again(self, offset: int) -> None:
        """Go on at an offset below the position: the log was cut or made anew."""
        _log.warning("offsets_went_back", inbox=self.inbox, expected=self.position, found=offset)
        self._frames = _Frames(offset)
        self.position = self.committed = offset


def _pump(touched: set[Executor | Generator], now_s: float) -> None:
    for executor in touched:
        executor.pump(now_s)
