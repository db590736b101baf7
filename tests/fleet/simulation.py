"""A seeded world of workers, gateways and a modelled Kafka, in virtual time.

In: a seed, and the classes to try. Out: `Broken` where a promise of the leases does not hold. The
workers run the real `Lease` and the real `Membership`; everything around them is modelled here:
late and lost writes, writes that arrive twice, slow readers, compaction, a broker that is away,
pauses, deaths, drains and restarts.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership
from inferbus_worker.control import lease as leases
from tests.fleet.simulated_bus import Bus, Follower

TICK_MS = 100
FAULTS_MS = 80_000
SETTLE_MS = 90_000
STOP_MS = 40_000
POOL = "default"


class BrokenError(AssertionError):
    """A promise that did not hold."""


@dataclass(slots=True)
class Opened:
    """An inbox that a worker reads: frames take a while, and end in any order."""

    inbox: int
    position: int
    committed: int
    ready_ms: int
    opening: bool = True
    stopping: bool = False
    stopped: bool = False
    may_commit: bool = True
    first_undone: int = 0
    open: dict[int, int] = field(default_factory=dict)

    def reading(self) -> leases.Reading:
        return leases.Reading(self.position, self.committed, len(self.open), self.stopped)


class Worker:
    """One life of a worker: the driver that `Lease` describes, in virtual time."""

    def __init__(self, world: World, instance: str, life: int) -> None:
        self.world, self.bus, self.rng = world, world.bus, world.rng
        self.instance, self.life = instance, life
        self.follower = Follower(self.bus, world.new_membership())
        self.lease = world.new_lease(POOL, instance, life, self.follower.fleet)
        self.air: deque[tuple[int, str, m.Heartbeat | None]] = deque()
        self.opened: dict[int, Opened] = {}
        self.behind: frozenset[int] | None = None
        self.behind_ms = 0
        self.look_due: tuple[int, frozenset[int]] | None = None
        self.ends_due: list[tuple[int, int]] = []
        self.next_beat_ms = self.bus.now_ms + self.rng.randint(0, 1000)
        self.paused_until_ms = 0
        self.mute_until_ms = 0
        self.slow = 10 if world.traffic and self.rng.random() < 0.15 else 1

    def tick(self) -> None:
        now_ms = self.bus.now_ms
        if now_ms < self.paused_until_ms or self.rng.random() < 0.1:
            return
        if self.rng.random() < 0.5:
            self.send()
        self.follower.read()
        self._look()
        self._work()
        facts = leases.Facts(
            n_inboxes=self.bus.n_inboxes,
            behind=self.behind if now_ms - self.behind_ms < 5000 else None,
            readings={number: one.reading() for number, one in self.opened.items()},
        )
        for action in self.lease.step(facts):
            self._begin(action)
        if now_ms >= self.next_beat_ms:
            self.next_beat_ms = now_ms + 1000
            for beat in self.lease.beats():
                self._write(beat.key, self._compose(beat))
        self.send()

    def _begin(self, action: leases.Action) -> None:
        now_ms = self.bus.now_ms
        match action:
            case leases.WriteBeat():
                self._write(action.key, self._compose(action))
            case leases.Tombstone():
                self._write(action.key, None)
            case leases.StartReading(inbox):
                self.world.owns(self, inbox)
                self.opened[inbox] = Opened(inbox, 0, 0, now_ms + self.rng.randint(0, 800))
            case leases.StopReading(inbox, commit):
                self.opened[inbox].stopping = True
                self.opened[inbox].may_commit = commit
            case leases.ReadEnd(inbox):
                self.ends_due.append((now_ms + self.rng.randint(0, 600), inbox))
            case leases.Close(inbox):
                del self.opened[inbox]

    def _compose(self, said: leases.WriteBeat) -> m.Heartbeat:
        if said.state == m.STATE_RELEASED:
            self.world.releases(self, said)
        part = m.WorkerBeat(
            pool=POOL, inbox=said.inbox, epoch=said.epoch, end_offset=said.end_offset
        )
        return m.Heartbeat(instance=self.instance, state=said.state, life=self.life, worker=part)

    def _write(self, key: str, beat: m.Heartbeat | None) -> None:
        delay_ms = self.rng.choice((10, 10, 10, 150, 400, 1500)) * self.slow
        last_ms = self.air[-1][0] if self.air else 0
        self.air.append((max(last_ms, self.bus.now_ms + delay_ms), key, beat))

    def send(self) -> None:
        """Let what is due arrive, in order; some of it never, some of it again later."""
        if self.bus.now_ms < self.mute_until_ms:
            return
        while self.air and self.air[0][0] <= self.bus.now_ms and self.bus.up:
            _, key, beat = self.air.popleft()
            luck = self.rng.random()
            if luck < self.world.loss:
                continue
            self.bus.append(key, beat)
            if luck > 1 - self.world.loss / 2:
                again_ms = self.bus.now_ms + self.rng.randint(0, 9000)
                self.bus.late.append((again_ms, key, beat))

    def _look(self) -> None:
        now_ms = self.bus.now_ms
        if self.look_due is not None and now_ms >= self.look_due[0]:
            if self.bus.up:
                self.behind, self.behind_ms = self.look_due[1], now_ms
            self.look_due = None
        elif self.look_due is None and self.lease.wants_behind and self.bus.up:
            self.look_due = (now_ms + self.rng.randint(100, 1500), self.bus.behind())

    def _work(self) -> None:
        now_ms = self.bus.now_ms
        for due in [one for one in self.ends_due if one[0] <= now_ms and self.bus.up]:
            self.ends_due.remove(due)
            self.lease.end_found(due[1], len(self.bus.finished[due[1]]))
        for one in self.opened.values():
            self._read(one)
            for offset in [offset for offset, due_ms in one.open.items() if due_ms <= now_ms]:
                if self.bus.up:
                    del one.open[offset]
                    self.bus.finished[one.inbox][offset] = True
            safe = min(one.open, default=one.position)
            if one.may_commit and not one.opening and self.bus.up and safe > one.committed:
                self.bus.committed[one.inbox] = one.committed = safe

    def _read(self, one: Opened) -> None:
        if one.stopping:
            one.stopped = True
        elif one.opening:
            if self.bus.up and self.bus.now_ms >= one.ready_ms:
                one.opening = False
                one.position = one.committed = self.bus.committed[one.inbox]
        elif self.bus.up:
            end = len(self.bus.finished[one.inbox])
            upto = min(end, one.position + self.rng.randint(1, 8))
            for offset in range(one.position, upto):
                one.open[offset] = self.bus.now_ms + self.rng.choice((50, 200, 200, 3000))
            one.position = upto


class World:
    """All of it. `loss` is the share of writes that never arrive.

    Invariants checked on the way: an epoch of an inbox has one owner ever; a release names an
    offset up to which its writer has read and below which everything is finished.
    """

    new_lease: type[leases.Lease] = leases.Lease
    new_membership: type[Membership] = Membership

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bus = Bus(self.rng, self.rng.choice((1, 1, 2, 2, 3, 5)))
        self.loss = self.rng.choice((0.0, 0.02, 0.1))
        self.fault_rate = self.rng.choice((0.01, 0.03, 0.08))
        self.compaction_ms = self.rng.choice((8_000, 15_000, 10**9))
        self.instances = [f"worker-{number}" for number in range(self.rng.randint(1, 5))]
        self.workers: dict[str, Worker] = {}
        self.restarts: dict[str, int] = {}
        self.owners: dict[tuple[int, int], int] = {}
        self.gateways = [Follower(self.bus, Membership()) for _ in range(2)]
        self.god = Follower(self.bus, self.new_membership())
        self.traffic = True
        self.n_lives = 0
        for instance in self.instances:
            self.restarts[instance] = self.bus.now_ms + self.rng.choice((0, 0, 300, 9000))

    def run(self) -> None:
        """Let faults happen, then let it settle, then stop every worker."""
        start_ms = self.bus.now_ms
        while self.bus.now_ms < start_ms + FAULTS_MS:
            self._fault()
            self._tick()
        self._heal()
        self._until(SETTLE_MS, self._unsettled)
        for worker in self.workers.values():
            worker.lease.drain()
        self._until(STOP_MS, self._unstopped)

    def owns(self, worker: Worker, inbox: int) -> None:
        lease = worker.follower.fleet.lease(POOL, inbox)
        if lease is None:
            raise BrokenError(f"{worker.instance} reads inbox {inbox} without a lease")
        owner = self.owners.setdefault((inbox, lease.epoch), worker.life)
        if owner != worker.life:
            raise BrokenError(f"epoch {lease.epoch} of inbox {inbox} has two owners")

    def releases(self, worker: Worker, said: leases.WriteBeat) -> None:
        assert said.inbox is not None
        opened = worker.opened.get(said.inbox)
        if said.end_offset > (0 if opened is None else opened.position):
            raise BrokenError(f"inbox {said.inbox} is released above what was read")
        if not all(self.bus.finished[said.inbox][: said.end_offset]):
            raise BrokenError(f"inbox {said.inbox} is released before it is finished")

    def _until(self, limit_ms: int, complaint: Callable[[], str]) -> None:
        end_ms = self.bus.now_ms + limit_ms
        while True:
            for _ in range(10):
                self._tick()
            said = complaint()
            if not said:
                return
            if self.bus.now_ms >= end_ms:
                raise BrokenError(said)

    def _tick(self) -> None:
        bus = self.bus
        bus.now_ms += TICK_MS
        bus.arrive()
        for instance, due_ms in list(self.restarts.items()):
            if bus.now_ms >= due_ms:
                del self.restarts[instance]
                self.n_lives += 1
                self.workers[instance] = Worker(self, instance, self.n_lives)
        for worker in list(self.workers.values()):
            worker.tick()
            if worker.lease.done:
                bus.late += worker.air
                worker.air.clear()
                if self.traffic:
                    del self.workers[worker.instance]
                    self.restarts[worker.instance] = bus.now_ms + self.rng.randint(0, 4000)
        if self.traffic:
            self._place()

    def _place(self) -> None:
        for gateway in self.gateways:
            gateway.read()
            targets = gateway.fleet.workers(POOL)
            if targets and self.rng.random() < 0.2:
                inbox = self.rng.choice(targets).inbox
                delay_ms = self.rng.choice((0, 0, 0, 300, 2500))
                self.bus.late_frames.append((self.bus.now_ms + delay_ms, inbox))

    def _fault(self) -> None:
        rng, now_ms = self.rng, self.bus.now_ms
        if rng.random() < 0.03:
            self.bus.compact(self.compaction_ms)
        if rng.random() < 0.002:
            self.bus.away_until_ms = now_ms + rng.choice((500, 3000, 12_000))
        if rng.random() < 0.01:
            self.bus.step_back_ms = rng.choice((0, 0, 3000))
        if not self.workers or rng.random() > self.fault_rate:
            return
        worker = rng.choice(list(self.workers.values()))
        span_ms = rng.choice((2000, 7000, 12_000, 25_000))
        match rng.randrange(6):
            case 0:
                self._kill(worker)
            case 1 | 2:
                worker.paused_until_ms = now_ms + span_ms
            case 3:
                worker.follower.deaf_until_ms = now_ms + span_ms
            case 4:
                worker.mute_until_ms = now_ms + span_ms
            case _:
                worker.lease.drain()

    def _kill(self, worker: Worker) -> None:
        del self.workers[worker.instance]
        for due_ms, key, beat in worker.air:
            if self.rng.random() < 0.5:
                self.bus.late.append((due_ms + self.rng.randint(0, 2000), key, beat))
        self.restarts[worker.instance] = self.bus.now_ms + self.rng.choice((200, 3000, 15_000))

    def _heal(self) -> None:
        """No more faults and no more traffic; most of the dead come back."""
        self.traffic = False
        self.loss = 0.0
        for worker in self.workers.values():
            worker.paused_until_ms = min(worker.paused_until_ms, self.bus.now_ms + 8000)
            worker.follower.deaf_until_ms = worker.mute_until_ms = 0
            worker.slow = 1
        for instance in list(self.restarts):
            if (self.workers or len(self.restarts) > 1) and self.rng.random() < 0.5:
                del self.restarts[instance]

    def _unsettled(self) -> str:
        """Return what is not as it should be for ever after; nothing where all is well."""
        if self.restarts or self.bus.late or self.bus.late_frames:
            return "something is still on its way"
        live = [one for one in self.workers.values() if not one.lease.done]
        for inbox, finished in enumerate(self.bus.finished):
            owners = [one for one in live if inbox in {one.lease.inbox, one.lease.adopted}]
            if len(owners) > 1:
                return f"inbox {inbox} has {len(owners)} owners for ever"
            if live and not all(finished):
                return f"inbox {inbox} holds frames that nobody finishes"
        idle = [one for one in live if not one.lease.active]
        if idle and len(live) - len(idle) < self.bus.n_inboxes:
            return f"{idle[0].instance} is stranded while an inbox is free"
        return ""

    def _unstopped(self) -> str:
        waiting = [one.instance for one in self.workers.values() if not one.lease.done]
        return f"{waiting} never end their drain" if waiting else ""
