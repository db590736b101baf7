"""A registry under test: as a process of its own, or its parts in the test's loop.

In: addresses of real servers. Out: a running registry, and the bytes of small models.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from aiokafka import AIOKafkaConsumer, TopicPartition
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry
from sqlalchemy import select

from inferbus_dev.ports import free_port
from inferbus_kit.health import Health
from inferbus_kit.metrics import registry_metrics
from inferbus_registry import tables
from inferbus_registry.database import Database
from inferbus_registry.keys.service import KeyService
from inferbus_registry.leading import Leading
from inferbus_registry.migrate import migrate
from inferbus_registry.outbox.leader import Leader
from inferbus_registry.outbox.relay import Bus
from inferbus_registry.outbox.repository import MESSAGES
from inferbus_registry.placement.fleet import Fleet
from inferbus_schemas import access, topics
from tests.support import forkserver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping

START_TIMEOUT_S = 30.0
ADMIN_KEY = access.make_key(bytes(range(40)))
"""The admin key of every registry under test; its digest lies in its database."""
ADMIN = f"local/key:{access.key_id(ADMIN_KEY)}"
"""Its name in histories."""


def onnx_bytes(factor: float = 1.0) -> bytes:
    """Return a whole ONNX file that multiplies its input; equal factors give equal bytes."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    return bytes(helper.make_model(graph).SerializeToString())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(model: str, data: bytes, **changes: Any) -> dict[str, Any]:
    """Return a manifest for one ONNX file."""
    tensor = {"datatype": "FP32", "shape": [-1, 2]}
    return {
        "model": model,
        "task": "tensor",
        "engine": "onnx",
        "signature": {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]},
        "files": [{"path": "model.onnx", "sha256": sha256(data), "size_bytes": len(data)}],
        **changes,
    }


def write_folder(folder: Path, model: str, factor: float = 1.0) -> Path:
    """Write a model folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = onnx_bytes(factor)
    (folder / "model.onnx").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest(model, data)))
    return folder


def authorization(key: str | None) -> dict[str, str]:
    """Return the header that presents a key."""
    return {} if key is None else {"authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True)
class RegistryProcess:
    """A running `python -m inferbus_registry`."""

    process: forkserver.Forked
    url: str
    metrics_url: str
    objects: Path

    @property
    def client(self) -> httpx.Client:
        """A new client of its REST surface, with the admin key."""
        return self.client_of(ADMIN_KEY)

    def client_of(self, key: str | None) -> httpx.Client:
        """A new client with another key, or with none."""
        return httpx.Client(
            base_url=f"{self.url}/v1/registry",
            headers=authorization(key),
            timeout=30.0,
            trust_env=False,
        )

    def push(self, model: str, factor: float = 1.0, alias: str | None = None) -> dict[str, Any]:
        """Push a small version and return the registry's answer."""
        data = onnx_bytes(factor)
        with self.client as client:
            client.put(f"/blobs/{sha256(data)}", content=data).raise_for_status()
            answer = client.post(f"/models/{model}/versions", json=manifest(model, data))
            answer.raise_for_status()
            pushed: dict[str, Any] = answer.json()
            if alias is not None:
                wish = {"version": pushed["version"]}
                client.put(f"/models/{model}/aliases/{alias}", json=wish).raise_for_status()
        return pushed

    def metric(self, name: str) -> float:
        """Return one of its metrics without labels."""
        text = httpx.get(f"{self.metrics_url}/metrics", trust_env=False).text
        return float(next(x.split()[1] for x in text.splitlines() if x.startswith(f"{name} ")))


def is_problem(answer: httpx.Response, status: int, code: str) -> bool:
    """Check that an answer is a problem document of this status and code."""
    said = answer.json()
    assert (answer.status_code, said["code"], said["status"]) == (status, code, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert said["request_id"] == answer.headers["x-request-id"]
    assert said["title"]
    assert said["detail"]
    assert "Traceback" not in answer.text
    assert "/work" not in answer.text
    return True


@contextlib.contextmanager
def registry_process(
    kafka: str, postgres: str, *, wait: str = "/readyz", env: Mapping[str, str] | None = None
) -> Iterator[RegistryProcess]:
    """Migrate and run a registry until the block ends; it must then stop in order."""
    with tempfile.TemporaryDirectory(prefix="registry-test-") as folder:
        http_port = free_port(taken=set())
        metrics_port = free_port(taken={http_port})
        objects = Path(folder) / "objects"
        told = {
            **os.environ,
            "INFERBUS_KAFKA_BOOTSTRAP": kafka,
            "INFERBUS_POSTGRES_URL": postgres,
            "INFERBUS_OBJECT_STORE_URL": objects.as_uri(),
            "INFERBUS_STATE_DIR": folder,
            "INFERBUS_INSTANCE": f"registry-{http_port}",
            "INFERBUS_HTTP_PORT": str(http_port),
            "INFERBUS_METRICS_PORT": str(metrics_port),
            **(env or {}),
        }
        log = Path(folder) / "registry.log"
        process = forkserver.run("inferbus_registry", told, log)
        running = RegistryProcess(
            process, f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{metrics_port}", objects
        )
        try:
            wait_ok(f"{running.metrics_url}{wait}", process)
            yield running
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(20)
            sys.stdout.write(log.read_text())


def migrate_process(postgres: str) -> None:
    """Run `python -m inferbus_registry migrate admin-key`."""
    told = {"INFERBUS_POSTGRES_URL": postgres, "INFERBUS_ADMIN_KEY": ADMIN_KEY}
    with tempfile.NamedTemporaryFile() as log:
        words = ("migrate", "admin-key")
        process = forkserver.run(
            "inferbus_registry", {**os.environ, **told}, Path(log.name), arguments=words
        )
        assert process.wait() == 0, log.read()


def wait_ok(url: str, process: forkserver.Forked | None = None) -> None:
    """Wait until an address answers 200."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2.0, trust_env=False).status_code == 200:
                return
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the registry ended with {process.poll()}")
        time.sleep(0.1)
    raise AssertionError(f"{url} did not become ready")


@dataclass(slots=True)
class Parts:
    """The registry's database and leaders in the test's own loop, on topics of the test."""

    url: str
    bus: Bus
    heartbeats: str
    database: Database
    leaders: list[Leader] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    async def lead(self, instance: str = "r-0", check_s: float = 0.5) -> Leader:
        """Start a leader; it leads when no other does."""
        metrics = registry_metrics(CollectorRegistry())
        health = Health()
        fleet = Fleet(self.bus.bootstrap, self.heartbeats, f"{instance}-fleet")
        leading = Leading(
            self.bus,
            self.database,
            fleet,
            KeyService(self.database, "local"),
            instance=instance,
            health=health,
            metrics=metrics,
            check_s=check_s,
        )

        async def lead(session: Any) -> None:
            await fleet.start()
            try:
                await leading.lead(session)
            finally:
                await fleet.stop()

        leader = Leader(
            self.url, instance, lead, spawn=self._spawn, health=health, leading=metrics.leader
        )
        await leader.start()
        self.leaders.append(leader)
        return leader

    async def records(self, short: str) -> list[tuple[str, Any, Any]]:
        """Return key, message and headers of every record of a topic."""
        place = TopicPartition(self.bus.topics[short], 0)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bus.bootstrap, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            consumer.assign([place])
            end = (await consumer.end_offsets([place]))[place]
            found: list[tuple[str, Any, Any]] = []
            await consumer.seek_to_beginning(place)
            while await consumer.position(place) < end:
                for record in (await consumer.getmany(place, timeout_ms=500)).get(place, []):
                    kind = MESSAGES[short]
                    body = None if record.value is None else kind.FromString(record.value)
                    found.append((record.key.decode(), body, record.headers))
            return found
        finally:
            await consumer.stop()

    async def settled(self) -> None:
        """Wait until everything in the outbox is published."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                async with self.database.read() as tx:
                    cursor = await tx.scalar(select(tables.outbox_cursor.c.published_id))
                    end = await tx.scalar(
                        select(tables.outbox.c.id).order_by(tables.outbox.c.id.desc()).limit(1)
                    )
                if cursor == (end or 0):
                    return
                await asyncio.sleep(0.05)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)


@contextlib.asynccontextmanager
async def parts(kafka: str, names: Mapping[str, str], url: str) -> AsyncIterator[Parts]:
    """Yield the parts on a migrated database; leaders end with the block.

    Args:
        kafka: bootstrap address.
        names: real topic names by the catalogue's, from `servers.fresh_topics`.
        url: an empty database.
    """
    database = Database(url, "test")
    await migrate(database)
    bus = Bus(kafka, {short: names[topics.topic(short).name] for short in MESSAGES})
    made = Parts(url, bus, names[topics.topic(topics.HEARTBEATS).name], database)
    try:
        yield made
    finally:
        for leader in made.leaders:
            await leader.stop()
        await database.stop()
    assert not made.failures, made.failures
