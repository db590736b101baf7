"""Workers, gateways and a registry on a modelled Kafka: the life of requests, from end to end.

In: a seed, the faults to allow, and the classes to try. Out: `BrokenError` where a promise does not
hold. Every decision is made by the real classes; what stands around them in the services is
modelled here, tick by tick of virtual time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from inferbus_schemas import messages as m
from inferbus_schemas.terminal import is_terminal
from tests.fleet.gateway_model import Gateway, Registry, Ticket
from tests.fleet.kafka_model import Broker
from tests.fleet.process_model import (
    ALIAS,
    BEATS,
    DEPLOYMENTS,
    MODEL,
    POOL,
    Classes,
    Faults,
    Process,
    Said,
)
from tests.fleet.simulation import BrokenError
from tests.fleet.worker_model import Worker

TICK_S = 0.1
FAULTS_S = 40.0
SETTLE_S = 90.0


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
                process.tick()
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
