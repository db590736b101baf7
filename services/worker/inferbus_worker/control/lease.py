"""Which inboxes this worker claims, reads, drains and gives up; pure.

In: the fold of the heartbeats, and what is known of the inboxes. Out: actions: beats to write, and
inboxes to open, to stop and to close.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from inferbus_schemas import messages as m
from inferbus_schemas.membership import (
    EXPIRY_MS,
    InboxLease,
    Membership,
    claim_epoch,
    inbox_key,
    worker_key,
)

_DRAIN_BEATS = 2
_DRAIN_MS = 1000
_ADOPT_TURN_MS = 2000
_FINISH_MS = 60_000
"""A lost inbox is given up after this, finished or not: its new owner has read it all again."""


@dataclass(frozen=True, slots=True)
class WriteBeat:
    """Write a beat now. `inbox` is None under the key of a worker without one."""

    key: str
    state: m.State
    inbox: int | None = None
    epoch: int = 0
    end_offset: int = 0


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Write a tombstone: nothing beats under this key any more."""

    key: str


@dataclass(frozen=True, slots=True)
class StartReading:
    """Open the inbox at its committed offset, else at the earliest, and read."""

    inbox: int


@dataclass(frozen=True, slots=True)
class ReadEnd:
    """Look up the end of the inbox from now on, and pass it to `Lease.end_found`."""

    inbox: int


@dataclass(frozen=True, slots=True)
class StopReading:
    """Read no more of the inbox, finish what was read; commit it, unless another owns it now."""

    inbox: int
    commit: bool


@dataclass(frozen=True, slots=True)
class Close:
    """Disconnect from the inbox: nothing of it is open."""

    inbox: int


Action = WriteBeat | Tombstone | StartReading | ReadEnd | StopReading | Close


@dataclass(frozen=True, slots=True)
class Reading:
    """How far an opened inbox is.

    Frames below `position` were read, `n_open` of them are not done; `committed` is what was last
    committed, or where reading began; `stopped`: reading has ended, `position` stays.
    """

    position: int
    committed: int
    n_open: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What the world outside the heartbeats says.

    `behind`: the inboxes whose committed offset (else their earliest) is below their end; None
    where no look-up of the last 5 s has succeeded. `readings`: by inbox, those that are open.
    """

    n_inboxes: int
    behind: frozenset[int] | None
    readings: Mapping[int, Reading]


class _Phase(Enum):
    CLAIMING = auto()
    OWNING = auto()
    DRAINING = auto()
    STOPPING = auto()
    RELEASING = auto()
    FINISHING = auto()
    GONE = auto()


@dataclass(slots=True)
class _Hold:
    """One inbox from its claim until nothing of it is left."""

    inbox: int
    epoch: int
    state: m.State
    n_compacted: int
    phase: _Phase = _Phase.CLAIMING
    end_offset: int = 0
    opened: bool = False
    n_drain_beats: int = 0
    drain_offset: int = -1
    drain_clock_ms: int = 0
    lost_clock_ms: int = 0
    end_asked: bool = False
    end: int | None = None


class Lease:
    """The inboxes of one life of a worker: one of its own, and at most one that it adopted.

    Invariants: it reads only what the heartbeats, read up to its own claim, say it owns; it stops
    as soon as they name a higher epoch; it releases only what it has finished and committed, with
    the offset up to which it has read; an adopted inbox is never shown active.

    How a driver feeds it. It must follow `fleet.heartbeats` into the `membership` given here.

    1. Call `step(facts)` after each batch of heartbeats and at least ten times a second, and begin
       the actions in their order. The first step announces the worker as joining, so load and
       warm before it. Each action is given once: retry what fails until its inbox is closed.
    2. Once a second write every beat that `beats()` gives, composed just before it is sent: the
       worker's own first, the adopted inbox's after it. A `WriteBeat` action is one of them that
       others wait for; it may be dropped when it fails, the next beat says the same. Written beats
       need no answer here: what counts is that they were read back. `Tombstone`: one try will do.
    3. While `wants_behind`, look up committed offsets and ends of all inboxes every second or two.
    4. `StartReading`: open the inbox; from then on `facts.readings` has it. `StopReading`: cancel
       the reading, also one that is still opening, then report `stopped`; keep finishing and, with
       `commit`, committing; without, commit nothing more. `ReadEnd`: ask Kafka for the end *after*
       getting the action, then call `end_found`. `Close`: disconnect and drop it from `readings`
       before the next step.
    5. To stop, call `drain()` and go on with 1 and 2 until `done`; give up after the time allowed:
       the lease then expires and another worker takes over.
    6. Ready is `active`; while `no_inbox_free`, say which command adds partitions.
    """

    def __init__(self, pool: str, instance: str, life: int, membership: Membership) -> None:
        self._pool = pool
        self._instance = instance
        self._life = life
        self._membership = membership
        self._joined_from: int | None = None
        self._main: _Hold | None = None
        self._adopted: _Hold | None = None
        self._draining = False
        self.done = False
        self.no_inbox_free = False

    @property
    def inbox(self) -> int | None:
        """The inbox that this worker owns as its own, or None."""
        main = self._main
        if main is None or main.phase in {_Phase.CLAIMING, _Phase.FINISHING}:
            return None
        return main.inbox

    @property
    def active(self) -> bool:
        """Whether this worker owns an inbox and takes new work."""
        return self._main is not None and self._main.phase is _Phase.OWNING

    @property
    def adopted(self) -> int | None:
        """The inbox that it drains for another worker, or None."""
        return None if self._adopted is None else self._adopted.inbox

    @property
    def wants_behind(self) -> bool:
        """Whether a step would use `facts.behind`."""
        if self._draining:
            return False
        return self._main is None or (self.active and self._adopted is None)

    def drain(self) -> None:
        """Give everything up; the next steps do it."""
        self._draining = True

    def end_found(self, inbox: int, end: int) -> None:
        """Note the end of an inbox, looked up after `ReadEnd` asked for it."""
        for hold in (self._main, self._adopted):
            if hold is not None and hold.inbox == inbox and hold.end_asked:
                hold.end = end

    def joining(self) -> WriteBeat:
        """Return the beat of a worker without an inbox; it may be written before the first step."""
        return WriteBeat(worker_key(self._instance), m.STATE_JOINING)

    def beats(self) -> list[WriteBeat]:
        """Return the beats to write once a second, as of now."""
        found = []
        if self._main is not None and self._main.phase is not _Phase.FINISHING:
            found.append(self._beat(self._main))
        elif not self.done:
            found.append(self.joining())
        if self._adopted is not None and self._adopted.phase is not _Phase.FINISHING:
            found.append(self._beat(self._adopted))
        return found

    def step(self, facts: Facts) -> list[Action]:
        """Return what to do now."""
        out: list[Action] = []
        if self.done:
            return out
        if self._main is None:
            self._step_without(facts, out)
        else:
            self._step_hold(self._main, facts, out)
            if self._main.phase is _Phase.GONE:
                self._main = None
        if self._adopted is not None:
            self._step_hold(self._adopted, facts, out)
            if self._adopted.phase is _Phase.GONE:
                self._adopted = None
        elif self.active and not self._draining:
            self._adopt(facts, out)
        return out

    def _step_without(self, facts: Facts, out: list[Action]) -> None:
        if self._draining:
            if self._adopted is None:
                self.done = True
                out.append(Tombstone(worker_key(self._instance)))
            return
        if self._joined_from is None:
            self._joined_from = self._membership.position
            out.append(self.joining())
            return
        if self._has_read_joining(self._joined_from) and facts.behind is not None:
            self._choose(facts, facts.behind, out)

    def _has_read_joining(self, joined_from: int) -> bool:
        member = self._membership.member(worker_key(self._instance))
        return member is not None and member.life == self._life and member.offset >= joined_from

    def _choose(self, facts: Facts, behind: frozenset[int], out: list[Action]) -> None:
        free = [inbox for inbox in range(facts.n_inboxes) if self._free(inbox)]
        self.no_inbox_free = not free
        if free:
            chosen = min(free, key=lambda one: (one not in behind, _weight(self._instance, one)))
            self._main = self._claim(chosen, m.STATE_ACTIVE, out)

    def _free(self, inbox: int) -> bool:
        lease = self._membership.lease(self._pool, inbox)
        if inbox == self.adopted:
            return False
        return lease is None or lease.state == m.STATE_RELEASED or self._membership.expired(lease)

    def _adopt(self, facts: Facts, out: list[Action]) -> None:
        """Claim an inbox that nobody drains; workers take turns, so that few claim at once."""
        for inbox in sorted(facts.behind or (), key=lambda one: _weight(self._instance, one)):
            if inbox < facts.n_inboxes and self._free(inbox) and self._my_turn(inbox):
                self._adopted = self._claim(inbox, m.STATE_DRAINING, out)
                return

    def _my_turn(self, inbox: int) -> bool:
        lease = self._membership.lease(self._pool, inbox)
        idle_ms = self._membership.clock_ms if lease is None else self._membership.age_ms(lease)
        live = [(worker.instance, worker.life) for worker in self._membership.workers(self._pool)]
        live.sort(key=lambda one: (_weight(one[0], inbox), one[1]))
        me = (self._instance, self._life)
        return me in live and idle_ms > EXPIRY_MS + _ADOPT_TURN_MS * live.index(me)

    def _claim(self, inbox: int, state: m.State, out: list[Action]) -> _Hold:
        epoch = claim_epoch(self._membership, self._pool, inbox, self._life)
        hold = _Hold(inbox, epoch, state, self._membership.n_compacted)
        out.append(self._beat(hold))
        return hold

    def _step_hold(self, hold: _Hold, facts: Facts, out: list[Action]) -> None:
        lease = self._membership.lease(self._pool, hold.inbox)
        reading = facts.readings.get(hold.inbox)
        if hold.phase is _Phase.FINISHING:
            late = self._membership.clock_ms - hold.lost_clock_ms >= _FINISH_MS
            if reading is None or (reading.stopped and (late or reading.n_open == 0)):
                self._leave(hold, out)
        elif self._lost(hold, lease):
            self._lose(hold, out)
        elif hold.phase is _Phase.CLAIMING:
            self._step_claiming(hold, lease, out)
        elif hold.phase is _Phase.OWNING:
            if self._draining:
                hold.phase, hold.state = _Phase.DRAINING, m.STATE_DRAINING
                out.append(self._beat(hold))
        elif hold.phase is _Phase.DRAINING:
            self._step_draining(hold, lease, reading, out)
        elif hold.phase is _Phase.STOPPING:
            self._step_stopping(hold, reading, out)
        elif self._ours(hold, lease, m.STATE_RELEASED):
            self._leave(hold, out)

    def _ours(self, hold: _Hold, lease: InboxLease | None, state: int | None = None) -> bool:
        """Tell whether our own claim was read back and owns, with this state if one is given."""
        return (
            lease is not None
            and lease.epoch == hold.epoch
            and lease.life == self._life
            and state in {None, lease.state}
        )

    def _lost(self, hold: _Hold, lease: InboxLease | None) -> bool:
        return lease is not None and (
            lease.epoch > hold.epoch or (lease.epoch == hold.epoch and lease.life != self._life)
        )

    def _lose(self, hold: _Hold, out: list[Action]) -> None:
        if not hold.opened or hold.phase is _Phase.RELEASING:
            self._leave(hold, out)
            return
        hold.phase, hold.lost_clock_ms = _Phase.FINISHING, self._membership.clock_ms
        out.append(StopReading(hold.inbox, commit=False))

    def _leave(self, hold: _Hold, out: list[Action]) -> None:
        hold.phase = _Phase.GONE
        if hold.opened:
            out.append(Close(hold.inbox))

    def _step_claiming(self, hold: _Hold, lease: InboxLease | None, out: list[Action]) -> None:
        if self._draining and hold is self._main:
            # The claim may stand already; nothing was read, so everything is for others.
            hold.phase, hold.state = _Phase.RELEASING, m.STATE_RELEASED
            out.append(self._beat(hold))
        elif self._ours(hold, lease):
            if self._membership.n_compacted != hold.n_compacted:
                # Another's earlier claim of this epoch may be among the records that are gone.
                hold.phase = _Phase.GONE
                return
            hold.opened = True
            out.append(StartReading(hold.inbox))
            if hold is self._main:
                hold.phase = _Phase.OWNING
                self._joined_from = None
                out.append(Tombstone(worker_key(self._instance)))
            else:
                hold.phase = _Phase.DRAINING

    def _step_draining(
        self, hold: _Hold, lease: InboxLease | None, reading: Reading | None, out: list[Action]
    ) -> None:
        if lease is not None and self._ours(hold, lease, m.STATE_DRAINING):
            if hold.n_drain_beats == 0:
                hold.drain_clock_ms = lease.clock_ms
            if lease.offset != hold.drain_offset:
                hold.drain_offset = lease.offset
                hold.n_drain_beats += 1
        seen_ms = self._membership.clock_ms - hold.drain_clock_ms
        if hold.n_drain_beats < _DRAIN_BEATS or seen_ms < _DRAIN_MS:
            return
        if not hold.end_asked:
            hold.end_asked = True
            out.append(ReadEnd(hold.inbox))
        elif hold.end is not None and reading is not None and reading.position >= hold.end:
            hold.phase = _Phase.STOPPING
            out.append(StopReading(hold.inbox, commit=True))

    def _step_stopping(self, hold: _Hold, reading: Reading | None, out: list[Action]) -> None:
        if reading is None or not reading.stopped or reading.n_open:
            return
        if reading.committed < reading.position:
            return
        hold.phase, hold.state = _Phase.RELEASING, m.STATE_RELEASED
        hold.end_offset = reading.position
        out.append(self._beat(hold))

    def _beat(self, hold: _Hold) -> WriteBeat:
        key = inbox_key(self._pool, hold.inbox)
        return WriteBeat(key, hold.state, hold.inbox, hold.epoch, hold.end_offset)


def _weight(instance: str, inbox: int) -> bytes:
    """Return where an inbox stands in this instance's order: rendezvous hashing."""
    return hashlib.sha256(f"{instance}\0{inbox}".encode()).digest()
