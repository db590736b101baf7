"""The worker's inner loop without Kafka: frames in, batches through a real engine, records out.

Run: `python bench/worker_loop.py MODEL_FOLDER [--requests N] [--frame N] [--profile]`. Prints
microseconds per single-row request: wall clock, and CPU of the worker process and of its engine.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import resource
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from prometheus_client import CollectorRegistry

from inferbus_kit.metrics import worker_metrics
from inferbus_schemas import envelope, ids, topics
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_telemetry.spans import Tracing
from inferbus_worker.engines import golden
from inferbus_worker.engines.contract import EngineSpec
from inferbus_worker.engines.host import EngineHost
from inferbus_worker.engines.process import Death
from inferbus_worker.hot.consume import Desk
from inferbus_worker.hot.emit import Emitter, Served
from inferbus_worker.hot.execute import Executor, VersionMetrics
from inferbus_worker.hot.spans import Spans
from inferbus_worker.hot.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

TOPIC = topics.topic(topics.REQUESTS, "default")


class NoKafka:
    """Acknowledges every record in the next turn of the loop."""

    def __init__(self) -> None:
        self.n_bytes = 0

    async def send_many(
        self, _topic: str, _partition: int, records: Sequence[Any]
    ) -> asyncio.Future[Any]:
        done = asyncio.get_running_loop().create_future()
        self.n_bytes += sum(len(record.value) for record in records)
        done.get_loop().call_soon(done.set_result, None)
        return done


class NoLetters:
    """Expects no request that kills an engine."""

    def poison(self, work: Work, _death: asyncio.Future[Death]) -> None:
        raise AssertionError(work.request.model)


@dataclass
class Source:
    """The side of an inbox that executors see."""

    n_frames_done: int = 0

    def frame_done(self, _offset: int) -> None:
        self.n_frames_done += 1


@dataclass
class Record:
    """A record as aiokafka gives it."""

    value: bytes
    offset: int
    timestamp: int
    headers: tuple[tuple[str, bytes], ...]
    partition: int = 0


def frames(tensors: bytes, model: str, n_requests: int, n_frame: int) -> list[Record]:
    """Return records that hold `n_requests` requests."""
    now_ms = int(time.time() * 1000)
    head = tuple(envelope.headers(TOPIC.ce_type, "/inferbus/gateway/bench", "1"))
    out = []
    for offset in range(n_requests // n_frame):
        requests = [
            m.Request(
                id=ids.uuid7(now_ms, secrets.randbits(74)),
                tenant="default",
                model=model,
                version=1,
                reply_partition=3,
                ttl_ms=600_000,
                attempt=1,
                may_retry=True,
                tensors=tensors,
            )
            for _ in range(n_frame)
        ]
        value = m.RequestFrame(gateway="bench", requests=requests).SerializeToString()
        out.append(Record(value, offset, now_ms, head))
    return out


async def run(folder: Path, n_requests: int, n_frame: int, *, profile: bool) -> None:
    """Measure once."""
    raw = (folder / manifests.MANIFEST_NAME).read_bytes()
    manifest = manifests.parse(raw)
    metrics = worker_metrics(CollectorRegistry())
    sender = NoKafka()
    emitter = Emitter(sender, "bench")
    desk = Desk(emitter, metrics, lambda: 0.0, TOPIC.ce_type)
    executor = Executor(
        manifest,
        Served(b"x" * 32),
        emitter=emitter,
        letters=NoLetters(),
        metrics=VersionMetrics(metrics, manifest.model, 1),
        spans=Spans(Tracing("worker", "bench", ""), TOPIC.name),
    )
    with tempfile.TemporaryDirectory() as scratch:
        host = EngineHost(EngineSpec(manifest, raw, folder, Path(scratch), 1, 0), executor)
        executor.attach(host)
        await host.start()
        desk.executors[manifest.model, 1] = executor
        sample = golden.inputs_of(manifest.golden[0], manifest.signature.inputs)
        tensors = m.TensorSet(
            tensors=[
                m.Tensor(name=head.name, datatype=head.datatype, shape=head.shape, data=data)
                for head, data in zip(sample.heads, sample.buffers, strict=True)
            ]
        ).SerializeToString()
        await measure(desk, frames(tensors, manifest.model, 2048, n_frame))
        records = frames(tensors, manifest.model, n_requests, n_frame)
        engine_cpu_s = _cpu_s(host.pid)
        profiler = cProfile.Profile() if profile else None
        cpu_s = _own_cpu_s()
        started_s = time.perf_counter()
        if profiler is not None:
            profiler.enable()
        await measure(desk, records)
        if profiler is not None:
            profiler.disable()
        wall_s = time.perf_counter() - started_s
        n = len(records) * n_frame
        print(
            f"{manifest.model}: {n} single-row requests in frames of {n_frame}: "
            f"{wall_s / n * 1e6:.1f} us wall each ({n / wall_s:,.0f}/s); CPU: worker "
            f"{(_own_cpu_s() - cpu_s) / n * 1e6:.1f} us, engine "
            f"{(_cpu_s(host.pid) - engine_cpu_s) / n * 1e6:.1f} us"
        )
        if profiler is not None:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
        await emitter.stop()
        await host.stop()


async def measure(desk: Desk, records: list[Record]) -> None:
    """Feed the records as polls would, a few frames at a time, until all are answered."""
    source = Source()
    at = 0
    while at < len(records) or source.n_frames_done < len(records):
        if at < len(records) and desk.n_open < 1024:
            now_s, now_ms = time.monotonic(), time.time() * 1000
            touched: set[Executor] = set()
            for record in records[at : at + 4]:
                touched |= desk.take(record, desk.decode(record), source, now_s, now_ms)  # type: ignore[arg-type]
            at += 4
            for executor in touched:
                executor.pump(now_s)
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.0002)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=65_536)
    parser.add_argument("--frame", type=int, default=16)
    parser.add_argument("--profile", action="store_true")
    told = parser.parse_args()
    uvloop.run(run(told.folder.resolve(), told.requests, told.frame, profile=told.profile))


if __name__ == "__main__":
    main()
