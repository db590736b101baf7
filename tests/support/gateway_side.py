"""What stands around a gateway in its tests: a pool of its own, a deployed model, its workers.

In: a broker and a folder. Out: a model that is deployed, a worker that answers as the test says,
and every record of the prediction stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from inferbus_dev.topics import create_topics
from inferbus_kit.consume import PartitionReader, Record
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, membership, topics
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from tests.support.gateway_process import GatewayProcess, spawn
from tests.support.scripted_worker import Script, ScriptedWorker, doubler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

VERSION_SHA256 = bytes(range(32))
T = TypeVar("T")


@dataclass(slots=True)
class GatewaySide:
    """A deployed model of this test alone, its workers, its gateways and what the bus says."""

    bootstrap: str
    folder: Path
    signature: manifests.Signature = field(default_factory=doubler)
    pool: str = field(default_factory=lambda: f"g{secrets.token_hex(4)}")
    model: str = field(default_factory=lambda: f"m-{secrets.token_hex(4)}")
    version: int = 1
    manifest: dict[str, Any] = field(default_factory=dict)
    """What its manifest has beside the signature, or otherwise."""
    predictions: list[tuple[Record, m.Prediction]] = field(default_factory=list)
    all_predictions: list[tuple[Record, m.Prediction]] = field(default_factory=list)
    fleet: membership.Membership = field(default_factory=membership.Membership)
    _producer: Producer | None = None
    _beats: PartitionReader | None = None
    _cancellations: PartitionReader | None = None
    _stream: AIOKafkaConsumer | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _workers: list[ScriptedWorker] = field(default_factory=list)
    _gateways: list[GatewayProcess] = field(default_factory=list)

    @property
    def producer(self) -> Producer:
        assert self._producer is not None
        return self._producer

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    async def start(self) -> None:
        wanted = topics.to_create((self.pool,))
        await create_topics(
            self.bootstrap, [(t.name, t.partitions, t.replication, t.config) for t in wanted]
        )
        self._producer = Producer(self.bootstrap, client_id="gateway-test")
        await self._producer.start()
        await self._follow_heartbeats()
        await self._follow_predictions()
        await self._deploy()

    async def stop(self) -> None:
        for gateway in self._gateways:
            gateway.kill()
        for worker in self._workers:
            await worker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._beats is not None:
            await self._beats.stop()
        if self._cancellations is not None:
            await self._cancellations.stop()
        if self._stream is not None:
            await self._stream.stop()
        # What the session's later gateways need not see.
        await self.write(topics.DEPLOYMENTS, 0, self.model, None)
        await self.producer.stop()

    async def _follow_heartbeats(self) -> None:
        name = topics.topic(topics.HEARTBEATS).name
        self._beats = PartitionReader(self.bootstrap, name, 0, client_id="gateway-test")
        await self._beats.start()
        self._tasks.append(asyncio.create_task(self._read_beats(self._beats)))

    async def _read_beats(self, reader: PartitionReader) -> None:
        while True:
            for record in await reader.read(timeout_ms=100):
                self._apply_beat(record)

    async def cancelled(self) -> list[bytes]:
        """Return a list to which the ids of cancelled requests are added as they are read."""
        name, found = topics.topic(topics.CANCELLATIONS, self.pool).name, list[bytes]()
        reader = self._cancellations = PartitionReader(
            self.bootstrap, name, 0, client_id="gateway-test"
        )
        await reader.start()

        async def read() -> None:
            while True:
                for record in await reader.read(timeout_ms=100):
                    found.append(m.Cancellation.FromString(record.value or b"").id)

        self._tasks.append(asyncio.create_task(read()))
        return found

    async def _follow_predictions(self) -> None:
        """Read all reply partitions from their ends; one consumer does, nobody waits for it."""
        name = topics.topic(topics.PREDICTIONS).name
        n_partitions = await self.producer.n_partitions(name)
        self._stream = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, enable_auto_commit=False, auto_offset_reset="none"
        )
        await self._stream.start()
        self._stream.assign([TopicPartition(name, number) for number in range(n_partitions)])
        assert await self._stream.seek_to_end()
        self._tasks.append(asyncio.create_task(self._read_predictions(self._stream)))

    async def _read_predictions(self, stream: AIOKafkaConsumer) -> None:
        while True:
            for records in (await stream.getmany(timeout_ms=100)).values():
                for record in records:
                    self._apply_prediction(record)

    def _apply_beat(self, record: Record) -> None:
        beat = None if record.value is None else m.Heartbeat.FromString(record.value)
        key = (record.key or b"").decode()
        self.fleet.apply(key, beat, offset=record.offset, append_ms=record.timestamp)

    def _apply_prediction(self, record: Record) -> None:
        said = m.Prediction.FromString(record.value or b"")
        self.all_predictions.append((record, said))
        if said.model == self.model:
            self.predictions.append((record, said))

    async def write(
        self, topic: str, partition: int, key: str, value: bytes | None, ce_id: str = ""
    ) -> int:
        """Write a record of the catalogue's topic; return its offset."""
        entry = topics.topic(topic)
        head = envelope.headers(entry.ce_type, "/inferbus/test/side", ce_id or secrets.token_hex(8))
        done = await self.producer.send(
            entry.name, partition, value, key=key.encode(), headers=head
        )
        return int((await done).offset)

    async def _deploy(self) -> None:
        manifest = {
            "model": self.model,
            "task": "tensor",
            "engine": "onnx",
            "signature": msgspec.to_builtins(self.signature),
            "files": [{"path": "model.onnx", "sha256": "0" * 64, "size_bytes": 1}],
            **self.manifest,
        }
        version = m.ModelVersion(
            model=self.model,
            version=self.version,
            version_sha256=VERSION_SHA256,
            manifest=json.dumps(manifest).encode(),
            generation=1,
        )
        key = f"{self.model}/{self.version}"
        await self.write(topics.VERSIONS, 0, key, version.SerializeToString())
        said = m.Deployment(
            model=self.model,
            generation=1,
            aliases=[m.Alias(name="champion", wanted=self.version, serving=0)],
            pools=[m.PoolVersions(pool=self.pool, versions=[self.version], min_ready=1)],
        )
        await self.write(topics.DEPLOYMENTS, 0, self.model, said.SerializeToString())

    async def worker(self, script: Script, inbox: int = 0) -> ScriptedWorker:
        """Start a worker that answers by `script`."""
        made = ScriptedWorker(self, inbox, script)
        self._workers.append(made)
        await made.start()
        return made

    async def gateway(self, *, key: str = "", **env: str) -> GatewayProcess:
        """Start a gateway of this test alone and wait until it serves the model.

        Where a `key` is given, it asks everybody for one.
        """
        asking = {"INFERBUS_AUTH": "required"} if key else {}
        made = spawn(self.bootstrap, self.folder, **{**asking, **env})
        self._gateways.append(made)
        await self.serves(made, key)
        return made

    async def serves(self, gateway: GatewayProcess, key: str = "") -> None:
        """Wait until a gateway is ready and knows a worker that holds the model."""
        end_s = time.monotonic() + 40
        head = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(headers=head) as http:
            while True:
                assert gateway.process.poll() is None, gateway.log.read_text()[-3000:]
                with contextlib.suppress(httpx.TransportError):
                    ready = await http.get(f"{gateway.url}/v2/health/ready")
                    model = await http.get(f"{gateway.url}/v2/models/{self.model}/ready")
                    if ready.status_code == model.status_code == httpx.codes.OK:
                        return
                assert time.monotonic() < end_s, gateway.log.read_text()[-3000:]
                await asyncio.sleep(0.05)

    def records(self, request_id: str) -> list[m.Prediction]:
        """Return a request's records that were read so far, in the order of their partition."""
        wanted = bytes.fromhex(request_id.replace("-", ""))
        found = [(record.offset, said) for record, said in self.predictions if said.id == wanted]
        return [said for _, said in sorted(found, key=lambda one: one[0])]

    async def until_async(
        self,
        ask: Callable[[], Awaitable[T]],
        good: Callable[[T], bool],
        timeout_s: float = 15.0,
    ) -> T:
        """Ask until the answer is good and return it."""
        end_s = time.monotonic() + timeout_s
        while not good(said := await ask()):
            assert time.monotonic() < end_s, said
            await asyncio.sleep(0.02)
        return said

    async def until(self, what: Callable[[], Any], timeout_s: float = 15.0) -> Any:
        """Wait until `what()` is true and return it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (found := what()):  # noqa: ASYNC110 -- a plain poll is clearest
                    await asyncio.sleep(0.01)
                return found
        logs = "\n".join(one.log.read_text()[-3000:] for one in self._gateways)
        raise AssertionError(f"it did not happen in {timeout_s} s; the gateways said:\n{logs}")


@contextlib.asynccontextmanager
async def deployed(bootstrap: str, folder: Path, **more: Any) -> AsyncIterator[GatewaySide]:
    """Deploy a model of the test alone; what was started for it ends with the test."""
    made = GatewaySide(bootstrap, folder, **more)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
