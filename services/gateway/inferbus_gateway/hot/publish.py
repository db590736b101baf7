"""From accepted requests to frames in inboxes.

In: entries to place. Out: one record per inbox and tick of the event loop, closed at 64 requests or
768 KiB. What Kafka never saw goes back; what it may have seen stays pending, and
is placed again where the broker never acknowledges it.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from inferbus_gateway import errors
from inferbus_gateway.hot.pending import Entry, Frame, Inbox, Pending
from inferbus_gateway.hot.placement import Placement
from inferbus_kit.errors import InferbusError
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, ids, topics
from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease

_log = structlog.get_logger("publish")

MAX_FRAME_REQUESTS = 64
MAX_FRAME_BYTES = 768 << 10
MAX_HOLD_S = 0.005
"""Kafka has one batch of an inbox in flight, so that waiting for it costs no time, up to here."""
_REQUEST_BYTES = 200
"""What a request takes beside what its entry counts, about."""


class _Draft:
    """A frame that is being filled for a lease's owner."""

    __slots__ = ("entries", "frame", "lease", "n_bytes")

    def __init__(self, lease: InboxLease) -> None:
        self.lease = lease
        self.frame = Frame()
        self.entries: list[Entry] = []
        self.n_bytes = 0


class Publisher:
    """Places requests and publishes their frames.

    Invariants: a request is in one frame per attempt; a frame leaves in the tick in which its
    first request was placed, or, while others to its inbox are on their way, when the last of them
    is acknowledged, when another has to be begun, or after `MAX_HOLD_S`; a request is refused here
    only if Kafka saw none of its attempts.
    """

    def __init__(
        self,
        instance: str,
        producer: Producer,
        pending: Pending,
        placement: Placement,
    ) -> None:
        self._instance = instance
        self._source = f"/inferbus/gateway/{instance}"
        self._producer = producer
        self._pending = pending
        self._placement = placement
        self._open: dict[Inbox, _Draft] = {}
        self._drafts: list[_Draft] = []
        self._away: dict[Inbox, int] = {}
        self._topics: dict[str, topics.Topic] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._n_frames = 0

    def place(self, entry: Entry) -> bool:
        """Choose a worker and put the request into this tick's frame; False: none is there."""
        request = entry.request
        lease = self._placement.choose(
            entry.pool,
            request.model,
            request.version,
            self._pending.rows,
            avoid=entry.failed_on,
        )
        if lease is None:
            return False
        inbox = (lease.pool, lease.inbox)
        draft = self._open.get(inbox)
        if (
            draft is None
            or draft.lease.epoch != lease.epoch
            or len(draft.entries) >= MAX_FRAME_REQUESTS
            or draft.n_bytes + entry.size_bytes > MAX_FRAME_BYTES
        ):
            if not self._drafts:
                asyncio.get_running_loop().call_soon(self._flush)
            if draft is not None and draft not in self._drafts:
                self._drafts.append(draft)
            draft = self._open[inbox] = _Draft(lease)
            self._drafts.append(draft)
        draft.entries.append(entry)
        draft.n_bytes += entry.size_bytes + _REQUEST_BYTES
        # The frame follows in this very tick; until then the placement already counts as load.
        self._pending.placed(entry, lease, draft.frame)
        return True

    def _flush(self) -> None:
        """Send the drafts of this tick; the last one to an inbox may have to wait."""
        drafts, self._drafts = self._drafts, []
        for draft in drafts:
            inbox = (draft.lease.pool, draft.lease.inbox)
            if self._open.get(inbox) is draft and inbox in self._away:
                asyncio.get_running_loop().call_later(MAX_HOLD_S, self._release, inbox, draft)
            else:
                self._close(inbox, draft)

    def _release(self, inbox: Inbox, draft: _Draft | None) -> None:
        """Send the draft that waits for an inbox, if it is still this one."""
        if draft is not None and self._open.get(inbox) is draft and draft not in self._drafts:
            self._close(inbox, draft)

    def _close(self, inbox: Inbox, draft: _Draft) -> None:
        if self._open.get(inbox) is draft:
            del self._open[inbox]
        # What ended or lost its worker meanwhile is not sent.
        entries = [
            entry
            for entry in draft.entries
            if entry.inbox is not None and entry.frame is draft.frame
        ]
        if entries:
            self._send(draft.lease, entries, draft.frame)

    def _send(self, lease: InboxLease, entries: list[Entry], frame: Frame) -> None:
        now_s = time.monotonic()
        for entry in entries:
            request = entry.request
            request.attempt = entry.attempt
            request.ttl_ms = max(1, int((entry.deadline_s - now_s) * 1000))
        value = m.RequestFrame(
            gateway=self._instance, requests=[entry.request for entry in entries]
        ).SerializeToString()
        self._n_frames += 1
        inbox = (lease.pool, lease.inbox)
        self._away[inbox] = self._away.get(inbox, 0) + 1
        task = asyncio.get_running_loop().create_task(
            self._deliver(lease, entries, frame, value, self._n_frames)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(
        self, lease: InboxLease, entries: list[Entry], frame: Frame, value: bytes, number: int
    ) -> None:
        try:
            await self._produce(lease, entries, frame, value, number)
        finally:
            self._arrived((lease.pool, lease.inbox))

    def _arrived(self, inbox: Inbox) -> None:
        """One frame less is on its way to an inbox; the next may go."""
        left = self._away[inbox] - 1
        if left:
            self._away[inbox] = left
        else:
            del self._away[inbox]
            self._release(inbox, self._open.get(inbox))

    async def _produce(
        self, lease: InboxLease, entries: list[Entry], frame: Frame, value: bytes, number: int
    ) -> None:
        topic = self._topics.get(lease.pool)
        if topic is None:
            topic = self._topics[lease.pool] = topics.topic(topics.REQUESTS, lease.pool)
        head = envelope.headers(
            topic.ce_type,
            self._source,
            f"{self._instance}/{number}",
            entries[0].request.traceparent,
        )
        try:
            delivery = await self._producer.send(topic.name, lease.inbox, value, headers=head)
        except (InferbusError, KafkaError) as error:
            if isinstance(error, MessageSizeTooLargeError) and len(entries) > 1:
                self._halve(lease, entries, frame)
            else:
                self._not_handed_over(entries, frame, error)
            return
        except Exception:  # noqa: BLE001 -- whatever it is, nobody waits for it until his deadline
            _log.exception("frame_failed", inbox=lease.inbox)
            self._unacknowledged(entries, frame)
            return
        try:
            meta = await delivery
        except (InferbusError, KafkaError) as error:
            _log.warning("frame_unacknowledged", inbox=lease.inbox, error=repr(error))
            self._unacknowledged(entries, frame)
            return
        frame.acked_s = time.monotonic()
        if meta.offset >= 0:
            frame.offset = meta.offset

    def _halve(self, lease: InboxLease, entries: list[Entry], frame: Frame) -> None:
        """Send what is too large together in two parts: only who is too large alone is refused."""
        left = [one for one in entries if one.inbox is not None and one.frame is frame]
        middle = (len(left) + 1) // 2
        for part in (left[:middle], left[middle:]):
            if part:
                again = Frame()
                for one in part:
                    one.frame = again
                self._send(lease, part, again)

    def _unacknowledged(self, entries: list[Entry], frame: Frame) -> None:
        """Place again what may never be written.

        It may still be: only a terminal record ends these requests now, and their ids make twice
        as good as once.
        """
        now_s = time.monotonic()
        for entry in entries:
            if entry.frame is frame:
                self._pending.unacknowledged(entry, now_s)

    def _not_handed_over(self, entries: list[Entry], frame: Frame, error: Exception) -> None:
        _log.warning("frame_not_handed_over", n_requests=len(entries), error=repr(error))
        now_s = time.monotonic()
        for entry in entries:
            if entry.frame is frame and self._pending.not_handed_over(entry, now_s):
                entry.waiter.refuse(entry, _refusal(error))

    def cancel(self, request_id: bytes, pool: str) -> None:
        """Tell the workers of its pool that nobody waits for a request any more."""
        task = asyncio.get_running_loop().create_task(self._cancel(request_id, pool))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, request_id: bytes, pool: str) -> None:
        topic = topics.topic(topics.CANCELLATIONS, pool)
        head = envelope.headers(topic.ce_type, self._source, f"{ids.text(request_id)}/cancel")
        value = m.Cancellation(id=request_id, reason="client_left").SerializeToString()
        try:
            await (await self._producer.send(topic.name, 0, value, key=request_id, headers=head))
        except (InferbusError, KafkaError) as error:
            # It costs the engine's time only: the request ends at its deadline at the latest.
            _log.warning("cancellation_not_written", error=repr(error))

    async def stop(self) -> None:
        """Send what waits, and wait for frames that are on their way, bounded."""
        for inbox, draft in list(self._open.items()):
            self._release(inbox, draft)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)


def _refusal(error: Exception) -> errors.InferbusError:
    """Return what a client is told of a frame that Kafka never saw."""
    if isinstance(error, errors.OverloadedError):
        return error
    if isinstance(error, MessageSizeTooLargeError):
        return errors.TooLargeError("the request is too large for the bus; send fewer rows")
    return errors.BusUnavailableError("the request could not be passed on; try again shortly")
