"""Requests that programs write to their tenant's topic: taken in a group, placed, committed.

In: records of `inference.submissions.<tenant>`. Out: frames in inboxes, a record at once for what
cannot run, dead letters for what cannot be read, and offsets committed up to the lowest record with
a request that Kafka has not acknowledged. A record that is read twice makes the same ids, so twice
costs work and nothing else. A tenant that is at its limits waits, and holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from inferbus_gateway import errors
from inferbus_gateway.hot import submitted
from inferbus_gateway.hot.pending import Inbox
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.replies import Spawn
from inferbus_gateway.hot.route import Routes
from inferbus_gateway.hot.submission_reads import SubmissionReads
from inferbus_gateway.hot.submission_work import (
    REQUEST_BYTES,
    Allowance,
    Draft,
    Key,
    Member,
    Partition,
    Work,
    committable,
    crowded,
)
from inferbus_gateway.hot.submission_writes import SubmissionWrites
from inferbus_gateway.hot.submitted import Place, Submitted, UnreadableSubmissionError
from inferbus_guard import batches
from inferbus_kit.consume import Record
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Health
from inferbus_kit.kafka import client_options, stop_client
from inferbus_kit.lifecycle import Fail, cancel
from inferbus_kit.produce import Producer
from inferbus_schemas import access, topics
from inferbus_schemas import messages as m
from inferbus_schemas.access import Principal
from inferbus_telemetry.spans import Tracing

_log = structlog.get_logger("submissions")

GROUP = "gateway.submissions"
MAX_BACKLOG_ROWS = 1024
"""Rows that wait at a worker past which submissions wait too: who asks over HTTP goes first."""
_PLACED_PER_PASS = 256
_ENDED_PER_S = 1000
"""Requests that end at the gateway, refused or late: nothing else slows who writes only such."""
_REFUSED = ("", "", 0)
"""Pool, model and version of those that wait for their refusal to be written."""
_LOOK_EVERY_S = 0.5
"""How often those are looked at that wait for a model to be served, or may have expired."""
_SILENCE_S = 60.0
_COMMIT_EVERY_S = 0.5
_POLL_MS, _CROWDED_POLL_MS = 200, 20
_RETRY_S = 0.5
_REVOKE_TIMEOUT_S = 2.0
_EXPIRED = "the deadline passed before a worker could take it"


class Submissions(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka carries no types
    """Takes submissions of some tenants.

    Invariants: the committed offset never passes a record with a request that has neither an
    acknowledged frame nor an acknowledged record; a request waits for a worker until its deadline;
    one that waits holds up none of other models; a pass over what waits costs what it places, not
    what waits; while too much is open, of a tenant or of all, nothing more of it is read, and
    polling goes on, so that the group does not take this gateway for dead; a request is placed only
    when `enter` lets its tenant in, and one that costs tokens only while its tenant `owes` too few
    (UTC, ms) to wait.
    """

    def __init__(
        self,
        bootstrap: str,
        instance: str,
        tenants: tuple[str, ...],
        *,
        producer: Producer,
        placement: Placement,
        routes: Routes,
        health: Health,
        fail: Fail,
        max_tensor_bytes: int,
        max_rows: int,
        enter: Callable[[Principal], None],
        owes: Callable[[str, float], bool],
        tracing: Tracing,
    ) -> None:
        self._tracing = tracing
        self._enter, self._owes = enter, owes
        self._callers = {tenant: access.principal(tenant, "submissions", ()) for tenant in tenants}
        entry = topics.topic(topics.SUBMISSIONS)
        self._tenants = {entry.for_tenant(tenant).name: tenant for tenant in tenants}
        self._producer = producer
        self._placement = placement
        self._routes = routes
        self._health = health
        self._writes = SubmissionWrites(instance, producer, fail)
        self._max_tensor_bytes, self._max_rows = max_tensor_bytes, max_rows
        self._places: dict[str, Place] = {}
        self._partitions: dict[TopicPartition, Partition] = {}
        self._queues: dict[Key, deque[Member]] = {}
        self._unpinned: list[Member] = []
        self._placed: dict[Inbox, tuple[int, int]] = {}
        self._task: asyncio.Task[Any] | None = None
        self._paused: set[TopicPartition] = set()
        self._n_revoked = 0
        self._endings = Allowance(_ENDED_PER_S)
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap),
            client_id=f"{instance}-submissions",
            group_id=GROUP,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",  # a program may take back what it wrote
            session_timeout_ms=6_000,
            heartbeat_interval_ms=500,
            max_partition_fetch_bytes=512 << 10,  # so much of each waits in the client, unread
            fetch_max_bytes=16 << 20,
            request_timeout_ms=10_000,
            metadata_max_age_ms=10_000,  # a topic that is made anew is found again
        )
        self._reads = SubmissionReads(self._consumer, self._position)

    async def start(self, spawn: Spawn) -> None:
        """Join the group and take submissions in a task that `spawn` starts.

        Raises:
            BusUnavailableError: Kafka does not answer.
        """
        try:
            async with asyncio.timeout(30.0):
                count = await self._producer.n_partitions(topics.topic(topics.PREDICTIONS).name)
                await self._consumer.start()
        except (TimeoutError, KafkaError) as error:
            raise errors.BusUnavailableError("Kafka does not answer; is it running?") from error
        self._places = {
            topic: Place(tenant, count, self._max_tensor_bytes, self._max_rows)
            for topic, tenant in self._tenants.items()
        }
        self._consumer.subscribe(list(self._places), listener=self)
        self._task = spawn("submissions", self._run())

    async def stop(self) -> None:
        """Take no more, let what is on its way end, commit and leave the group, bounded."""
        await cancel(self._task)
        await self._writes.settle(_REVOKE_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3.0):
                await self._commit()
        await stop_client(self._consumer)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Finish what is on its way, for a moment, commit, and forget the rest."""
        if revoked:
            await self._writes.settle(_REVOKE_TIMEOUT_S)
        await self._commit()
        self._n_revoked += 1
        for place in revoked:
            if (part := self._partitions.pop(place, None)) is not None:
                part.revoked = True

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin at what is committed."""
        self._paused.clear()
        _log.info("assigned", partitions=len(assigned))

    async def _run(self) -> None:
        self._health.watch("submissions", _SILENCE_S)
        commit_at_s = look_at_s = 0.0
        while True:
            self._health.beat("submissions")
            try:
                if time.monotonic() >= look_at_s:
                    look_at_s = time.monotonic() + _LOOK_EVERY_S
                    self._look()
                placed_all = self._pump()
                await self._read(_POLL_MS if placed_all else _CROWDED_POLL_MS)
            except KafkaError as error:
                _log.warning("submissions_read_failed", error=repr(error))
                await asyncio.sleep(_RETRY_S)
            if time.monotonic() >= commit_at_s:
                commit_at_s = time.monotonic() + _COMMIT_EVERY_S
                await self._commit()

    async def _read(self, timeout_ms: int) -> None:
        ours = self._consumer.assignment()
        wanted = ours - crowded(self._partitions, ours)
        self._pause(set() if wanted else ours)
        found = await self._reads.read(wanted or ours, timeout_ms)
        n_revoked = self._n_revoked
        for place, record in found:
            await self._take(place, record)
            if self._n_revoked != n_revoked:
                return  # Whoever has these partitions now reads the rest from what is committed.

    def _position(self, place: TopicPartition) -> int | None:
        part = self._partitions.get(place)
        return None if part is None else part.position

    @property
    def open_bytes(self) -> int:
        """Bytes of records that are read and not done."""
        return sum(part.open_bytes for part in self._partitions.values())

    def _pause(self, wanted: set[TopicPartition]) -> None:
        """Pause all where none may be read, so that polling goes on; else none.

        What the client has of a paused partition is thrown away, in a cycle that the collector
        finds late: those that are left unread beside others are not paused.
        """
        if wanted != self._paused:
            self._consumer.pause(*(wanted - self._paused))
            self._consumer.resume(*((self._paused - wanted) & self._consumer.assignment()))
            self._paused = set(wanted)

    def _begin(self, place: TopicPartition, record: Record) -> Work:
        """Note that a record is read and open."""
        part = self._partitions.get(place)
        if part is None or record.offset < part.position:
            if part is not None:
                _log.warning("offsets_went_back", expected=part.position, found=record.offset)
                part.revoked = True
            part = self._partitions[place] = Partition(record.offset)
        part.offsets.read(record.offset)
        part.position = record.offset + 1
        work = Work(part, record, self._places[place.topic])
        part.open_bytes += work.n_bytes
        return work

    async def _take(self, place: TopicPartition, record: Record) -> None:
        work = self._begin(place, record)
        if (why := batches.why_unreadable(record.headers)) is not None:
            record.headers = ()
            self._writes.letter(work, record, UnreadableSubmissionError(why))
            return
        now_ms = time.time() * 1000
        try:
            if submitted.is_json(record):
                said = await asyncio.to_thread(submitted.read, record, now_ms)
            else:
                said = submitted.read(record, now_ms)
        except UnreadableSubmissionError as error:
            self._writes.letter(work, record, error)
            return
        except Exception:  # noqa: BLE001 -- whatever a program writes, it ends no gateway
            _log.exception("submission_failed", partition=record.partition, offset=record.offset)
            self._writes.letter(work, record, UnreadableSubmissionError("it cannot be read"))
            return
        members = submitted.requests(said, record, work.place)
        work.trace(self._tracing, record.topic, members)
        work.n_open = len(members)
        work.hold(len(members) * REQUEST_BYTES)
        for one in members:
            self._pin(work, one)

    def _pin(self, work: Work, one: Submitted) -> None:
        try:
            pool = submitted.pin(one, self._routes, work.place)
        except errors.NoWorkerError:
            self._unpinned.append((work, one))
            return
        except InferbusError as error:
            error.__context__ = None
            one.refusal, one.said = error.with_traceback(None), None  # it would hold the request
            key = (work.place.tenant, *_REFUSED)
        else:
            key = (work.place.tenant, pool, one.request.model, one.request.version)
        self._queues.setdefault(key, deque()).append((work, one))

    def _look(self) -> None:
        """Pin what could not be pinned before, and end what has expired."""
        unpinned, self._unpinned = self._unpinned, []
        for work, one in self._live(unpinned):
            self._pin(work, one)
        for key, queue in list(self._queues.items()):
            left = self._live(queue)
            if left:
                self._queues[key] = deque(left)
            else:
                del self._queues[key]

    def _live(self, members: Iterable[Member]) -> list[Member]:
        """Return those that are still ours and in time; end those that are late."""
        now_ms, left = time.time() * 1000, []
        for work, one in members:
            if work.part.revoked:
                continue
            if one.left_ms(now_ms) > 0 or one.refusal is not None or not self._end(work, one):
                left.append((work, one))
        return left

    def _end(self, work: Work, one: Submitted) -> bool:
        """End what is refused or late; False where so many ended that it has to wait for it."""
        if not self._endings.take(time.monotonic()):
            return False
        if one.refusal is not None:
            self._writes.record(work, one, m.OUTCOME_INVALID_INPUT, one.refusal)
        else:
            self._writes.record(work, one, m.OUTCOME_EXPIRED, errors.ExpiredError(_EXPIRED))
        return True

    def _pump(self) -> bool:
        """Place what can be placed, in turns; tell whether nothing that could be is left.

        One of each queue at a time: what room there is, no tenant takes from another. A queue that
        had its turn stands behind the others, in the next pass too.
        """
        now_ms = time.time() * 1000
        drafts: dict[Inbox, Draft] = {}
        turns = deque(self._queues)
        for _ in range(_PLACED_PER_PASS):
            while turns and not self._place(turns[0], self._queues[turns[0]][0], drafts, now_ms):
                turns.popleft()
            if not turns:
                break
            key = turns.popleft()
            queue = self._queues.pop(key)
            queue.popleft()
            if queue:
                self._queues[key] = queue
                turns.append(key)
        for draft in drafts.values():
            self._writes.frame(draft, now_ms)
        return not self._queues

    def _place(self, key: Key, member: Member, drafts: dict[Inbox, Draft], now_ms: float) -> bool:
        work, one = member
        if work.part.revoked:
            return True
        if one.refusal is not None or one.left_ms(now_ms) <= 0:
            return self._end(work, one)
        tenant, pool, model, version = key
        lease = self._placement.choose(pool, model, version, {})
        if lease is None or (one.request.owes_tokens and self._owes(tenant, now_ms)):
            return False
        inbox = (lease.pool, lease.inbox)
        # What was placed since the owner's last beat stands in no backlog yet.
        seen, rows = self._placed.get(inbox, (-1, 0))
        rows = rows if seen == lease.offset else 0
        if lease.beat.worker.backlog_rows + rows >= MAX_BACKLOG_ROWS:
            return False
        try:
            self._enter(self._callers[tenant])
        except (errors.RateLimitedError, errors.TenantBusyError):
            return False
        self._placed[inbox] = (lease.offset, rows + one.n_rows)
        draft = drafts.get(inbox)
        if draft is not None and not draft.takes(one):
            self._writes.frame(draft, now_ms)
            draft = None
        if draft is None:
            draft = drafts[inbox] = Draft(lease)
        draft.add(work, one)
        return True

    async def _commit(self) -> None:
        """Commit what moved, by explicit offsets, for what is still ours."""
        moved = committable(self._partitions, self._consumer.assignment())
        if not moved:
            return
        try:
            async with asyncio.timeout(5.0):
                await self._consumer.commit(moved)
        except (TimeoutError, KafkaError) as error:
            # A rebalance, mostly; whoever reads them next makes the same ids.
            _log.warning("commit_failed", error=repr(error))
            return
        for place, offset in moved.items():
            if (part := self._partitions.get(place)) is not None:
                part.committed = offset
