"""Who is there: the fold of `fleet.heartbeats` into members, leases and load; pure.

In: the topic's records in order. Out: which workers and gateways live, who owns which inbox, and
how old each lease is. Time here is the topic's own: the sum of the gaps in append time between
consecutive records, each counted as min(max(gap, 0), 2 s), so that a broker that was away expires
nobody.

Compaction keeps the last record of each key. A reader that starts late therefore counts fewer
gaps than one that read all, and so takes nobody for gone who is not: it may only be slower to
notice, by up to 6 s of beats.
"""

from __future__ import annotations

from dataclasses import dataclass

from inferbus_schemas import messages as m

EXPIRY_MS = 6000
"""Age at which a lease, or a member, counts as gone."""
MAX_GAP_MS = 2000
"""A longer gap between two records means that the broker was away; it counts as this."""
_TIE_BITS = 20
_LIFE_BITS = 64


@dataclass(frozen=True, slots=True)
class InboxLease:
    """The last accepted beat on an inbox.

    `clock_ms` is the topic's time when it came, `claimed_ms` the append time of the first beat of
    this epoch that was read: for the owner itself, of its claim.
    """

    pool: str
    inbox: int
    instance: str
    life: int
    epoch: int
    state: int
    end_offset: int
    beat: m.Heartbeat
    clock_ms: int
    offset: int
    claimed_ms: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A gateway, or a worker that has no inbox."""

    key: str
    beat: m.Heartbeat
    clock_ms: int
    offset: int

    @property
    def life(self) -> int:
        """The life of the process that beats."""
        return self.beat.life

    @property
    def reader(self) -> str:
        """What names a gateway as the reader of its streams."""
        return reader(self.beat.instance, self.life)


def reader(instance: str, life: int) -> str:
    """Return what names a gateway as the reader of its streams; not the next one of its name."""
    return f"{instance}/{life:016x}"


def inbox_key(pool: str, inbox: int) -> str:
    """Return the record key of a worker that owns an inbox."""
    return f"{pool}/{inbox}"


def worker_key(instance: str) -> str:
    """Return the record key of a worker without an inbox."""
    return f"worker/{instance}"


def gateway_key(instance: str) -> str:
    """Return the record key of a gateway."""
    return f"gateway/{instance}"


def claim_epoch(fleet: Membership, pool: str, inbox: int, life: int) -> int:
    """Return the epoch with which a life that has read `fleet` claims an inbox.

    In the high bits max(highest seen + 1, topic offset read up to), so that none repeats after
    compaction; in the low ones bits of the life, so that two claims made from one view differ and
    the higher owns for every reader. (Were they equal, a reader from whom compaction hides the
    first would take the second for the owner, and ignore the true one's beats for ever.)
    """
    lease = fleet.lease(pool, inbox)
    highest = 0 if lease is None else lease.epoch >> _TIE_BITS
    return max(highest + 1, fleet.position) << _TIE_BITS | life >> (_LIFE_BITS - _TIE_BITS)


class Membership:
    """The fleet as the heartbeats tell it.

    Invariants: every reader that has applied the same records has the same leases; an inbox's
    epoch never falls; the first claim of the highest epoch owns, later claims of that epoch by
    another life and beats of a lower epoch are ignored; within an epoch a lease goes from active
    over draining to released and never back; `clock_ms` never falls. A reader of a compacted topic
    sees leases younger than they are, never older.
    """

    def __init__(self) -> None:
        self.clock_ms = 0
        self.position = 0
        """The offset after the last record."""
        self.n_compacted = 0
        """Offsets between the first record and the last at which there was none."""
        self._last_append_ms: int | None = None
        self._leases: dict[tuple[str, int], InboxLease] = {}
        self._members: dict[str, Member] = {}

    def apply(self, key: str, beat: m.Heartbeat | None, *, offset: int, append_ms: int) -> None:
        """Apply one record; None is a tombstone.

        Args:
            key: the record's key.
            beat: its value.
            offset: its offset; records must be passed in order.
            append_ms: its append time, milliseconds since 1970.
        """
        if self._last_append_ms is not None:
            self.clock_ms += min(max(append_ms - self._last_append_ms, 0), MAX_GAP_MS)
            self.n_compacted += max(offset - self.position, 0)
        self._last_append_ms = append_ms
        self.position = offset + 1
        if beat is None:
            self._members.pop(key, None)
        elif beat.WhichOneof("part") == "gateway":
            if key == gateway_key(beat.instance):
                self._members[key] = Member(key, beat, self.clock_ms, offset)
        elif beat.worker.HasField("inbox"):
            self._apply_inbox(key, beat, offset)
        elif key == worker_key(beat.instance):
            self._members[key] = Member(key, beat, self.clock_ms, offset)

    def _apply_inbox(self, key: str, beat: m.Heartbeat, offset: int) -> None:
        part = beat.worker
        if key != inbox_key(part.pool, part.inbox):
            return
        old = self._leases.get((part.pool, part.inbox))
        if old is not None:
            if part.epoch < old.epoch:
                return
            if part.epoch == old.epoch and (beat.life != old.life or beat.state < old.state):
                return
        claimed_ms = self._last_append_ms or 0
        if old is not None and old.epoch == part.epoch:
            claimed_ms = old.claimed_ms
        self._leases[part.pool, part.inbox] = InboxLease(
            pool=part.pool,
            inbox=part.inbox,
            instance=beat.instance,
            life=beat.life,
            epoch=part.epoch,
            state=beat.state,
            end_offset=part.end_offset,
            beat=beat,
            clock_ms=self.clock_ms,
            offset=offset,
            claimed_ms=claimed_ms,
        )

    def age_ms(self, seen: InboxLease | Member) -> int:
        """Return the age of a lease or a member in the topic's time."""
        return self.clock_ms - seen.clock_ms

    def expired(self, seen: InboxLease | Member) -> bool:
        """Tell whether a lease or a member has been silent for too long."""
        return self.age_ms(seen) >= EXPIRY_MS

    def lease(self, pool: str, inbox: int) -> InboxLease | None:
        """Return the last accepted lease of an inbox, live or not; None where never claimed."""
        return self._leases.get((pool, inbox))

    def member(self, key: str) -> Member | None:
        """Return the last beat under the key of a gateway or of a worker without an inbox."""
        return self._members.get(key)

    def leases(self, pool: str) -> list[InboxLease]:
        """Return the last accepted leases of a pool, live or not, by inbox."""
        return [lease for key, lease in sorted(self._leases.items()) if key[0] == pool]

    def every_lease(self) -> list[InboxLease]:
        """Return the last accepted leases of all pools, live or not."""
        return list(self._leases.values())

    def workers(self, pool: str) -> list[InboxLease]:
        """Return the leases of live, active workers: those that may be given work."""
        return [
            lease
            for lease in self.leases(pool)
            if lease.state == m.STATE_ACTIVE and not self.expired(lease)
        ]

    def holders(self, pool: str, model: str, version: int) -> list[InboxLease]:
        """Return the live, active workers whose last beat lists this version READY."""
        return [
            lease
            for lease in self.workers(pool)
            if any(
                resident.model == model
                and resident.version == version
                and resident.readiness == m.READINESS_READY
                for resident in lease.beat.worker.residents
            )
        ]

    def gateways(self) -> list[Member]:
        """Return the live gateways, draining ones included."""
        return [
            member
            for key, member in sorted(self._members.items())
            if key.startswith("gateway/") and not self.expired(member)
        ]

    def joining(self) -> list[Member]:
        """Return the live workers that have no inbox."""
        return [
            member
            for key, member in sorted(self._members.items())
            if key.startswith("worker/") and not self.expired(member)
        ]
