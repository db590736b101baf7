"""The worker's inboxes: joins, claims, reads, loses, drains, releases, adopts; pure.

In: the fleet, acknowledgements of the beats it asked for, bounds and positions of inboxes, the
time. Out: actions for the code around it, which only carries them out and tells how they ended.

    lease = Lease(pool="default", instance="worker-1", life=life, n_inboxes=16)
    lease.loaded()                       # the first loads are over
    for action in lease.step(now_s, fleet):   # every 100 ms, and after each record of heartbeats
        match action:
            case WriteBeat():      # fill in load and residents, write; then written/not_written
            case WriteTombstone(): # write a null under the key; then written/not_written
            case AskBounds():      # fetch them; then bounds(...), or bounds({}) where it failed
            case StartReading():   # read the inbox from its committed offset; feed position(...)
            case AskEnd():         # fetch the log's end of the inbox; then end(...)
            case StopReading():    # read no more; when all that was read is done: finished(...)
    lease.drain()                        # on SIGTERM; go on stepping until lease.phase is Phase.OUT
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from inferbus_schemas import messages as m
from inferbus_schemas.membership import (
    EXPIRY_MS,
    Membership,
    claim_epoch,
    inbox_key,
    worker_key,
)

BEAT_EVERY_S = 1.0
DRAINING_BEATS = 2
"""Acknowledged beats that say `draining` before the end of the inbox is looked up."""
_ASK_EVERY_S = 2.0
_ANSWER_WITHIN_S = 10.0
_TURN_MS = 2000
"""How much longer each next worker in line waits before it adopts an inbox."""


@dataclass(frozen=True, slots=True)
class WriteBeat:
    """Write a beat under `key`; answer with `written` or `not_written`, passing this object.

    `inbox`, `epoch` and `end_offset` are None or 0 where the beat must leave them unset.
    """

    key: str
    state: m.Heartbeat.State
    inbox: int | None = None
    epoch: int = 0
    end_offset: int = 0


@dataclass(frozen=True, slots=True)
class WriteTombstone:
    """Write a null value under `key`; answer with `written` or `not_written`."""

    key: str


@dataclass(frozen=True, slots=True)
class AskBounds:
    """Fetch committed offset and log end of these inboxes; answer with `bounds`."""

    inboxes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartReading:
    """Read this inbox from its committed offset, else from its earliest."""

    inbox: int
    epoch: int


@dataclass(frozen=True, slots=True)
class AskEnd:
    """Fetch the end offset of this inbox's log; answer with `end`."""

    inbox: int


@dataclass(frozen=True, slots=True)
class StopReading:
    """Read this inbox no more, finish what was read, then answer with `finished`.

    `commit`: commit before answering. False: another worker owns it; commit nothing any more.
    """

    inbox: int
    commit: bool


Action = WriteBeat | WriteTombstone | AskBounds | StartReading | AskEnd | StopReading


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where an inbox stands. `committed` is the log's start where nothing was ever committed."""

    committed: int
    end: int

    @property
    def behind(self) -> bool:
        """Whether frames wait there."""
        return self.committed < self.end


class Phase(Enum):
    """Where the worker is with its own inbox."""

    LOADING = "loading"
    JOINING = "joining"
    NO_INBOX = "no_inbox"
    CLAIMING = "claiming"
    SERVING = "serving"
    LOST = "lost"
    DRAINING = "draining"
    OUT = "out"


class _Stage(Enum):
    CLAIMING = 1
    READING = 2
    STOPPING = 3
    RELEASING = 4
    LOST = 5
    ENDED = 6


class _Voice:
    """Beats under one key.

    Invariants: at most one write is in the air; the next beat waits until the last acknowledged
    one was read back, so a process that cannot read who owns what falls silent and expires.
    """

    __slots__ = ("acked_offset", "in_air", "next_s")

    def __init__(self) -> None:
        self.in_air: WriteBeat | WriteTombstone | None = None
        self.next_s = 0.0
        self.acked_offset = -1

    def due(self, now_s: float, fleet: Membership) -> bool:
        return self.in_air is None and now_s >= self.next_s and fleet.position > self.acked_offset

    def say(self, write: WriteBeat | WriteTombstone, now_s: float) -> WriteBeat | WriteTombstone:
        self.in_air = write
        self.next_s = now_s + BEAT_EVERY_S
        return write


class _Tenancy:
    """One inbox, from its claim to its end.

    Invariants: it is read only after the claim was read back as the owner's; once a higher claim
    was seen nothing is committed or released; `end_offset` is fixed before `released` is written.
    """

    __slots__ = (
        "_asked_end_s",
        "_end",
        "_life",
        "_n_draining",
        "_pool",
        "claim_offset",
        "draining",
        "end_offset",
        "epoch",
        "inbox",
        "position",
        "stage",
        "voice",
    )

    def __init__(self, pool: str, life: int, inbox: int, epoch: int, *, draining: bool) -> None:
        self._pool = pool
        self._life = life
        self.inbox = inbox
        self.epoch = epoch
        self.draining = draining
        self.stage = _Stage.CLAIMING
        self.voice = _Voice()
        self.claim_offset: int | None = None
        self.position = -1
        self.end_offset = 0
        self._n_draining = 0
        self._asked_end_s: float | None = None
        self._end: int | None = None

    def step(self, now_s: float, fleet: Membership) -> list[Action]:
        out: list[Action] = []
        if self._superseded(fleet):
            if self.stage is _Stage.READING:
                out.append(StopReading(self.inbox, commit=False))
            reading = self.stage in {_Stage.READING, _Stage.STOPPING, _Stage.LOST}
            self.stage = _Stage.LOST if reading else _Stage.ENDED
            return out
        if (
            self.stage is _Stage.CLAIMING
            and self.claim_offset is not None
            and fleet.position > self.claim_offset
        ):
            self.stage = _Stage.READING
            out.append(StartReading(self.inbox, self.epoch))
        if self.stage is _Stage.READING and self.draining:
            out += self._towards_the_end(now_s)
        if self.stage not in {_Stage.LOST, _Stage.ENDED} and self.voice.due(now_s, fleet):
            out.append(self.voice.say(self._beat(), now_s))
        return out

    def _superseded(self, fleet: Membership) -> bool:
        lease = fleet.lease(self._pool, self.inbox)
        return lease is not None and (
            lease.epoch > self.epoch or (lease.epoch == self.epoch and lease.life != self._life)
        )

    def _towards_the_end(self, now_s: float) -> list[Action]:
        if self._end is not None and self.position >= self._end:
            self.stage = _Stage.STOPPING
            return [StopReading(self.inbox, commit=True)]
        asked = self._asked_end_s
        if (
            self._end is None
            and self._n_draining >= DRAINING_BEATS
            and (asked is None or now_s - asked >= _ANSWER_WITHIN_S)
        ):
            self._asked_end_s = now_s
            return [AskEnd(self.inbox)]
        return []

    def _beat(self) -> WriteBeat:
        state = m.STATE_DRAINING if self.draining else m.STATE_ACTIVE
        if self.stage is _Stage.RELEASING:
            state = m.STATE_RELEASED
        return WriteBeat(
            inbox_key(self._pool, self.inbox), state, self.inbox, self.epoch, self.end_offset
        )

    def written(self, beat: WriteBeat, offset: int) -> None:
        self.voice.acked_offset = offset
        if self.stage is _Stage.CLAIMING and self.claim_offset is None:
            self.claim_offset = offset
        if beat.state == m.STATE_DRAINING:
            self._n_draining += 1
        if beat.state == m.STATE_RELEASED:
            self.stage = _Stage.ENDED

    def end_seen(self, end: int) -> None:
        self._end = end

    def finished(self, end_offset: int) -> None:
        if self.stage is _Stage.LOST:
            self.stage = _Stage.ENDED
        elif self.stage in {_Stage.READING, _Stage.STOPPING}:
            self.stage = _Stage.RELEASING
            self.draining = True
            self.end_offset = end_offset
            # Gateways wait for it, and what the last beat said no longer matters to anyone.
            self.voice.next_s, self.voice.acked_offset = 0.0, -1


class Lease:
    """The inboxes of one worker's life: its own one and, at times, one that it adopts.

    Invariants: it owns at most one inbox and adopts at most one beside it, only while it serves;
    a claim is never abandoned but for a higher one, so a claim that lands late is ignored by all;
    every epoch that it claims is higher than all that it has seen of the inbox and differs from
    what any other life may claim at the same time.
    """

    def __init__(self, *, pool: str, instance: str, life: int, n_inboxes: int) -> None:
        self._pool = pool
        self._instance = instance
        self._life = life
        self.n_inboxes = n_inboxes
        self._loaded = False
        self._draining = False
        self._own: _Tenancy | None = None
        self._adopted: _Tenancy | None = None
        self._voice = _Voice()
        self._joined_offset: int | None = None
        self._buried: int = 0
        self._bounds: Mapping[int, Bounds] | None = None
        self._asked_s: float | None = None
        self._next_ask_s = 0.0
        self._round = 0
        self._no_inbox = False
        self._out = False

    # -- what the code around it reads ------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the worker is with its own inbox."""
        if self._out:
            return Phase.OUT
        own = self._own
        if own is not None and own.stage is _Stage.LOST:
            return Phase.LOST
        if self._draining:
            return Phase.DRAINING
        if own is None:
            if not self._loaded:
                return Phase.LOADING
            return Phase.NO_INBOX if self._no_inbox else Phase.JOINING
        if own.stage is _Stage.CLAIMING:
            return Phase.CLAIMING
        return Phase.SERVING if own.stage is _Stage.READING else Phase.DRAINING

    @property
    def message(self) -> str:
        """One sentence for `/readyz`."""
        if self.phase is Phase.NO_INBOX:
            return (
                f"all {self.n_inboxes} inboxes of pool {self._pool} are taken; add some with "
                f"`inferbus topics add-partitions inference.requests.{self._pool}`"
            )
        return {
            Phase.LOADING: "loading the versions that it should hold",
            Phase.JOINING: "joining: it has no inbox yet",
            Phase.CLAIMING: "joining: it has claimed an inbox and waits for its claim to be read",
            Phase.SERVING: "serving",
            Phase.LOST: "another worker has taken its inbox; it will join again",
            Phase.DRAINING: "draining",
            Phase.OUT: "stopped",
        }[self.phase]

    @property
    def inbox(self) -> int | None:
        """The inbox that it owns and reads, or None."""
        own = self._own
        return own.inbox if own is not None and own.stage is _Stage.READING else None

    # -- what the code around it tells ------------------------------------------------------

    def loaded(self) -> None:
        """The first loads are over, READY or FAILED: it may join."""
        self._loaded = True
        self.beat_soon()

    def drain(self) -> None:
        """Give everything up in order; the end is `Phase.OUT`. Twice is harmless."""
        if not self._draining:
            self._draining = True
            if self._own is not None:
                self._own.draining = True
            self.beat_soon()

    def beat_soon(self) -> None:
        """Beat at the next step, for a change that others wait for."""
        for voice in (self._voice, *(one.voice for one in self._tenancies())):
            voice.next_s = 0.0

    def written(self, write: WriteBeat | WriteTombstone, offset: int) -> None:
        """The broker has acknowledged this write at `offset`."""
        if isinstance(write, WriteTombstone):
            self._voice.in_air = None
            self._buried = max(self._buried, 2 if self._draining else 1)
            return
        if write.inbox is None:
            self._voice.in_air = None
            self._voice.acked_offset = offset
            if self._loaded and self._joined_offset is None:
                self._joined_offset = offset
            return
        for one in self._tenancies():
            if one.voice.in_air is write:
                one.voice.in_air = None
                one.written(write, offset)

    def not_written(self, write: WriteBeat | WriteTombstone) -> None:
        """It is not known whether this write was, or will be, appended; it is asked for again."""
        for voice in (self._voice, *(one.voice for one in self._tenancies())):
            if voice.in_air is write:
                voice.in_air = None

    def bounds(self, found: Mapping[int, Bounds]) -> None:
        """Answer `AskBounds`; inboxes whose bounds could not be had are left out."""
        self._bounds = found
        self._asked_s = None

    def position(self, inbox: int, position: int) -> None:
        """The inbox was read up to `position`, exclusive."""
        for one in self._tenancies():
            if one.inbox == inbox:
                one.position = position

    def end(self, inbox: int, end: int) -> None:
        """Answer `AskEnd`; where it failed, answer nothing: it asks again."""
        for one in self._tenancies():
            if one.inbox == inbox:
                one.end_seen(end)

    def finished(self, inbox: int, end_offset: int) -> None:
        """Answer `StopReading`: every frame below `end_offset` is done, and none is read any more.

        When the time to drain is over, stop reading and answer with what is committable, at any
        time after `StartReading`: gateways place again what stands at or above it.
        """
        for one in self._tenancies():
            if one.inbox == inbox:
                one.finished(end_offset)

    # -- what it decides --------------------------------------------------------------------

    def step(self, now_s: float, fleet: Membership) -> list[Action]:
        """Return what is to be done now, each action once."""
        out: list[Action] = []
        for one in self._tenancies():
            out += one.step(now_s, fleet)
        if self._own is not None and self._own.stage is _Stage.ENDED:
            self._own = None
            self._joined_offset = self._bounds = self._asked_s = None
            self._buried = 0
            self._voice.next_s = 0.0
        if self._adopted is not None and self._adopted.stage is _Stage.ENDED:
            self._adopted = None
            self._bounds = self._asked_s = None
        out += self._homeless(now_s, fleet)
        if self._own is None and not self._draining:
            out += self._join(now_s, fleet)
        elif self._adopted is None and self.phase is Phase.SERVING:
            out += self._adopt(now_s, fleet)
        return out

    def _tenancies(self) -> Iterable[_Tenancy]:
        return [one for one in (self._own, self._adopted) if one is not None]

    def _homeless(self, now_s: float, fleet: Membership) -> list[Action]:
        """Beat under the worker's own key while it reads no inbox; bury that key afterwards."""
        voice, key = self._voice, worker_key(self._instance)
        own = self._own
        if self._draining and own is None and self._adopted is None:
            if self._buried > 1:
                self._out = True
            elif voice.in_air is None and now_s >= voice.next_s:
                return [voice.say(WriteTombstone(key), now_s)]
            return []
        if own is None or own.stage in {_Stage.CLAIMING, _Stage.LOST}:
            if voice.due(now_s, fleet):
                return [voice.say(WriteBeat(key, m.STATE_JOINING), now_s)]
        elif not self._buried and voice.in_air is None and now_s >= voice.next_s:
            return [voice.say(WriteTombstone(key), now_s)]
        return []

    def _join(self, now_s: float, fleet: Membership) -> list[Action]:
        if self._joined_offset is None or fleet.position <= self._joined_offset:
            return []
        free = [
            inbox
            for inbox in range(self.n_inboxes)
            if (lease := fleet.lease(self._pool, inbox)) is None
            or lease.state == m.STATE_RELEASED
            or fleet.expired(lease)
        ]
        self._no_inbox = not free
        if not free:
            return []
        if self._bounds is None:
            return self._ask(free, now_s)
        found, self._bounds = self._bounds, None
        behind = [inbox for inbox in free if inbox in found and found[inbox].behind]
        self._own = self._claim(behind or free, fleet, draining=False)
        return self._own.step(now_s, fleet)

    def _adopt(self, now_s: float, fleet: Membership) -> list[Action]:
        if self._bounds is None:
            orphans = self._orphans(fleet) if now_s >= self._next_ask_s else []
            return self._ask(orphans, now_s) if orphans else []
        found, self._bounds = self._bounds, None
        behind = [i for i in self._orphans(fleet) if i in found and found[i].behind]
        if not behind:
            return []
        self._adopted = self._claim(behind, fleet, draining=True)
        return self._adopted.step(now_s, fleet)

    def _orphans(self, fleet: Membership) -> list[int]:
        """Return the inboxes that nobody has read for so long that it is this worker's turn."""
        out = []
        live = [one.instance for one in fleet.workers(self._pool)]
        for lease in fleet.leases(self._pool):
            gone = fleet.expired(lease) or lease.state == m.STATE_RELEASED
            if not gone or fleet.age_ms(lease) < EXPIRY_MS or lease.inbox >= self.n_inboxes:
                continue
            mine = self._weight(self._instance, lease.inbox)
            turn = sum(self._weight(other, lease.inbox) < mine for other in live)
            if fleet.age_ms(lease) >= EXPIRY_MS + turn * _TURN_MS:
                out.append(lease.inbox)
        return out

    def _ask(self, inboxes: list[int], now_s: float) -> list[Action]:
        if self._asked_s is not None and now_s - self._asked_s < _ANSWER_WITHIN_S:
            return []
        self._asked_s = now_s
        self._next_ask_s = now_s + _ASK_EVERY_S
        return [AskBounds(tuple(inboxes))]

    def _claim(self, inboxes: list[int], fleet: Membership, *, draining: bool) -> _Tenancy:
        self._round += 1
        who = f"{self._instance}/{self._round}"
        inbox = min(inboxes, key=lambda one: self._weight(who, one))
        epoch = claim_epoch(fleet, self._pool, inbox, self._life)
        return _Tenancy(self._pool, self._life, inbox, epoch, draining=draining)

    @staticmethod
    def _weight(who: str, inbox: int) -> int:
        return zlib.crc32(f"{who}/{inbox}".encode())
