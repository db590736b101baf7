"""A worker of the simulated fleet: the real lease and holding, an engine that takes its time.

In: frames of its inboxes. Out: predictions, beats, committed offsets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferbus_kit.offsets import ContiguousOffsets
from inferbus_schemas import messages as m
from inferbus_worker.control import lease as leases
from inferbus_worker.control.holding import Key
from tests.fleet.kafka_model import Tail
from tests.fleet.process_model import (
    BEATS,
    MODEL,
    POOL,
    Process,
    Said,
    Work,
    nobody_waits,
)

if TYPE_CHECKING:
    from tests.fleet.whole_fleet import World

_LOADS_S = (0.3, 1.0, 2.0, 14.0)


@dataclass(slots=True, eq=False)
class Opened:
    """An inbox that a worker reads."""

    inbox: int
    opens_s: float
    tail: Tail | None = None
    offsets: ContiguousOffsets = field(default_factory=lambda: ContiguousOffsets(0))
    committed: int = -1
    stopping: bool = False
    may_commit: bool = True
    open: Counter[int] = field(default_factory=Counter)

    def reading(self) -> leases.Reading:
        position = -1 if self.tail is None else self.tail.position
        return leases.Reading(position, self.committed, self.offsets.n_open, self.stopping)


class Worker(Process):
    """The driver that `Lease` describes, an engine that takes its time, and residents."""

    def __init__(self, world: World, instance: str) -> None:
        super().__init__(world, instance)
        self.lease = world.classes.lease(POOL, instance, self.life, self.fleet)
        self.opened: dict[int, Opened] = {}
        self.ready_s: dict[Key, float] = {}
        self.running: list[tuple[float, Work, Opened, int]] = []
        self.behind: frozenset[int] | None = None
        self.behind_s = 0.0
        self.next_look_s = 0.0
        self.loaded = False
        self.held_of: tuple[object, ...] = ()

    def tick(self) -> None:
        self.follow()
        self._hold()
        if self.loaded:
            self._step()
        self._work()
        if self.beat_due():
            for said in self.lease.beats() if self.loaded else [self.lease.joining()]:
                self._say(said)

    def _hold(self) -> None:
        now_s = self.broker.now_s
        # Of these alone it is a function.
        of = (self.news.position, self.beats.position, *self.ready_s)
        if of != self.held_of:
            self.held_of = of
            hold = self.world.classes.hold(self.deployments, self.fleet, POOL, list(self.ready_s))
            for key in hold:
                if key not in self.ready_s:
                    self.ready_s[key] = now_s + self.rng.choice(_LOADS_S)
            for key in [key for key in self.ready_s if key not in hold]:
                del self.ready_s[key]
        if not self.loaded and self.news.at_end and self.beats.at_end:
            self.loaded = all(ready_s <= now_s for ready_s in self.ready_s.values())

    def _facts(self) -> leases.Facts:
        now_s = self.broker.now_s
        if self.lease.wants_behind and now_s >= self.next_look_s and self.broker.up:
            self.next_look_s = now_s + 1.5
            self.behind, self.behind_s = self.world.behind(), now_s
        fresh = now_s - self.behind_s < 5.0 and (
            self.world.classes.adoption or not self.lease.active
        )
        return leases.Facts(
            n_inboxes=self.world.n_inboxes,
            behind=self.behind if fresh else None,
            readings={number: one.reading() for number, one in self.opened.items()},
        )

    def _step(self) -> None:
        now_s, facts = self.broker.now_s, self._facts()
        for action in self.lease.step(facts):
            match action:
                case leases.WriteBeat():
                    self._say(action)
                case leases.Tombstone(key):
                    self.write(BEATS, key, None, nobody_waits)
                case leases.StartReading(inbox):
                    self.opened[inbox] = Opened(inbox, now_s + self.broker.delay_s() * 3)
                case leases.ReadEnd(inbox):
                    self._ask_end(inbox)
                case leases.StopReading(inbox, commit):
                    self.opened[inbox].stopping = True
                    self.opened[inbox].may_commit = commit
                case leases.Close(inbox):
                    del self.opened[inbox]
        if self.lease.done:
            self.alive = False

    def _ask_end(self, inbox: int) -> None:
        if not self.broker.up:
            self.broker.at(self.broker.now_s + 0.5, lambda: self._ask_end(inbox))
            return
        end = self.world.inbox(inbox).end
        self.broker.at(
            self.broker.now_s + self.broker.delay_s(), lambda: self.lease.end_found(inbox, end)
        )

    def _say(self, said: leases.WriteBeat) -> None:
        part = m.WorkerBeat(
            pool=POOL,
            inbox=said.inbox,
            epoch=said.epoch,
            end_offset=said.end_offset,
            backlog_rows=len(self.running),
        )
        for (model, version), ready_s in self.ready_s.items():
            ready = ready_s <= self.broker.now_s
            readiness = m.READINESS_READY if ready else m.READINESS_LOADING
            part.residents.add(model=model, version=version, readiness=readiness)
        beat = m.Heartbeat(instance=self.instance, state=said.state, life=self.life, worker=part)
        self.write(BEATS, said.key, beat, nobody_waits)

    def _work(self) -> None:
        now_s = self.broker.now_s
        for one in self.opened.values():
            self._read(one)
            committable = one.offsets.committable
            may = one.tail is not None and one.may_commit and self.broker.up
            if may and committable > one.committed:
                self.broker.committed[one.inbox] = one.committed = committable
        for due in [due for due in self.running if due[0] <= now_s]:
            self.running.remove(due)
            self._end(*due[1:])

    def _read(self, one: Opened) -> None:
        now_s = self.broker.now_s
        if one.tail is None and not one.stopping and self.broker.up and now_s >= one.opens_s:
            start = self.broker.committed[one.inbox]
            one.tail = Tail(self.broker, f"inbox/{one.inbox}", start)
            one.offsets, one.committed = ContiguousOffsets(start), start
        if one.tail is None or one.stopping:
            return
        for offset, append_s, _, works in one.tail.read(8):
            one.offsets.read(offset)
            one.open[offset] = len(works)
            for work in works:
                if now_s > append_s + work.ttl_s:
                    expired = Said(work.id, work.attempt, m.OUTCOME_EXPIRED, 0, self.instance)
                    self._put(expired, work, one, offset)
                else:
                    due_s = now_s + self.rng.choice(self.world.faults.engine_s)
                    self.running.append((due_s, work, one, offset))

    def _end(self, work: Work, one: Opened, offset: int) -> None:
        held = self.ready_s.get((MODEL, work.version), 1e18) <= self.broker.now_s
        lost = self.rng.random() < 0.01
        outcome = m.OUTCOME_OK if held and not lost else m.OUTCOME_ATTEMPT_FAILED
        said = Said(work.id, work.attempt, outcome, work.version, self.instance)
        self._put(said, work, one, offset)

    def _put(self, said: Said, work: Work, one: Opened, offset: int) -> None:
        def answered(at: int | None) -> None:
            if at is None:
                self._put(said, work, one, offset)
                return
            one.open[offset] -= 1
            if one.open[offset] == 0:
                one.offsets.done(offset)

        self.write(f"reply/{work.reply}", MODEL, said, answered)
