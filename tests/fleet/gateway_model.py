"""A gateway and the registry of the simulated fleet, around the real pending, placement and pins.

In: requests, predictions, beats, deployments. Out: frames, answers, desired state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inferbus_gateway.hot.pending import Due, Entry, Frame
from inferbus_gateway.hot.placement import Placement
from inferbus_schemas import membership
from inferbus_schemas import messages as m
from tests.fleet.kafka_model import Tail
from tests.fleet.process_model import (
    ALIAS,
    BEATS,
    DEPLOYMENTS,
    MODEL,
    POOL,
    Process,
    Said,
    Work,
    nobody_waits,
)

if TYPE_CHECKING:
    from tests.fleet.whole_fleet import World

_STALE_S = 3.0


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
            self.write(BEATS, membership.gateway_key(self.instance), None, nobody_waits)

    def _beat(self) -> None:
        flying = {(one.request.model, one.request.version) for one in self.pending}
        part = m.GatewayBeat(reply_partition=self.reply, models=self.pins.beat(flying))
        beat = m.Heartbeat(
            instance=self.instance, state=m.STATE_ACTIVE, life=self.life, gateway=part
        )
        key = membership.gateway_key(self.instance)
        self.write(BEATS, key, beat, nobody_waits)
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
        self.converged_of = (-1, 0)
        alias = m.Alias(name=ALIAS, wanted=1, serving=0)
        pool = m.PoolVersions(pool=POOL, versions=[1], min_ready=2)
        self.state = m.Deployment(model=MODEL, generation=1, aliases=[alias], pools=[pool])
        self._publish()

    def tick(self) -> None:
        self.follow()
        # Of these alone it is a function.
        of = (self.beats.position, self.state.generation)
        if self.beats.at_end and of != self.converged_of:
            self.converged_of = of
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
