"""The whole of Inferbus on one machine, as an async Python API.

In: a state folder and what to start. Out: a running stack with its addresses, of which tests and
tools may stop, kill, restart or add single processes.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

from inferbus_dev import first_key, infra, postgres, services, state
from inferbus_dev.errors import LauncherError
from inferbus_dev.paths import cache_dir
from inferbus_dev.process import start_time
from inferbus_dev.progress import Report, Silent
from inferbus_dev.seating import DEFAULT_PORT_BASE, Seating
from inferbus_dev.supervisor import Supervisor

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping
    from pathlib import Path

    from inferbus_dev.process import Child
    from inferbus_dev.supervisor import Member

EVERYTHING = frozenset({*state.SERVERS, *services.ROLES})


class Stack:
    """Kafka, Postgres, Valkey and the services of one state folder.

    Invariants: while started it owns its folder; `stack.json` names every process that runs;
    after `stop`, also after a failed `start`, no process is left.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        port_base: int = DEFAULT_PORT_BASE,
        only: set[str] | frozenset[str] | None = None,
        free_ports: bool = False,
        n_workers: int = 1,
        n_gateways: int = 1,
        env: Mapping[str, str] | None = None,
        kafka_bootstrap: str | None = None,
        postgres_url: str | None = None,
        valkey_url: str | None = None,
        java: Path | None = None,
        cache: Path | None = None,
        report: Report | None = None,
    ) -> None:
        self.roles = frozenset(only) if only is not None else EVERYTHING
        if unknown := self.roles - EVERYTHING:
            raise LauncherError(
                f"There is no part called {', '.join(sorted(unknown))}: choose from "
                f"{', '.join(sorted(EVERYTHING))}."
            )
        self._path = state_dir.resolve()
        self._counts = {"worker": n_workers, "gateway": n_gateways}
        self._env = dict(env or {})
        self._kafka_bootstrap = kafka_bootstrap
        self._postgres_url = postgres_url
        self._valkey_url = valkey_url
        self._java = java
        self._cache = cache or cache_dir(os.environ)
        self.report: Report = report or Silent()
        self._seating = Seating(None if free_ports else port_base)
        self._state: state.StateDir | None = None
        self._seats: dict[str, services.Seat] = {}
        self.supervisor = Supervisor(self._record)
        self.kafka = kafka_bootstrap or ""
        self.postgres = postgres_url or ""
        self.valkey = valkey_url or ""

    @property
    def http(self) -> str:
        """The address of the first gateway."""
        return self._seats["gateway-0"].http_url

    @property
    def gateways(self) -> tuple[str, ...]:
        """The addresses of all gateways."""
        return tuple(seat.http_url for seat in self._seats.values() if seat.role.name == "gateway")

    @property
    def grpc(self) -> str:
        """The first gateway's address for gRPC, host:port."""
        return self._seats["gateway-0"].grpc

    @property
    def registry(self) -> str:
        """The address of the control plane."""
        return self._seats["registry-0"].http_url

    @property
    def api_key(self) -> str:
        """The admin key of this stack; made with its folder, and kept in it."""
        return self._folder.admin_key()

    @property
    def logs(self) -> Path:
        """The folder of all processes' output."""
        return self._folder.logs

    @property
    def models_dir(self) -> Path:
        """The folder of built sample models; runs share it."""
        return self._cache / "models"

    def metrics_ports(self) -> list[int]:
        """Return the port of each service's /livez, /readyz and /metrics."""
        return [seat.metrics_port for seat in self._seats.values()]

    def addresses(self) -> dict[str, str]:
        """Return where things are, for people; servers without their passwords."""
        said = {}
        if "gateway-0" in self._seats:
            said["HTTP"] = self.http
            said["gRPC"] = self.grpc
            said["metrics"] = self._seats["gateway-0"].metrics_url + "/metrics"
        if "registry-0" in self._seats:
            said["control plane"] = self.registry
            said["API key"] = self.api_key
        if self.kafka:
            said["Kafka"] = self.kafka
        if self.postgres:
            said["Postgres"] = self.postgres.rpartition("@")[2]
        if self.valkey:
            said["Valkey"] = self.valkey.rpartition("@")[2]
        return said

    @property
    def metrics(self) -> dict[str, str]:
        """The metrics addresses of all services, by process name."""
        return {name: seat.metrics_url for name, seat in self._seats.items()}

    async def start(self) -> None:
        """Start everything that was asked for and return when all of it serves."""
        self._check_choice()
        try:
            await self._take_folder()
            self._seating.check(self.roles)
            for role in self._wanted():
                for index in range(self._counts.get(role.name, 1)):
                    self._take_seat(role, index)
            self.report.plan(self._steps())
            await self._start_servers()
            await infra.together(*(self._start_service(name) for name in list(self._seats)))
            if "registry-0" in self._seats and await first_key.is_dead(self.registry, self.api_key):
                await self._make_key(self._seats["registry-0"].role)
            self._record()
        except BaseException:
            await self.stop()
            raise

    async def start_infra(self) -> None:
        """Start the servers and make the topics, and no service."""
        self.roles &= frozenset(state.SERVERS)
        await self.start()

    async def stop(self) -> None:
        """Stop all in order: gateways first, the servers last."""
        if self._state is None:
            return
        for role in services.STOP_ORDER:
            names = [name for name, one in self._members() if one.spec.role == role]
            if names:
                with self.report.step(f"stop {role}"):
                    await self.supervisor.stop(names)
        self._seats.clear()
        self._state.clear()
        self._state.close()
        self._state = None

    def process(self, role: str, index: int = 0) -> Child:
        """Return the running process of a role; raises KeyError when it does not run."""
        child = self.supervisor.members[f"{role}-{index}"].child
        if child is None or not child.alive:
            raise KeyError(f"{role}-{index}")
        return child

    def kill(self, role: str, index: int, number: signal.Signals) -> int:
        """Send a signal to a process and return its pid; the supervisor restarts what ends."""
        pid = self.process(role, index).pid
        self.supervisor.signal(f"{role}-{index}", number)
        return pid

    async def wait_ready(self, role: str, index: int = 0) -> None:
        """Wait until a process is ready, for example after `kill`."""
        await self.supervisor.wait_ready(f"{role}-{index}")

    async def restart(self, role: str, index: int = 0) -> None:
        """Stop a process in order and start it again with the same ports and folder."""
        await self.supervisor.restart(f"{role}-{index}")

    async def remove(self, role: str, index: int) -> None:
        """Stop one process in order and do not start it again."""
        await self.supervisor.stop([f"{role}-{index}"])
        self._seats.pop(f"{role}-{index}", None)
        self._record()

    async def add(self, role: str) -> int:
        """Start one more process of a service and return its index."""
        taken = {one.spec.index for _, one in self._members() if one.spec.role == role}
        index = next(number for number in range(len(taken) + 1) if number not in taken)
        await self._start_service(self._take_seat(services.ROLES[role], index))
        return index

    def _members(self) -> list[tuple[str, Member]]:
        return list(self.supervisor.members.items())

    @property
    def _folder(self) -> state.StateDir:
        if self._state is None:
            raise LauncherError("The stack is not started.")
        return self._state

    @property
    def _own_kafka(self) -> bool:
        return "kafka" in self.roles and self._kafka_bootstrap is None

    @property
    def _own_postgres(self) -> bool:
        return "postgres" in self.roles and self._postgres_url is None

    @property
    def _own_valkey(self) -> bool:
        return "valkey" in self.roles and self._valkey_url is None

    def _preparing(self) -> list[services.Role]:
        return [role for role in self._wanted() if role.prepare]

    def _wanted(self) -> list[services.Role]:
        return [role for role in services.ROLES.values() if role.name in self.roles]

    def _check_choice(self) -> None:
        """Services need servers: ours or ones that the user named."""
        lacking = [
            f"{server} (or {variable})"
            for server, given, variable in (
                ("kafka", self._kafka_bootstrap, "INFERBUS_KAFKA_BOOTSTRAP"),
                ("postgres", self._postgres_url, "INFERBUS_POSTGRES_URL"),
            )
            if server not in self.roles and given is None
        ]
        if self._wanted() and lacking:
            raise LauncherError(
                f"The services need {' and '.join(lacking)}: add what is missing to --only."
            )

    async def _take_folder(self) -> None:
        self._state = await asyncio.to_thread(state.StateDir.open, self._path)
        left = await asyncio.to_thread(self._state.end_leftovers)
        if left:
            names = ", ".join(f"{one.role}-{one.index} (pid {one.pid})" for one in left)
            self.report.note(f"An earlier launcher was killed; ended what it left: {names}")
        self._state.logs.mkdir(exist_ok=True)
        self._state.objects.mkdir(exist_ok=True)

    def _steps(self) -> list[str]:
        return [
            *infra.steps(
                own_kafka=self._own_kafka,
                any_kafka=self._own_kafka or self._kafka_bootstrap is not None,
                own_postgres=self._own_postgres,
                own_valkey=self._own_valkey,
            ),
            *(f"{role.name} tables" for role in self._preparing()),
            *(_start_step(name) for name in self._seats),
        ]

    async def _start_servers(self) -> None:
        builder = infra.Infra(
            state=self._folder,
            supervisor=self.supervisor,
            report=self.report,
            cache=self._cache,
            java=self._java,
            taken=self._seating.taken,
        )
        await infra.together(
            self._bring_kafka(builder), self._bring_postgres(builder), self._bring_valkey(builder)
        )

    async def _bring_kafka(self, builder: infra.Infra) -> None:
        if self._own_kafka:
            self.kafka = await builder.start_kafka()
            self._record()
        if self.kafka:
            await builder.make_topics(self.kafka)

    async def _bring_postgres(self, builder: infra.Infra) -> None:
        if self._own_postgres:
            self.postgres = await builder.start_postgres()
            self._record()
        await self._prepare()

    async def _bring_valkey(self, builder: infra.Infra) -> None:
        if self._own_valkey:
            self.valkey = await builder.start_valkey()
            self._record()

    async def _prepare(self) -> None:
        """Make the tables; those that are noted in our own Postgres as made are not asked again.

        Two processes that find nothing to do cost a tenth of a later start.
        """
        if not self._preparing():
            return
        place = self._place()
        wanted = {one.name: services.preparation(one, place) for one in self._preparing()}
        noted = json.loads(await postgres.note(self.postgres) or "{}") if self._own_postgres else {}

        async def make(role: services.Role) -> None:
            with self.report.step(f"{role.name} tables"):
                if noted.get(role.name) == wanted[role.name]:
                    return
                try:
                    await services.prepare(role, place, self._folder.log(f"{role.name}-migrate"))
                except services.FirstKeyError:
                    await self._make_key(role)

        await infra.together(*(make(role) for role in self._preparing()))
        if self._own_postgres and noted != (found := {**noted, **wanted}):
            await postgres.set_note(self.postgres, json.dumps(found))

    async def _make_key(self, role: services.Role) -> None:
        self._folder.forget_admin_key()
        await services.prepare(role, self._place(), self._folder.log(f"{role.name}-migrate"))
        self.report.note(first_key.MADE)

    async def _start_service(self, name: str) -> None:
        seat = self._seats[name]
        with self.report.step(_start_step(name)):
            await self.supervisor.start(services.child(seat, self._place()))

    def _take_seat(self, role: services.Role, index: int) -> str:
        name = f"{role.name}-{index}"
        listens = self._seating.of(role, index)
        self._seats[name] = services.Seat(
            role=role,
            index=index,
            metrics_port=listens.metrics,
            http_port=listens.http,
            grpc_port=listens.grpc,
            private=self._folder.private(name),
            log=self._folder.log(name),
        )
        return name

    def _place(self) -> services.Place:
        return services.Place(
            kafka=self.kafka,
            postgres_url=self.postgres,
            valkey_url=self.valkey,
            objects=self._folder.objects,
            registry_url=self.registry if "registry-0" in self._seats else "",
            admin_key=self.api_key,
            extra=self._env,
        )

    def _record(self) -> None:
        """Write `stack.json` anew: an address or a process has changed."""
        if self._state is None:
            return
        addresses: dict[str, str] = {}
        if "gateway-0" in self._seats:
            addresses["http"] = self.http
            addresses["grpc"] = self.grpc
            addresses["metrics"] = self._seats["gateway-0"].metrics_url
        if "registry-0" in self._seats:
            addresses["registry"] = self.registry
            addresses["api_key"] = self.api_key
        running = [state.Running("launcher", 0, os.getpid(), start_time(os.getpid()))]
        for _, member in self._members():
            if (child := member.child) is not None and child.alive:
                spec = member.spec
                url = self.metrics.get(spec.name, "")
                running.append(state.Running(spec.role, spec.index, child.pid, child.started, url))
        servers = {"kafka": self.kafka, "postgres": self.postgres, "valkey": self.valkey}
        self._state.write({**addresses, **servers}, running)


def _start_step(name: str) -> str:
    return f"start {name.removesuffix('-0')}"
