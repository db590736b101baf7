"""Requests that programs write to their tenant's topic: taken in a group, placed, committed.

In: records of `inference.submissions.<tenant>`. Out: frames in inboxes, a record at once for what
cannot run, dead letters for what cannot be read, and offsets committed up to the lowest record with
a request that Kafka has not acknowledged. A record that is read twice makes the same ids, so twice
costs work and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from inferbus_gateway import errors
from inferbus_gateway.hot import submitted
from inferbus_gateway.hot.pending import Inbox
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.publish import MAX_FRAME_BYTES, MAX_FRAME_REQUESTS
from inferbus_gateway.hot.replies import Spawn, terminal
from inferbus_gateway.hot.route import Routes
from inferbus_gateway.hot.submitted import Submitted, UnreadableSubmissionError
from inferbus_kit.consume import Record
from inferbus_kit.dlq import DeadLetters
from inferbus_kit.errors import InferbusError
from inferbus_kit.health import Health
from inferbus_kit.lifecycle import Fail, cancel, watched
from inferbus_kit.offsets import ContiguousOffsets
from inferbus_kit.produce import Delivery, Producer
from inferbus_schemas import envelope, ids, topics
from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease

_log = structlog.get_logger("submissions")

GROUP = "gateway.submissions"
MAX_BACKLOG_ROWS = 1024
"""Rows that wait at a worker past which submissions wait too: who asks over HTTP goes first."""
_MAX_OPEN = 4096
"""Requests that are read and have no acknowledged record."""
_SILENCE_S = 60.0
_COMMIT_EVERY_S = 0.5
_POLL_MS, _CROWDED_POLL_MS = 200, 20
_RETRY_S = 0.5
_REVOKE_TIMEOUT_S = 2.0
_EXPIRED = "the deadline passed before a worker could take it"


class _Partition:
    """A partition of ours, from its first record to its revocation."""

    __slots__ = ("committed", "offsets", "revoked")

    def __init__(self, start: int) -> None:
        self.offsets = ContiguousOffsets(start)
        self.committed = -1
        self.revoked = False


class _Work:
    """One record; `waiting` is None until its requests are pinned, `n_open` counts all not done."""

    __slots__ = ("n_open", "part", "record", "said", "tenant", "waiting")

    def __init__(self, part: _Partition, record: Record, tenant: str) -> None:
        self.part = part
        self.record = record
        self.tenant = tenant
        self.said: m.Submission | None = None
        self.waiting: list[Submitted] | None = None
        self.n_open = 0

    def done(self, n: int = 1) -> None:
        """Note that `n` requests need nothing more of us."""
        self.n_open -= n
        if self.n_open == 0:
            self.part.offsets.done(self.record.offset)


class Submissions(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka carries no types
    """Takes submissions of some tenants.

    Invariants: the committed offset never passes a record with a request that has neither an
    acknowledged frame nor an acknowledged record; a record waits for a worker until it is ten
    minutes old; one that waits holds up none of other models; while too much is open nothing is
    read, and polling goes on, so that the group does not take this gateway for dead.
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
    ) -> None:
        self._fail = fail
        entry = topics.topic(topics.SUBMISSIONS)
        self._tenant_of = {entry.for_tenant(tenant).name: tenant for tenant in tenants}
        self._instance = instance
        self._source = f"/inferbus/gateway/{instance}"
        self._producer = producer
        self._placement = placement
        self._routes = routes
        self._health = health
        self._letters = DeadLetters(producer, instance)
        self._max_tensor_bytes = max_tensor_bytes
        self._predictions = topics.topic(topics.PREDICTIONS)
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._waiting: deque[_Work] = deque()
        self._placed: dict[Inbox, tuple[int, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[Any] | None = None
        self._n_reply_partitions = 0
        self._n_frames = 0
        self._paused = False
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            client_id=f"{instance}-submissions",
            group_id=GROUP,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=6_000,
            heartbeat_interval_ms=500,
            max_partition_fetch_bytes=2 << 20,
            fetch_max_bytes=16 << 20,
            request_timeout_ms=10_000,
            metadata_max_age_ms=30_000,
        )

    async def start(self, spawn: Spawn) -> None:
        """Join the group and take submissions in a task that `spawn` starts.

        Raises:
            BusUnavailableError: Kafka does not answer.
        """
        try:
            async with asyncio.timeout(30.0):
                self._n_reply_partitions = await self._producer.n_partitions(self._predictions.name)
                await self._consumer.start()
        except (TimeoutError, KafkaError) as error:
            raise errors.BusUnavailableError("Kafka does not answer; is it running?") from error
        self._consumer.subscribe(list(self._tenant_of), listener=self)
        self._task = spawn("submissions", self._run())

    async def stop(self) -> None:
        """Take no more, let what is on its way end, commit and leave the group, bounded."""
        await cancel(self._task)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_REVOKE_TIMEOUT_S)
        with contextlib.suppress(TimeoutError, KafkaError, asyncio.CancelledError):
            async with asyncio.timeout(3.0):
                await self._commit()
                await self._consumer.stop()

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Finish what is on its way, for a moment, commit, and forget the rest."""
        if revoked and self._tasks:
            await asyncio.wait(self._tasks, timeout=_REVOKE_TIMEOUT_S)
        await self._commit()
        for place in revoked:
            if (part := self._partitions.pop(place, None)) is not None:
                part.revoked = True

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin at what is committed."""
        self._paused = False
        _log.info("assigned", partitions=len(assigned))

    async def _run(self) -> None:
        """Take submissions until cancelled."""
        self._health.watch("submissions", _SILENCE_S)
        commit_at_s = 0.0
        while True:
            self._health.beat("submissions")
            try:
                waits = self._pump()
                await self._read(_CROWDED_POLL_MS if waits else _POLL_MS)
                if time.monotonic() >= commit_at_s:
                    commit_at_s = time.monotonic() + _COMMIT_EVERY_S
                    await self._commit()
            except KafkaError as error:
                _log.warning("submissions_read_failed", error=repr(error))
                await asyncio.sleep(_RETRY_S)

    async def _read(self, timeout_ms: int) -> None:
        n_open = sum(part.offsets.n_open for part in self._partitions.values())
        if (n_open >= _MAX_OPEN) != self._paused:
            self._paused = not self._paused
            places = list(self._consumer.assignment())
            (self._consumer.pause if self._paused else self._consumer.resume)(*places)
        found = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=256)
        for place, records in found.items():
            part = self._partitions.get(place)
            if part is None:
                part = self._partitions[place] = _Partition(records[0].offset)
            for record in records:
                part.offsets.read(record.offset)
                self._waiting.append(_Work(part, record, self._tenant_of[place.topic]))

    def _pump(self) -> bool:
        """Place what can be placed; tell whether something waits."""
        now_ms = time.time() * 1000
        drafts: dict[Inbox, _Draft] = {}
        for _ in range(len(self._waiting)):
            work = self._waiting.popleft()
            if not work.part.revoked and self._advance(work, drafts, now_ms):
                self._waiting.append(work)
        for draft in drafts.values():
            self._send(draft, now_ms)
        return bool(self._waiting)

    def _advance(self, work: _Work, drafts: dict[Inbox, _Draft], now_ms: float) -> bool:
        """Go on with a record; tell whether it has to wait."""
        too_old = now_ms - work.record.timestamp > submitted.MAX_AGE_MS
        if work.waiting is None:
            try:
                self._pin(work, now_ms)
            except UnreadableSubmissionError as error:
                work.n_open = 1
                self._spawn(self._bury(work, error))
                return False
            except errors.NoWorkerError:
                return True
        assert work.waiting is not None  # noqa: S101 -- it was pinned
        still = []
        for one in work.waiting:
            if one.error is not None:
                self._end(work, one, m.OUTCOME_INVALID_INPUT, one.error)
            elif too_old or one.left_ms(now_ms) <= 0:
                self._end(work, one, m.OUTCOME_EXPIRED, errors.ExpiredError(_EXPIRED))
            elif not self._place(work, one, drafts, now_ms):
                still.append(one)
        work.waiting = still
        return bool(still)

    def _pin(self, work: _Work, now_ms: float) -> None:
        if work.said is None or now_ms - work.record.timestamp > submitted.MAX_AGE_MS:
            work.said = submitted.read(work.record, now_ms)
        work.waiting = submitted.requests(
            work.said,
            work.record,
            work.tenant,
            self._routes,
            n_partitions=self._n_reply_partitions,
            max_tensor_bytes=self._max_tensor_bytes,
        )
        work.n_open = len(work.waiting)
        work.said = None

    def _place(
        self, work: _Work, one: Submitted, drafts: dict[Inbox, _Draft], now_ms: float
    ) -> bool:
        request = one.request
        lease = self._placement.choose(one.pool, request.model, request.version, {})
        if lease is None:
            return False
        inbox = (lease.pool, lease.inbox)
        # What was placed since the owner's last beat stands in no backlog yet.
        seen, rows = self._placed.get(inbox, (-1, 0))
        rows = rows if seen == lease.offset else 0
        if lease.beat.worker.backlog_rows + rows >= MAX_BACKLOG_ROWS:
            return False
        self._placed[inbox] = (lease.offset, rows + one.n_rows)
        draft = drafts.get(inbox)
        if draft is not None and not draft.takes(one):
            self._send(draft, now_ms)
            draft = None
        if draft is None:
            draft = drafts[inbox] = _Draft(lease)
        draft.add(work, one)
        return True

    def _send(self, draft: _Draft, now_ms: float) -> None:
        for _, one in draft.members:
            one.request.ttl_ms = max(1, one.left_ms(now_ms))
        value = m.RequestFrame(
            gateway=self._instance, requests=[one.request for _, one in draft.members]
        ).SerializeToString()
        topic = topics.topic(topics.REQUESTS, draft.lease.pool)
        self._n_frames += 1
        head = envelope.headers(
            topic.ce_type,
            self._source,
            f"{self._instance}/s{self._n_frames}",
            draft.members[0][1].request.traceparent,
        )
        self._spawn(
            self._until_written(
                lambda: self._producer.send(topic.name, draft.lease.inbox, value, headers=head),
                [work for work, _ in draft.members],
            )
        )

    def _end(self, work: _Work, one: Submitted, outcome: m.Outcome, error: InferbusError) -> None:
        """Write the record of a request that no worker gets."""
        said = terminal(one.request, 1, outcome, error.code, str(error), self._instance)
        ce_id = f"{ids.text(said.id)}/1/gateway"
        head = envelope.headers(self._predictions.ce_type, self._source, ce_id, said.traceparent)
        value, key = said.SerializeToString(), said.model.encode()
        partition = one.request.reply_partition
        self._spawn(
            self._until_written(
                lambda: self._producer.send(
                    self._predictions.name, partition, value, key=key, headers=head
                ),
                [work],
            )
        )

    async def _until_written(
        self, send: Callable[[], Awaitable[Delivery]], works: list[_Work]
    ) -> None:
        """Send until Kafka has it: the ids make twice as good as once."""
        while True:
            try:
                await (await send())
            except (InferbusError, KafkaError) as error:
                _log.warning("submission_not_passed_on", error=repr(error))
                await asyncio.sleep(_RETRY_S)
            else:
                break
        for work in works:
            work.done()

    async def _bury(self, work: _Work, error: UnreadableSubmissionError) -> None:
        while True:
            try:
                await self._letters.put(work.record, error)
            except (InferbusError, KafkaError) as refusal:
                _log.warning("dead_letter_failed", error=repr(refusal))
                await asyncio.sleep(_RETRY_S)
            else:
                break
        work.done()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = watched(asyncio.get_running_loop().create_task(work, name="submission"), self._fail)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _commit(self) -> None:
        """Commit what moved, by explicit offsets, for what is still ours."""
        ours = self._consumer.assignment()
        moved = {
            place: part.offsets.committable
            for place, part in self._partitions.items()
            if place in ours and part.offsets.committable != part.committed
        }
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


class _Draft:
    """A frame that is being filled for a lease's owner."""

    __slots__ = ("lease", "members", "n_bytes")

    def __init__(self, lease: InboxLease) -> None:
        self.lease = lease
        self.members: list[tuple[_Work, Submitted]] = []
        self.n_bytes = 0

    def takes(self, one: Submitted) -> bool:
        """Whether there is room."""
        fits = self.n_bytes + len(one.request.tensors) <= MAX_FRAME_BYTES
        return fits and len(self.members) < MAX_FRAME_REQUESTS

    def add(self, work: _Work, one: Submitted) -> None:
        self.members.append((work, one))
        self.n_bytes += len(one.request.tensors)
