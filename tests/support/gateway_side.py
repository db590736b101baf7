"""What stands around a gateway in its tests: a pool of its own, its process, a scripted worker.

In: a broker and a folder. Out: a model that is deployed, a worker that answers as the test says,
and every record of the prediction stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
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
from inferbus_schemas import envelope, ids, membership, tensors, topics
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

VERSION_SHA256 = bytes(range(32))
T = TypeVar("T")


def doubler() -> manifests.Signature:
    """Return a signature of one FP32 input and one FP32 output of three columns."""
    return manifests.Signature(
        inputs=(manifests.TensorSpec("x", "FP32", (-1, 3)),),
        outputs=(manifests.TensorSpec("y", "FP32", (-1, 3)),),
    )


def rows(*data: Sequence[float], **more: Any) -> dict[str, Any]:
    """Return the body of a request for `doubler`."""
    flat = [value for row in data for value in row]
    one = {"name": "x", "datatype": "FP32", "shape": [len(data), 3], "data": flat}
    return {"inputs": [one], **more}


def prediction(
    request: m.Request, outcome: m.Outcome = m.OUTCOME_OK, **fields: Any
) -> m.Prediction:
    """Return the record that answers a request; an OK one gives the inputs back as `y`."""
    said = m.Prediction(
        id=request.id,
        attempt=request.attempt,
        outcome=outcome,
        tenant=request.tenant,
        model=request.model,
        version=request.version,
        served_by="scripted",
        client_request_id=request.client_request_id,
        **fields,
    )
    if outcome == m.OUTCOME_OK:
        given = m.TensorSet.FromString(request.tensors).tensors
        out = [
            m.Tensor(name="y", datatype=one.datatype, shape=one.shape, data=one.data)
            for one in given
        ]
        said.outputs = m.TensorSet(tensors=out).SerializeToString()
        said.output_sha256 = tensors.output_sha256(out)
    return said


class ScriptedWorker:
    """Owns an inbox, says that it is READY, and answers by a script.

    Invariants: it beats four times a second until `stop`; `frames` and `requests` hold all that it
    read; what the script returns is written in that order to the request's reply partition.
    """

    def __init__(self, side: GatewaySide, inbox: int, script: Any) -> None:
        self._side = side
        self.inbox = inbox
        self.script = script
        self.frames: list[m.RequestFrame] = []
        self.requests: list[m.Request] = []
        self.epoch = 1
        self.state = m.STATE_ACTIVE
        self.end_offset = 0
        self.backlog_rows = 0
        self._life = secrets.randbits(60)
        self._tasks: list[asyncio.Task[None]] = []
        self._reader: PartitionReader | None = None

    async def start(self) -> None:
        topic = topics.topic(topics.REQUESTS, self._side.pool).name
        self._reader = PartitionReader(
            self._side.bootstrap, topic, self.inbox, client_id="scripted", start="earliest"
        )
        await self._reader.start()
        await self.beat()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._read())]

    async def stop(self) -> None:
        """Fall silent, as a killed worker does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._reader is not None:
            await self._reader.stop()

    async def release(self, end_offset: int) -> None:
        """Give the inbox up, read up to `end_offset`."""
        self.state, self.end_offset = m.STATE_RELEASED, end_offset
        await self.beat()

    async def beat(self) -> None:
        side = self._side
        resident = m.Resident(
            model=side.model, version=side.version, readiness=m.READINESS_READY, generation=1
        )
        said = m.Heartbeat(
            instance=f"scripted-{self.inbox}",
            state=self.state,
            life=self._life,
            worker=m.WorkerBeat(
                pool=side.pool,
                inbox=self.inbox,
                epoch=self.epoch,
                end_offset=self.end_offset,
                backlog_rows=self.backlog_rows,
                residents=[resident],
            ),
        )
        key = membership.inbox_key(side.pool, self.inbox)
        await side.write(topics.HEARTBEATS, 0, key, said.SerializeToString())

    async def answer(self, *said: m.Prediction, partition: int) -> int:
        """Write records to a reply partition; return the last one's offset."""
        offset = -1
        for one in said:
            name, raw = f"{ids.text(one.id)}/{one.attempt}", one.SerializeToString()
            offset = await self._side.write(topics.PREDICTIONS, partition, one.model, raw, name)
        return offset

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            await self.beat()

    async def _read(self) -> None:
        assert self._reader is not None
        while True:
            for record in await self._reader.read(timeout_ms=100):
                frame = m.RequestFrame.FromString(record.value or b"")
                self.frames.append(frame)
                for request in frame.requests:
                    self.requests.append(request)
                    await self.answer(*self.script(request), partition=request.reply_partition)


@dataclass(slots=True)
class GatewayProcess:
    """A gateway in a process of its own."""

    process: subprocess.Popen[bytes]
    instance: str
    port: int
    metrics_port: int
    grpc_port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, timeout_s: float = 40.0) -> int:
        """End it as a supervisor does; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@dataclass(slots=True)
class GatewaySide:
    """A deployed model of this test alone, its workers, its gateways and what the bus says."""

    bootstrap: str
    folder: Path
    signature: manifests.Signature = field(default_factory=doubler)
    pool: str = field(default_factory=lambda: f"g{secrets.token_hex(4)}")
    model: str = field(default_factory=lambda: f"m-{secrets.token_hex(4)}")
    version: int = 1
    predictions: list[tuple[Record, m.Prediction]] = field(default_factory=list)
    all_predictions: list[tuple[Record, m.Prediction]] = field(default_factory=list)
    fleet: membership.Membership = field(default_factory=membership.Membership)
    _producer: Producer | None = None
    _beats: PartitionReader | None = None
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

    async def worker(self, script: Any, inbox: int = 0) -> ScriptedWorker:
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


def spawn(bootstrap: str, folder: Path, **env: str) -> GatewayProcess:
    """Start a gateway in a process of its own."""
    name = f"gateway-{secrets.token_hex(3)}"
    port, metrics_port, grpc_port = free_port(), free_port(), free_port()
    log = folder / f"{name}.log"
    told = {
        **os.environ,
        "INFERBUS_KAFKA_BOOTSTRAP": bootstrap,
        "INFERBUS_STATE_DIR": str(folder),
        "INFERBUS_INSTANCE": name,
        "INFERBUS_HTTP_PORT": str(port),
        "INFERBUS_METRICS_PORT": str(metrics_port),
        "INFERBUS_AUTH": "local",
        "INFERBUS_SUBMISSION_TENANTS": "",
        "INFERBUS_GRPC_PORT": str(grpc_port),
        **env,
    }
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferbus_gateway"], env=told, stdout=out, stderr=out
        )
    return GatewayProcess(process, name, port, metrics_port, grpc_port, log)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
