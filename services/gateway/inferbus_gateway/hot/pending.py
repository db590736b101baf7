"""Unanswered requests and every decision about them; pure.

In: requests, placements, acknowledgements, terminal records, leases, the time. Out: who is
answered, what is placed again, what is overdue. The async code around it only carries out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from inferbus_schemas import messages as m
from inferbus_schemas.membership import InboxLease
from inferbus_schemas.terminal import is_terminal

HOLD_S = 10.0
"""How long a request that was never handed over waits for a worker."""
UNKNOWN_AFTER_S = 1.0
"""After the deadline, how long a terminal record may still come before the answer is unknown."""
MAX_ATTEMPTS = 16
"""Attempts after which the gateway ends a request as FAILED itself."""
_BUCKET_S = 0.05

Inbox = tuple[str, int]
"""Pool and partition."""


class Frame:
    """A record of requests on its way; `offset` is None until the broker has acknowledged it."""

    __slots__ = ("acked_s", "offset")

    def __init__(self) -> None:
        self.offset: int | None = None
        self.acked_s = 0.0


class Entry:
    """One unanswered request.

    Invariants: `attempt` is 0 until the first hand-over and then names the newest attempt;
    `inbox` is None exactly while no attempt is open, and then, until it ends, so is `frame`;
    `deadline_s` is monotonic and never changes; `closing` stays once the gateway has decided to
    end it itself; `forwarded` stays once a part of its answer has left, and then it is never
    placed again: another run would be another answer.
    """

    __slots__ = (
        "attempt",
        "bucket",
        "closing",
        "deadline_s",
        "epoch",
        "failed_on",
        "forwarded",
        "frame",
        "id",
        "inbox",
        "n_rows",
        "not_before_s",
        "pool",
        "request",
        "size_bytes",
        "waiter",
    )

    def __init__(
        self,
        request: m.Request,
        pool: str,
        *,
        n_rows: int,
        deadline_s: float,
        waiter: Any,
    ) -> None:
        self.id: bytes = request.id
        self.request = request
        self.pool = pool
        self.n_rows = n_rows
        self.deadline_s = deadline_s
        self.waiter = waiter
        self.size_bytes = len(request.tensors) + len(request.client_request_id)
        if request.HasField("generation"):
            self.size_bytes += request.generation.ByteSize()
        self.attempt = 0
        self.inbox: Inbox | None = None
        self.epoch = 0
        self.frame: Frame | None = None
        self.failed_on: Inbox | None = None
        self.not_before_s = 0.0
        self.closing = False
        self.forwarded = False
        self.bucket = 0


@dataclass(slots=True)
class Due:
    """What time has done since the last tick.

    `no_worker`: never handed over, to be refused; out of the map. `overdue`: a
    DEADLINE_EXCEEDED record is to be written, once. `exhausted`: a FAILED record is to be
    written, once. `unknown`: no record came; to be answered as such; out of the map.
    """

    no_worker: list[Entry] = field(default_factory=list)
    overdue: list[Entry] = field(default_factory=list)
    exhausted: list[Entry] = field(default_factory=list)
    unknown: list[Entry] = field(default_factory=list)


class Pending:
    """The map of unanswered requests.

    Invariants: a request leaves the map once: by its first terminal record, by `not_handed_over`
    or `no_worker` before any hand-over, or by `unknown` after its deadline; after a hand-over it is
    never `no_worker`; an attempt that failed, was released or never acknowledged, or whose owner is
    gone, is placed again with the next number; rows per inbox equal the sum over open attempts
    there, `by_tenant` counts the entries of each tenant and what is held. `_waiting` holds exactly
    those that may be placed; each entry has one alarm, in a bucket not yet swept; a call costs what
    it changes, never a walk over the map.
    """

    def __init__(self, *, max_requests: int = 20_000, max_bytes: int = 256 << 20) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._entries: dict[bytes, Entry] = {}
        self._by_inbox: dict[Inbox, dict[bytes, Entry]] = {}
        self._wheel: dict[int, dict[bytes, Entry]] = {}
        self._swept = 0
        self._waiting: dict[bytes, Entry] = {}
        self._exhausted: list[Entry] = []
        self.n_attempts_failed = 0
        self.rows: dict[Inbox, int] = {}
        self.by_tenant: dict[str, int] = {}
        self.n_bytes = 0
        self._n_held = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def find(self, request_id: bytes) -> Entry | None:
        """Return a request that is unanswered."""
        return self._entries.get(request_id)

    @property
    def full(self) -> bool:
        """Whether a new request must be refused."""
        n_requests = len(self._entries) + self._n_held
        return n_requests >= self._max_requests or self.n_bytes >= self._max_bytes

    @property
    def n_waiting(self) -> int:
        """Requests that wait to be placed."""
        return len(self._waiting)

    def hold(self, tenant: str, size_bytes: int) -> None:
        """Count a request that waits elsewhere, for the answer of another one, until `let_go`."""
        self._n_held += 1
        self._count(tenant, size_bytes)

    def let_go(self, tenant: str, size_bytes: int) -> None:
        """Count it no longer."""
        self._n_held -= 1
        self._discount(tenant, size_bytes)

    def _count(self, tenant: str, size_bytes: int) -> None:
        self.by_tenant[tenant] = self.by_tenant.get(tenant, 0) + 1
        self.n_bytes += size_bytes

    def _discount(self, tenant: str, size_bytes: int) -> None:
        left = self.by_tenant[tenant] - 1
        if left:
            self.by_tenant[tenant] = left
        else:
            del self.by_tenant[tenant]
        self.n_bytes -= size_bytes

    def add(self, entry: Entry, now_s: float) -> None:
        """Take a request; it waits for a worker until `placed` is called."""
        self._entries[entry.id] = entry
        self._count(entry.request.tenant, entry.size_bytes)
        self._waiting[entry.id] = entry
        self._set_alarm(entry, min(entry.deadline_s, now_s + HOLD_S))

    def placed(self, entry: Entry, lease: InboxLease, frame: Frame) -> None:
        """Open the next attempt on the lease's owner; the hand-over follows at once."""
        entry.attempt += 1
        entry.frame = frame
        entry.epoch = lease.epoch
        entry.inbox = inbox = (lease.pool, lease.inbox)
        self._waiting.pop(entry.id, None)
        self._by_inbox.setdefault(inbox, {})[entry.id] = entry
        self.rows[inbox] = self.rows.get(inbox, 0) + entry.n_rows

    def not_handed_over(self, entry: Entry, now_s: float) -> bool:
        """Take back a placement whose frame Kafka never saw.

        Returns:
            True if the request leaves the map, since nothing of it was ever handed over.
        """
        if entry.id not in self._entries:
            return False
        entry.attempt -= 1
        self._close(entry, now_s + _BUCKET_S)
        # Where a record of ours already ends it, only a record does.
        if entry.attempt == 0 and not entry.closing:
            self._remove(entry)
            return True
        return False

    def ended(self, request_id: bytes, attempt: int, outcome: int, now_s: float) -> Entry | None:
        """Apply a record of the reply partition, in the order of offsets.

        Returns:
            The request that this record ends, out of the map; None where it ends none.
        """
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        if is_terminal(outcome):
            self._remove(entry)
            return entry
        if entry.attempt == attempt and entry.inbox is not None:
            entry.failed_on = entry.inbox
            self._attempt_failed(entry, now_s)
        return None

    def forwarding(self, entry: Entry) -> None:
        """Note that a part of its answer leaves; where no attempt is open any more, that is all."""
        entry.forwarded = True
        if entry.id in self._waiting and entry.attempt:
            del self._waiting[entry.id]
            self._exhausted.append(entry)

    def unacknowledged(self, entry: Entry, now_s: float) -> None:
        """Close an attempt whose frame may never have been written; its number is used up."""
        if entry.id in self._entries and entry.inbox is not None:
            self._attempt_failed(entry, now_s)

    def _attempt_failed(self, entry: Entry, now_s: float) -> None:
        self.n_attempts_failed += 1
        self._close(entry, now_s + min(1.0, 0.01 * 2**entry.attempt))

    def lease_seen(self, lease: InboxLease, *, expired: bool, now_s: float) -> list[Entry]:
        """Apply what a lease says now to the attempts that are open on its inbox.

        Returns:
            The requests whose attempts it closed; they wait to be placed again.
        """
        members = self._by_inbox.get((lease.pool, lease.inbox))
        if not members:
            return []
        if lease.state == m.STATE_RELEASED:
            lost = [
                one
                for one in members.values()
                if one.epoch < lease.epoch
                or one.frame is None
                or one.frame.offset is None
                or one.frame.offset >= lease.end_offset
            ]
        elif expired:
            lost = list(members.values())
        else:
            lost = [one for one in members.values() if one.epoch < lease.epoch]
        for one in lost:
            self._close(one, now_s)
        return lost

    def inboxes(self) -> list[Inbox]:
        """Return the inboxes that have open attempts."""
        return list(self._by_inbox)

    def to_place(self, now_s: float) -> list[Entry]:
        """Return the requests that wait for a worker and may be placed now."""
        return [one for one in self._waiting.values() if one.not_before_s <= now_s < one.deadline_s]

    def tick(self, now_s: float) -> Due:
        """Tell what is due; call it every 50 ms or so."""
        due = Due()
        last = int(now_s / _BUCKET_S)
        first, self._swept = self._swept + 1, max(self._swept, last - 1)
        if last - first < len(self._wheel):
            numbers = [number for number in range(first, last) if number in self._wheel]
        else:
            numbers = sorted(number for number in self._wheel if number < last)
        for number in numbers:
            for entry in self._wheel.pop(number).values():
                self._alarm(entry, now_s, due)
        for entry in self._exhausted:
            if entry.id in self._entries and not entry.closing:
                self._close_for_good(entry, entry.deadline_s)
                due.exhausted.append(entry)
        self._exhausted.clear()
        return due

    def _alarm(self, entry: Entry, now_s: float, due: Due) -> None:
        if entry.closing:
            self._remove(entry)
            due.unknown.append(entry)
        elif entry.attempt == 0:
            self._remove(entry)
            due.no_worker.append(entry)
        elif now_s < entry.deadline_s:
            # The alarm of its hold: most requests have ended by then and need no other.
            self._set_alarm(entry, entry.deadline_s)
        else:
            # From now, not from the deadline: a process that was stopped must first read on.
            self._close_for_good(entry, now_s)
            due.overdue.append(entry)

    def _close_for_good(self, entry: Entry, from_s: float) -> None:
        """The gateway ends the request itself; it stays until a terminal record is read."""
        entry.closing = True
        self._waiting.pop(entry.id, None)
        self._set_alarm(entry, from_s + UNKNOWN_AFTER_S)

    def _close(self, entry: Entry, not_before_s: float) -> None:
        self._leave_inbox(entry)
        entry.frame = None
        entry.not_before_s = not_before_s
        if entry.attempt >= MAX_ATTEMPTS or entry.forwarded:
            self._exhausted.append(entry)
        elif not entry.closing:
            self._waiting[entry.id] = entry

    def _leave_inbox(self, entry: Entry) -> None:
        inbox = entry.inbox
        if inbox is not None:
            members = self._by_inbox[inbox]
            del members[entry.id]
            self.rows[inbox] -= entry.n_rows
            if not members:
                del self._by_inbox[inbox]
                del self.rows[inbox]
            entry.inbox = None

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.id]
        self._discount(entry.request.tenant, entry.size_bytes)
        self._waiting.pop(entry.id, None)
        self._leave_inbox(entry)
        bucket = self._wheel.get(entry.bucket)
        if bucket is not None:
            bucket.pop(entry.id, None)

    def _set_alarm(self, entry: Entry, at_s: float) -> None:
        old = self._wheel.get(entry.bucket)
        if old is not None:
            old.pop(entry.id, None)
        # An alarm never rings early: the bucket is swept when the time is past its end.
        entry.bucket = max(int(at_s / _BUCKET_S), self._swept + 1)
        self._wheel.setdefault(entry.bucket, {})[entry.id] = entry
