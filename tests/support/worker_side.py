"""What stands around a worker in its tests: a pool of its own, its process, a hand-driven gateway.

In: a broker and a folder. Out: real versions in a real store, frames in inboxes, records read back
from the prediction stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferbus_dev.topics import create_topics
from inferbus_kit.consume import PartitionReader, Record
from inferbus_kit.produce import Producer
from inferbus_schemas import envelope, ids, membership, tensors, topics
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from tests.support import forkserver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPLY_PARTITION = 3


def tensor_set(*given: tuple[str, str, Sequence[int], bytes]) -> bytes:
    """Return a serialised TensorSet."""
    return m.TensorSet(
        tensors=[
            m.Tensor(name=name, datatype=datatype, shape=shape, data=data)
            for name, datatype, shape, data in given
        ]
    ).SerializeToString()


def golden_request(golden: manifests.Golden) -> bytes:
    """Return the inputs of a golden sample as a request's tensors."""
    import numpy as np  # noqa: PLC0415 -- only where a model is asked

    kinds = {"FP32": np.float32, "INT64": np.int64}
    return tensor_set(
        *(
            (
                one.name,
                one.datatype,
                one.shape,
                tensors.join_bytes(str(text).encode() for text in one.data)
                if one.datatype == "BYTES"
                else np.array(one.data, kinds[one.datatype]).tobytes(),
            )
            for one in golden.inputs
        )
    )


def request(model: str, version: int, raw: bytes, **fields: Any) -> m.Request:
    """Return a request as a gateway makes one."""
    said: dict[str, Any] = {
        "id": ids.uuid7(int(time.time() * 1000), secrets.randbits(74)),
        "tenant": "default",
        "model": model,
        "version": version,
        "reply_partition": REPLY_PARTITION,
        "ttl_ms": 30_000,
        "attempt": 1,
        "may_retry": True,
        "tensors": raw,
    }
    return m.Request(**(said | fields))


@dataclass(slots=True)
class WorkerProcess:
    """A worker in a process of its own."""

    process: forkserver.Forked
    instance: str
    log: Path

    def stop(self, timeout_s: float = 30.0) -> int:
        """End it as a supervisor does; return its exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        self.process.kill()

    def engines(self) -> list[int]:
        """Return the process ids of its engines."""
        out = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(line) for line in out.stdout.split()]


@dataclass(slots=True)
class Side:
    """A pool with a store, a producer, and readers of what the workers say."""

    bootstrap: str
    folder: Path
    pool: str = field(default_factory=lambda: f"w{secrets.token_hex(4)}")
    fleet: membership.Membership = field(default_factory=membership.Membership)
    predictions: list[tuple[Record, m.Prediction]] = field(default_factory=list)
    chunks: list[m.TokenChunk] = field(default_factory=list)
    _producer: Producer | None = None
    _readers: list[PartitionReader] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _workers: list[WorkerProcess] = field(default_factory=list)

    @property
    def producer(self) -> Producer:
        assert self._producer is not None
        return self._producer

    @property
    def store(self) -> Path:
        return self.folder / "objects"

    async def start(self) -> None:
        wanted = topics.to_create((self.pool,))
        await create_topics(
            self.bootstrap, [(t.name, t.partitions, t.replication, t.config) for t in wanted]
        )
        self._producer = Producer(self.bootstrap, client_id="worker-test")
        await self._producer.start()
        for topic, partition, start, apply in (
            (topics.HEARTBEATS, 0, "earliest", self._apply_beat),
            (topics.PREDICTIONS, REPLY_PARTITION, "end", self._apply_prediction),
            (topics.TOKENS, REPLY_PARTITION, "end", self._apply_chunk),
        ):
            await self.follow(topics.topic(topic).name, partition, start, apply)

    async def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
        for task in self._tasks:
            task.cancel()
        for reader in self._readers:
            await reader.stop()
        await self.producer.stop()

    async def follow(
        self, topic: str, partition: int, start: Any, apply: Callable[[Record], None]
    ) -> None:
        """Give each record of a topic's partition to `apply`."""
        reader = PartitionReader(
            self.bootstrap,
            topic,
            partition,
            client_id="worker-test",
            start=start,
        )
        await reader.start()
        self._readers.append(reader)

        async def follow() -> None:
            while True:
                for record in await reader.read(timeout_ms=100):
                    apply(record)

        self._tasks.append(asyncio.create_task(follow()))

    def _apply_beat(self, record: Record) -> None:
        beat = None if record.value is None else m.Heartbeat.FromString(record.value)
        self.fleet.apply(
            (record.key or b"").decode(), beat, offset=record.offset, append_ms=record.timestamp
        )

    def _apply_prediction(self, record: Record) -> None:
        self.predictions.append((record, m.Prediction.FromString(record.value or b"")))

    def _apply_chunk(self, record: Record) -> None:
        self.chunks.append(m.TokenChunk.FromString(record.value or b""))

    def chunks_of(self, request_id: bytes) -> list[m.TokenChunk]:
        """Return the token chunks of a request that were read so far, in their order."""
        return [chunk for chunk in self.chunks if chunk.id == request_id]

    async def cancel(self, request_id: bytes) -> None:
        """Say, as a gateway does, that nobody waits for a request."""
        entry = topics.topic(topics.CANCELLATIONS, self.pool)
        value = m.Cancellation(id=request_id, reason="client_left").SerializeToString()
        head = envelope.headers(entry.ce_type, "/inferbus/gateway/test", secrets.token_hex(8))
        await (await self.producer.send(entry.name, 0, value, headers=head))

    def spawn(self, instance: str | None = None, **env: str) -> WorkerProcess:
        """Start a worker of this pool."""
        name = instance or f"worker-{secrets.token_hex(3)}"
        state = self.folder / name
        state.mkdir(exist_ok=True)
        log = self.folder / f"{name}.log"
        told = {
            **os.environ,
            "INFERBUS_KAFKA_BOOTSTRAP": self.bootstrap,
            "INFERBUS_OBJECT_STORE_URL": self.store.as_uri(),
            "INFERBUS_STATE_DIR": str(state),
            "INFERBUS_INSTANCE": name,
            "INFERBUS_POOL": self.pool,
            **env,
        }
        process = forkserver.run("inferbus_worker", told, log)
        worker = WorkerProcess(process, name, log)
        self._workers.append(worker)
        return worker

    def publish_files(self, folder: Path) -> manifests.Manifest:
        """Put a model folder's files into the store; return its manifest."""
        manifest = manifests.parse((folder / manifests.MANIFEST_NAME).read_bytes())
        for entry in manifest.files:
            blob = self.store / "cas" / "sha256" / entry.sha256[:2] / entry.sha256
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / entry.path, blob)
        return manifest

    async def register(self, model: str, version: int, manifest: manifests.Manifest) -> None:
        """Publish a version as the registry does."""
        said = m.ModelVersion(
            model=model,
            version=version,
            version_sha256=bytes.fromhex(manifests.version_sha256(manifest)),
            manifest=manifests.encode(manifest),
            generation=1,
        )
        await self._write(topics.VERSIONS, f"{model}/{version}", said.SerializeToString())

    async def deploy(self, model: str, versions: Sequence[int], generation: int) -> None:
        """Publish desired state as the registry does."""
        said = m.Deployment(
            model=model,
            generation=generation,
            pools=[m.PoolVersions(pool=self.pool, versions=versions, min_ready=1)],
        )
        await self._write(topics.DEPLOYMENTS, model, said.SerializeToString())

    async def beat_as_gateway(
        self, model: str, acts_on: int, pinned: Sequence[int], job_version: int = 0
    ) -> None:
        """Beat once as a gateway that acts on a generation and pins these versions.

        Where it is given, an unfinished job is pinned to `job_version`.
        """
        held = [m.JobVersion(pool=self.pool, model=model, version=job_version)]
        said = m.Heartbeat(
            instance=f"gateway-{self.pool}",
            state=m.STATE_ACTIVE,
            gateway=m.GatewayBeat(
                models=[m.GatewayModel(model=model, generation=acts_on, pinned=pinned)],
                job_versions=held if job_version else [],
            ),
            life=1,
        )
        await self._write(topics.HEARTBEATS, f"gateway/{said.instance}", said.SerializeToString())

    async def _write(self, topic: str, key: str, value: bytes) -> None:
        entry = topics.topic(topic)
        head = envelope.headers(entry.ce_type, "/inferbus/registry/test", key)
        await (await self.producer.send(entry.name, 0, value, key=key.encode(), headers=head))

    async def send(self, inbox: int, *requests: m.Request, raw: bytes | None = None) -> int:
        """Write one frame, or these bytes; return its offset."""
        entry = topics.topic(topics.REQUESTS, self.pool)
        value = m.RequestFrame(gateway="test", requests=requests).SerializeToString()
        head = envelope.headers(entry.ce_type, "/inferbus/gateway/test", secrets.token_hex(8))
        done = await self.producer.send(
            entry.name, inbox, value if raw is None else raw, headers=head
        )
        return int((await done).offset)

    async def until(self, what: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        """Wait until `what()` is true and return it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (found := what()):  # noqa: ASYNC110 -- a plain poll is clearest
                    await asyncio.sleep(0.01)
                return found
        logs = "\n".join(w.log.read_text()[-3000:] for w in self._workers)
        raise AssertionError(f"it did not happen in {timeout_s} s; the workers said:\n{logs}")

    async def inbox_of(self, model: str, version: int) -> int:
        """Wait for a live worker that has the version READY; return its inbox."""
        found = await self.until(lambda: self.fleet.holders(self.pool, model, version))
        return int(found[0].inbox)

    def answers(self, request_id: bytes) -> list[m.Prediction]:
        """Return all records of a request that were read so far."""
        return [said for _, said in self.predictions if said.id == request_id]

    async def answer(self, request_id: bytes, timeout_s: float = 30.0) -> m.Prediction:
        """Wait for a request's first record."""
        found = await self.until(lambda: self.answers(request_id), timeout_s)
        said: m.Prediction = found[0]
        return said
