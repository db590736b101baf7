"""Workers, gateways and a registry on a modelled Kafka: the life of requests, from end to end.

In: a seed, the faults to allow, and the classes to try. Out: `BrokenError` where a promise does not
hold. Every decision is made by the real classes; what stands around them in the services is
modelled here, tick by tick of virtual time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inferbus_gateway.hot.pending import Due, Entry, Frame, Pending
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_kit.offsets import ContiguousOffsets
from inferbus_registry.placement.convergence import converge
from inferbus_schemas import membership
from inferbus_schemas import messages as m
from inferbus_schemas.membership import Membership
from inferbus_schemas.terminal import is_terminal
from inferbus_worker.control import lease as leases
from inferbus_worker.control.holding import Key, versions_to_hold
from tests.fleet.kafka_model import Broker, Tail
from tests.fleet.simulation import BrokenError

POOL, MODEL, ALIAS = "default", "iris", "champion"
BEATS, DEPLOYMENTS = "beats", "deployments"
TICK_S = 0.1
_STALE_S = 3.0
FAULTS_S = 40.0
SETTLE_S = 90.0
DEADLINE_S = 30.0
_LOADS_S = (0.3, 1.0, 2.0, 14.0)


@dataclass(frozen=True, slots=True)
class Work:
    """A request as a frame carries it."""

    id: bytes
    version: int
    attempt: int
    ttl_s: float
    reply: int


@dataclass(frozen=True, slots=True)
class Said:
    """A prediction record."""

    id: bytes
    attempt: int
    outcome: int
    version: int
    by: str


@dataclass(frozen=True, slots=True)
class Classes:
    """What is tried; tests put broken ones here."""

    membership: type[Membership] = Membership
    lease: type[leases.Lease] = leases.Lease
    pending: type[Pending] = Pending
    pins: type[Pins] = Pins
    adoption: bool = True
    hold: Callable[..., dict[Key, int]] = versions_to_hold
    converge: Callable[[m.Deployment, Membership], m.Deployment | None] = converge


@dataclass(frozen=True, slots=True)
class Faults:
    """What may happen; rates are per tick.

    `drains`: rolling restarts; `swaps`: aliases move; `slow_frames`: share of first attempts whose
    frame hangs for `slow_s`; `spare_the_last`: only workers beside another one are killed, and they
    stay away for long.
    """

    drains: float = 0.0
    kills: float = 0.0
    pauses: float = 0.0
    away: float = 0.0
    loss: float = 0.0
    gateway_faults: bool = False
    swaps: float = 0.02
    slow_frames: float = 0.0
    slow_s: float = 2.5
    engine_s: tuple[float, ...] = (0.005, 0.02, 0.1, 0.1, 0.4, 2.5)
    spare_the_last: bool = False
    deadline_s: float = DEADLINE_S

    @property
    def harmless(self) -> bool:
        """Whether no request may end in anything but OK."""
        if self.away or self.loss or self.gateway_faults or self.pauses:
            return False
        return self.spare_the_last or not self.kills


CALM = Faults(drains=0.02, swaps=0.02, slow_frames=0.01, deadline_s=24.0)
PROMPT = Faults(
    drains=0.03,
    swaps=0.0,
    slow_frames=0.15,
    slow_s=3.0,
    engine_s=(0.02, 0.2),
    deadline_s=10.0,
)
LONELY = Faults(kills=0.02, swaps=0.0, engine_s=(0.02, 0.2), spare_the_last=True, deadline_s=11.0)
DEATHS = Faults(drains=0.005, kills=0.006, pauses=0.01, slow_frames=0.01)
EVERYTHING = Faults(
    drains=0.005, kills=0.005, pauses=0.008, away=0.002, loss=0.03, gateway_faults=True
)
HURRIED = Faults(
    drains=0.005,
    kills=0.006,
    pauses=0.01,
    away=0.006,
    loss=0.03,
    gateway_faults=True,
    deadline_s=4.0,
)


class Process:
    """One life of a process: it ticks unless it is paused or dead."""

    def __init__(self, world: World, instance: str) -> None:
        self.world, self.broker, self.rng = world, world.broker, world.rng
        self.instance, self.life = instance, world.rng.getrandbits(64)
        self.fleet = world.classes.membership()
        self.beats = Tail(world.broker, BEATS)
        self.news = Tail(world.broker, DEPLOYMENTS)
        self.deployments: dict[str, m.Deployment] = {}
        self.name = f"{instance}/{self.life}"
        self.alive = True
        self.paused_until_s = 0.0
        self.next_beat_s = 0.0

    def follow(self) -> None:
        """Read the state topics."""
        for _, _, _, said in self.news.read():
            have = self.deployments.get(said.model)
            if have is None or said.generation > have.generation:
                self.deployments[said.model] = said
                self.deployed(said)
        for offset, append_s, key, beat in self.beats.read():
            self.fleet.apply(key, beat, offset=offset, append_ms=int(append_s * 1000))
            self.heard(beat)

    def deployed(self, said: m.Deployment) -> None:
        """Act on a newer deployment."""

    def heard(self, beat: m.Heartbeat | None) -> None:
        """Act on a beat."""

    def write(self, log: str, key: str, value: Any, answer: Callable[[int | None], None]) -> None:
        """Produce; a dead process hears no answer, a paused one when it goes on."""

        def answered(offset: int | None) -> None:
            if not self.alive:
                return
            if self.broker.now_s < self.paused_until_s:
                self.broker.at(self.paused_until_s, lambda: answered(offset))
            else:
                answer(offset)

        self.broker.produce(self.name, log, key, value, answered)

    def beat_due(self) -> bool:
        if self.broker.now_s < self.next_beat_s:
            return False
        self.next_beat_s = self.broker.now_s + 1.0
        return True


def _nothing(_offset: int | None) -> None:
    """Take an answer that nobody waits for."""


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
                    self.write(BEATS, key, None, _nothing)
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
        self.write(BEATS, said.key, beat, _nothing)

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


@dataclass(slots=True, eq=False)
class Ticket:
    """One request as its client sees it."""

    id: bytes
    version: int
    gateway: Gateway
    answers: list[str] = field(default_factory=list)
    handed_over: bool = False
    harmed: bool = False


class Gateway(Process):
    """What the gateway's publisher, upkeep and reply reader do around the pure classes."""

    def __init__(self, world: World, instance: str, reply: int) -> None:
        super().__init__(world, instance)
        self.pending = world.classes.pending()
        self.pins = world.classes.pins()
        self.placement = Placement(self.fleet, self.rng.getrandbits(32))
        self.reply = reply
        self.replies = Tail(self.broker, f"reply/{reply}", self.broker.logs[f"reply/{reply}"].end)
        self.drafts: dict[tuple[int, int], tuple[Frame, list[Entry]]] = {}
        self.accepting = False
        self.draining = False
        self.announced_s: float | None = None
        self.read_s = 0.0

    def deployed(self, said: m.Deployment) -> None:
        self.pins.apply(said)
        self._changed()

    def heard(self, beat: m.Heartbeat | None) -> None:
        self._changed()
        if beat is not None and beat.worker.HasField("inbox"):
            self._look((POOL, beat.worker.inbox))

    def _changed(self) -> None:
        self.placement.fleet_changed()
        self.pins.refresh(self.fleet)

    def _look(self, inbox: tuple[str, int]) -> None:
        lease = self.fleet.lease(*inbox)
        if lease is not None:
            expired = self.fleet.expired(lease)
            if self.pending.lease_seen(lease, expired=expired, now_s=self.broker.now_s):
                self._place_waiting()

    def _place_waiting(self) -> None:
        for entry in self.pending.to_place(self.broker.now_s):
            self._place(entry)

    def tick(self) -> None:
        now_s = self.broker.now_s
        self._read_replies()
        self.follow()
        if self.broker.up:
            self.read_s = now_s
        for inbox in self.pending.inboxes():
            self._look(inbox)
        self._place_waiting()
        self._due(self.pending.tick(now_s))
        if self.accepting and not self.draining and now_s - self.read_s < _STALE_S:
            for _ in range(self.rng.choice((0, 0, 1, 1, 2)) if self.world.traffic else 0):
                self._accept()
        self._flush()
        if self.beat_due():
            self._beat()
        if self.draining and not len(self.pending):
            self.alive = False
            self.write(BEATS, membership.gateway_key(self.instance), None, _nothing)

    def _beat(self) -> None:
        flying = {(one.request.model, one.request.version) for one in self.pending}
        part = m.GatewayBeat(reply_partition=self.reply, models=self.pins.beat(flying))
        beat = m.Heartbeat(
            instance=self.instance, state=m.STATE_ACTIVE, life=self.life, gateway=part
        )
        key = membership.gateway_key(self.instance)
        self.write(BEATS, key, beat, _nothing)
        mine = self.fleet.member(key)
        if mine is not None and mine.beat.life == self.life:
            if self.announced_s is None:
                self.announced_s = self.broker.now_s
            elif self.beats.at_end and self.news.at_end:
                self.accepting = True

    def _accept(self) -> None:
        version = self.pins.pinned(MODEL, ALIAS)
        if version is None or self.pending.full:
            return
        id_bytes = self.world.new_id()
        request = m.Request(id=id_bytes, model=MODEL, version=version, tensors=b"x")
        ticket = Ticket(id_bytes, version, self)
        self.world.tickets[id_bytes] = ticket
        now_s = self.broker.now_s
        deadline_s = now_s + self.world.faults.deadline_s
        entry = Entry(request, POOL, n_rows=1, deadline_s=deadline_s, waiter=ticket)
        self.pending.add(entry, now_s)
        self._place(entry)

    def _place(self, entry: Entry) -> None:
        request = entry.request
        lease = self.placement.choose(
            POOL, MODEL, request.version, self.pending.rows, avoid=entry.failed_on
        )
        if lease is not None:
            draft = self.drafts.setdefault((lease.inbox, lease.epoch), (Frame(), []))
            draft[1].append(entry)
            self.pending.placed(entry, lease, draft[0])

    def _flush(self) -> None:
        now_s = self.broker.now_s
        drafts, self.drafts = self.drafts, {}
        for (inbox, _), (frame, drafted) in drafts.items():
            entries = [entry for entry in drafted if entry.frame is frame]
            if not self.broker.up and self.rng.random() < 0.5:
                for entry in entries:
                    if self.pending.not_handed_over(entry, now_s):
                        entry.waiter.answers.append("503")
            elif entries:
                self._send(inbox, entries, frame)

    def _send(self, inbox: int, entries: list[Entry], frame: Frame) -> None:
        now_s = self.broker.now_s
        works = tuple(
            Work(
                entry.id,
                entry.request.version,
                entry.attempt,
                max(0.001, entry.deadline_s - now_s),
                self.reply,
            )
            for entry in entries
        )
        for entry in entries:
            entry.waiter.handed_over = True
        # A frame may hang in a socket: it comes when others may have moved on.
        faults = self.world.faults
        first = all(entry.attempt == 1 for entry in entries)
        if first and self.rng.random() < faults.slow_frames:
            self.broker.slow(self.name, f"inbox/{inbox}", faults.slow_s)

        def acknowledged(offset: int | None) -> None:
            frame.offset = offset

        self.write(f"inbox/{inbox}", "", works, acknowledged)

    def _read_replies(self) -> None:
        for _, _, _, said in self.replies.read():
            entry = self.pending.ended(said.id, said.attempt, said.outcome, self.broker.now_s)
            if entry is not None:
                entry.waiter.answers.append(f"{said.outcome}@{said.version}")

    def _due(self, due: Due) -> None:
        for entry in due.no_worker:
            entry.waiter.answers.append("503")
        for entry, outcome in [
            *((one, m.OUTCOME_DEADLINE_EXCEEDED) for one in due.overdue),
            *((one, m.OUTCOME_FAILED) for one in due.exhausted),
        ]:
            self._close(
                Said(entry.id, entry.attempt, outcome, entry.request.version, self.instance)
            )
        for entry in due.unknown:
            entry.waiter.answers.append("unknown")

    def _close(self, said: Said) -> None:
        """Write a record that ends a request, until Kafka has taken it."""

        def answered(offset: int | None) -> None:
            if offset is None:
                self._close(said)

        self.write(f"reply/{self.reply}", MODEL, said, answered)


class Registry(Process):
    """Desired state; what the outbox publishes comes in order."""

    def __init__(self, world: World, instance: str) -> None:
        super().__init__(world, instance)
        alias = m.Alias(name=ALIAS, wanted=1, serving=0)
        pool = m.PoolVersions(pool=POOL, versions=[1], min_ready=2)
        self.state = m.Deployment(model=MODEL, generation=1, aliases=[alias], pools=[pool])
        self._publish()

    def tick(self) -> None:
        self.follow()
        if self.beats.at_end:
            following = self.world.classes.converge(self.state, self.fleet)
            if following is not None:
                following.generation = self.state.generation + 1
                self.state = following
                self._publish()

    def want(self, version: int) -> None:
        """Move the alias."""
        state = m.Deployment()
        state.CopyFrom(self.state)
        state.generation += 1
        state.aliases[0].wanted = version
        pool = state.pools[0]
        pool.versions[:] = sorted({*pool.versions, version})
        self.state = state
        self._publish()

    def _publish(self) -> None:
        state = self.state

        def answered(offset: int | None) -> None:
            if offset is None and state is self.state:
                self._publish()

        self.write(DEPLOYMENTS, MODEL, state, answered)


class World:
    """All of it; `run` raises `BrokenError` at the first promise that does not hold."""

    def __init__(self, seed: int, faults: Faults, classes: Classes | None = None) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.classes = classes or Classes()
        self.broker = Broker(self.rng)
        self.broker.loss = faults.loss
        self.n_inboxes = self.rng.randint(3, 6)
        self.tickets: dict[bytes, Ticket] = {}
        self.traffic = True
        self.processes: dict[str, Process] = {}
        self.restarts: dict[str, float] = {}
        self.registry = Registry(self, "registry")
        self.processes["registry"] = self.registry
        self.n_workers = self.rng.randint(2, 3)
        for number in range(self.n_workers):
            self._start(f"worker-{number}")
        for number in range(self.rng.randint(1, 2)):
            self._start(f"gateway-{number}")
        self.compaction_s = self.rng.choice((8.0, 20.0, 1e9))

    def new_id(self) -> bytes:
        return self.rng.getrandbits(128).to_bytes(16, "big")

    def inbox(self, number: int) -> Any:
        return self.broker.logs[f"inbox/{number}"]

    def behind(self) -> frozenset[int]:
        return frozenset(
            number
            for number in range(self.n_inboxes)
            if self.broker.committed[number] < self.inbox(number).end
        )

    def _start(self, instance: str) -> None:
        if instance.startswith("worker"):
            self.processes[instance] = Worker(self, instance)
        else:
            self.processes[instance] = Gateway(self, instance, self.rng.randint(0, 1))

    def run(self) -> None:
        """Faults, then peace, then the account."""
        until_s = self.broker.now_s + FAULTS_S
        while self.broker.now_s < until_s:
            self._tick()
            if self.broker.now_s > 1010.0:
                self._fault()
        self.traffic, self.broker.loss = False, 0.0
        until_s = self.broker.now_s + SETTLE_S
        complaint = "it did not begin"
        while complaint and self.broker.now_s < until_s:
            for _ in range(20):
                self._tick()
            complaint = self._unsettled()
        if complaint:
            raise BrokenError(complaint)
        self._account()

    def _tick(self) -> None:
        self.broker.run_until(self.broker.now_s + TICK_S)
        now_s = self.broker.now_s
        for instance, due_s in list(self.restarts.items()):
            if now_s >= due_s:
                del self.restarts[instance]
                self._start(instance)
        for instance, process in list(self.processes.items()):
            if now_s >= process.paused_until_s and self.rng.random() < 0.9:
                process.tick()  # type: ignore[attr-defined]  # every kind has one
            if not process.alive:
                del self.processes[instance]
                self.restarts[instance] = now_s + self.rng.random() * 3

    def _fault(self) -> None:
        rng, faults, now_s = self.rng, self.faults, self.broker.now_s
        if rng.random() < 0.02:
            self.broker.logs[BEATS].compact(now_s - self.compaction_s)
            self.broker.logs[DEPLOYMENTS].compact(now_s - self.compaction_s)
        if rng.random() < faults.swaps:
            self.registry.want(rng.randint(1, 4))
        if rng.random() < faults.away:
            self.broker.away_until_s = now_s + rng.choice((0.5, 3.0, 12.0))
        self._fault_workers()
        self._fault_gateways()

    def _fault_workers(self) -> None:
        rng, faults, workers = self.rng, self.faults, self._workers()
        serving = [one for one in workers if one.lease.active]
        whole = len(serving) == self.n_workers
        # As a rolling restart goes: the next one only when all are back.
        if whole and rng.random() < faults.drains:
            rng.choice(serving).lease.drain()
        victims = (serving if whole else []) if faults.spare_the_last else workers
        if victims and rng.random() < faults.kills:
            self._kill(rng.choice(victims))
        if workers and rng.random() < faults.pauses:
            rng.choice(workers).paused_until_s = self.broker.now_s + rng.choice((2.0, 7.0, 12.0))

    def _fault_gateways(self) -> None:
        rng, faults, gateways = self.rng, self.faults, self._gateways()
        if gateways and rng.random() < faults.drains / 4:
            rng.choice(gateways).draining = True
        if not gateways or not faults.gateway_faults:
            return
        if rng.random() < faults.kills / 4:
            self._kill(rng.choice(gateways))
        if rng.random() < faults.pauses / 2:
            rng.choice(gateways).paused_until_s = self.broker.now_s + rng.choice((1.0, 5.0, 12.0))

    def _kill(self, process: Process) -> None:
        process.alive = False
        self.processes.pop(process.instance, None)
        self.restarts[process.instance] = self.broker.now_s + (
            20.0 if self.faults.spare_the_last else self.rng.choice((0.5, 3.0, 9.0))
        )

    def _unsettled(self) -> str:
        """Return what is not yet as it must become in peace; nothing where all is well."""
        if any(one.gateway.alive and not one.answers for one in self.tickets.values()):
            return "a request is not answered"
        if self.restarts or any(
            one.paused_until_s > self.broker.now_s for one in self.processes.values()
        ):
            return "somebody is still away"
        if self.classes.adoption and (waiting := sorted(self.behind())):
            return f"frames stay below the end of inboxes {waiting}"
        return self._unsettled_leases() or self._unsettled_rollout()

    def _unsettled_leases(self) -> str:
        workers, gateways = self._workers(), self._gateways()
        if not all(one.lease.active for one in workers):
            return "a worker has no inbox"
        if len({one.lease.inbox for one in workers}) < len(workers):
            return "an inbox has two owners"
        here = {one.instance for one in workers}
        for gateway in gateways:
            if not here <= {one.instance for one in gateway.fleet.workers(POOL)}:
                return f"{gateway.instance} does not see all workers"
        return ""

    def _unsettled_rollout(self) -> str:
        alias = self.registry.state.aliases[0]
        if any(one.pins.pinned(MODEL, ALIAS) != alias.wanted for one in self._gateways()):
            return "a gateway does not pin what is wanted"
        if alias.serving != alias.wanted:
            return "the rollout does not end"
        if {key for one in self._workers() for key in one.ready_s} != {(MODEL, alias.wanted)}:
            return "a worker holds what nobody needs"
        return ""

    def _workers(self) -> list[Worker]:
        return [one for one in self.processes.values() if isinstance(one, Worker)]

    def _gateways(self) -> list[Gateway]:
        return [one for one in self.processes.values() if isinstance(one, Gateway)]

    def _account(self) -> None:
        first: dict[bytes, Said] = {}
        for reply in range(2):
            for _, _, said in self.broker.logs[f"reply/{reply}"].records:
                if is_terminal(said.outcome):
                    first.setdefault(said.id, said)
        for ticket in self.tickets.values():
            self._account_one(ticket, first)

    def _account_one(self, ticket: Ticket, first: Mapping[bytes, Said]) -> None:
        name = ticket.id.hex()[:8]
        if len(ticket.answers) > 1:
            raise BrokenError(f"request {name} was answered twice: {ticket.answers}")
        said = first.get(ticket.id)
        if said is not None and said.outcome == m.OUTCOME_OK and said.version != ticket.version:
            raise BrokenError(f"request {name} was answered by a version that was not pinned")
        if not ticket.answers:
            return
        answer = ticket.answers[0]
        if answer == "503" and (ticket.handed_over or said is not None):
            raise BrokenError(f"request {name} ended in 503 after it was handed over")
        if answer not in {"503", "unknown"} and (
            said is None or answer != f"{said.outcome}@{said.version}"
        ):
            raise BrokenError(f"request {name} was answered {answer}, the log says {said}")
        if answer == "unknown" and said is None and ticket.gateway.alive:
            raise BrokenError(f"request {name} has no outcome though its gateway lives")
        if self.faults.harmless and answer != f"{m.OUTCOME_OK}@{ticket.version}":
            raise BrokenError(f"request {name} ended as {answer}")
