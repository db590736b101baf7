"""The gateway's hot path without Kafka: HTTP in, frames out, records in, HTTP out.

Run: `python bench/gateway_loop.py [--connections N] [--seconds S] [--profile] [--binary]
[--direct]`. One process is the gateway, with its real listener, parser, pending map, frames and
answers; only the bus is played, by this process, whose time for that is taken off. Another one
asks; with `--direct` nobody does: the app is called in a loop, so that what HTTP costs is left out
and the figure hardly depends on what else the machine does. Prints microseconds of the gateway's
CPU per request.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import resource
import struct
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from inferbus_gateway.api.v2 import make_app
from inferbus_gateway.api.views import Views
from inferbus_gateway.app import front_door, side_door
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.incoming import Bodies
from inferbus_gateway.hot.infer import Infer
from inferbus_gateway.hot.limits import Limits
from inferbus_gateway.hot.pending import Pending
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.publish import Publisher
from inferbus_gateway.hot.replies import Replies
from inferbus_gateway.hot.requests import Requests
from inferbus_gateway.hot.route import Routes
from inferbus_guard.protocol import Direct
from inferbus_kit.health import Asgi, Health
from inferbus_kit.http import HttpServer
from inferbus_kit.lifecycle import quiet_collector
from inferbus_kit.metrics import gateway_metrics
from inferbus_schemas import access, membership, tensors
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_telemetry.spans import Tracing

KEY = access.make_key(bytes(range(40)))
N_FEATURES = 30
N_WORKERS = 2
OUTPUTS = [
    m.Tensor(name="label", datatype="INT64", shape=[1], data=bytes(8)),
    m.Tensor(
        name="probabilities", datatype="FP32", shape=[1, 2], data=struct.pack("<2f", 0.25, 0.75)
    ),
]


@dataclass
class Bus:
    """Takes frames; gives each request's record back in the same order, as a worker would."""

    replies: Replies | None = None
    offset: int = 0
    n_frames: int = 0
    played_s: float = 0.0

    async def send(self, _topic: str, _partition: int, value: bytes, **_more: Any) -> Any:
        start_s = time.thread_time()
        loop = asyncio.get_running_loop()
        self.n_frames += 1
        records = []
        for request in m.RequestFrame.FromString(value).requests:
            said = m.Prediction(
                id=request.id,
                attempt=request.attempt,
                outcome=m.OUTCOME_OK,
                tenant=request.tenant,
                model=request.model,
                version=request.version,
                version_sha256=bytes(32),
                outputs=m.TensorSet(tensors=OUTPUTS).SerializeToString(),
                output_sha256=tensors.output_sha256(OUTPUTS),
                inputs=request.tensors,
                input_sha256=bytes(32),
                served_by="worker-0",
                batch_id=bytes(16),
                batch_size=16,
                queue_us=100,
                engine_us=900,
                latency_us=1100,
            )
            self.offset += 1
            records.append(SimpleNamespace(offset=self.offset, value=said.SerializeToString()))
        delivery = loop.create_future()
        delivery.set_result(SimpleNamespace(offset=self.n_frames))
        loop.call_later(0.002, self._give, records)
        self.played_s += time.thread_time() - start_s
        return delivery

    def _give(self, records: list[Any]) -> None:
        assert self.replies is not None
        self.replies.apply(records, time.monotonic())


def gateway(bus: Any) -> tuple[Asgi, Direct]:
    """Return the two doors of a gateway whose bus is played."""
    fleet, pins = membership.Membership(), Pins()
    placement = Placement(fleet, 7)
    routes = Routes(pins, fleet, placement)
    pending = Pending()
    replies = Replies("", "gateway-0", pending, bus, lambda: None)
    replies.partition, bus.replies = 3, replies
    publisher = Publisher("gateway-0", bus, pending, placement)
    metrics = gateway_metrics(CollectorRegistry())
    requests = Requests(
        pending=pending,
        publisher=publisher,
        replies=replies,
        metrics=metrics,
        tracing=Tracing("gateway", "gateway-0", ""),
        max_tensor_bytes=4 << 20,
        max_rows=4096,
        limits=Limits(1e6, 100_000),
        max_tenant_pending=5_000,
    )
    keys = access.Keyring()
    keys.apply(
        m.AccessKey(
            id=access.key_id(KEY),
            sha256=access.key_sha256(KEY),
            tenant="bench",
            scopes=["infer:m"],
            limits=m.Limits(requests_per_s=1e6, burst=100_000),
            generation=1,
        )
    )
    door = Access(keys, local=False)
    infer = Infer(
        routes=routes,
        requests=requests,
        metrics=metrics,
        bodies=Bodies(4 << 20, 256 << 20),
        access=door,
    )
    manifest = manifests.Manifest(
        model="m",
        task="tensor",
        engine="onnx",
        signature=manifests.Signature(
            inputs=(manifests.TensorSpec("features", "FP32", (-1, N_FEATURES)),),
            outputs=(
                manifests.TensorSpec("label", "INT64", (-1,)),
                manifests.TensorSpec("probabilities", "FP32", (-1, 2)),
            ),
        ),
        files=(manifests.FileEntry("model.onnx", "0" * 64, 1),),
    )
    routes.apply_version(
        m.ModelVersion(
            model="m", version=1, version_sha256=bytes(32), manifest=manifests.encode(manifest)
        )
    )
    routes.apply_deployment(
        m.Deployment(
            model="m",
            generation=1,
            aliases=[m.Alias(name="champion", wanted=1, serving=1)],
            pools=[m.PoolVersions(pool="default", versions=[1], min_ready=1)],
        )
    )
    for inbox in range(N_WORKERS):
        resident = m.Resident(model="m", version=1, readiness=m.READINESS_READY)
        part = m.WorkerBeat(pool="default", inbox=inbox, epoch=1, residents=[resident])
        beat = m.Heartbeat(instance=f"w{inbox}", state=m.STATE_ACTIVE, life=1, worker=part)
        fleet.apply(membership.inbox_key("default", inbox), beat, offset=inbox, append_ms=1000)
    routes.fleet_changed()
    views = Views(routes, requests.statistics)
    control = make_app(views, ModelRepository(routes, ""), Health(), door, requests.new_id)
    return front_door(infer, control), side_door(infer)


def question(*, binary: bool) -> bytes:
    """Return one request as bytes on the wire."""
    values = [round(0.1 + 0.37 * number, 4) for number in range(N_FEATURES)]
    tensor: dict[str, Any] = {"name": "features", "datatype": "FP32", "shape": [1, N_FEATURES]}
    extra, raw = "", b""
    if binary:
        raw = struct.pack(f"<{N_FEATURES}f", *values)
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        extra = f"inference-header-content-length: {len(head)}\r\n"
    else:
        head = json.dumps({"inputs": [tensor | {"data": values}]}).encode()
        extra = "content-type: application/json\r\n"
    lines = (
        f"POST /v2/models/m/infer HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
        f"{extra}content-length: {len(head + raw)}"
    )
    return f"{lines}\r\n\r\n".encode() + head + raw


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, wire: bytes, tally: list[int]) -> None:
        self._wire = wire
        self._tally = tally
        self._got = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._wire)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.index(b"content-length: ") + 16
        if len(body) < int(head[at : head.find(b"\r\n", at) if b"\r\n" in head[at:] else None]):
            return
        assert head.startswith(b"HTTP/1.1 200"), self._got
        self._got = b""
        self._tally[0] += 1
        self._transport.write(self._wire)


async def ask(port: int, connections: int, wire: bytes) -> None:
    """Ask until standard input ends; print the number of answers then and at each line."""
    tally = [0]
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Asker(wire, tally), "127.0.0.1", port)
    while await asyncio.to_thread(sys.stdin.readline):
        sys.stdout.write(f"{tally[0]}\n")
        sys.stdout.flush()


async def measure(args: argparse.Namespace) -> None:
    """Run the gateway here, the asker beside, and print what a request costs."""
    bus = Bus()
    app, direct = gateway(bus)
    server = HttpServer(
        app, "127.0.0.1", 0, max_connections=4096, max_body_bytes=4 << 20, direct=direct
    )
    await server.start()
    said = [str(server.port), "--connections", str(args.connections)]
    said += ["--binary"] if args.binary else []
    asker = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--ask",
        *said,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert asker.stdin is not None
    assert asker.stdout is not None

    async def answers() -> int:
        assert asker.stdin is not None
        assert asker.stdout is not None
        asker.stdin.write(b"\n")
        return int(await asker.stdout.readline())

    await answers()
    await asyncio.sleep(1.0)
    quiet_collector()
    before, cpu_s, played_s, start_s = await answers(), _cpu_s(), bus.played_s, time.monotonic()
    frames = bus.n_frames
    # CPU time: on a busy machine the wall clock charges whoever was interrupted.
    profile = cProfile.Profile(time.thread_time)
    if args.profile:
        profile.enable()
    await asyncio.sleep(args.seconds)
    profile.disable()
    after, end_s = await answers(), time.monotonic()
    n = after - before
    spent_s = _cpu_s() - cpu_s - (bus.played_s - played_s)
    print(
        f"{args.connections} connections: {n / (end_s - start_s):.0f} req/s, "
        f"{spent_s / n * 1e6:.1f} us of gateway CPU per request, "
        f"{n / max(1, bus.n_frames - frames):.1f} requests per frame"
    )
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    asker.stdin.close()
    await asker.wait()
    await server.stop()


async def measure_direct(args: argparse.Namespace) -> None:
    """Call the app as the listener would, and print the best of ten spans."""
    bus = Bus()
    app, _ = gateway(bus)
    head, _, body = question(binary=args.binary).partition(b"\r\n\r\n")
    lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    headers = [(name, value) for name, value in lines]
    stopping = asyncio.Event()
    n = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200, message

    async def call() -> None:
        nonlocal n
        scope = {"path": "/v2/models/m/infer", "method": "POST", "headers": headers}
        while not stopping.is_set():
            await app(scope, receive, send)
            n += 1

    calling = [asyncio.create_task(call()) for _ in range(args.connections)]
    profile = cProfile.Profile(time.thread_time)
    await asyncio.sleep(0.5)
    quiet_collector()
    if args.profile:
        profile.enable()
    spans_us = []
    for _ in range(10):
        done, cpu_s, played_s = n, _cpu_s(), bus.played_s
        await asyncio.sleep(args.seconds / 10)
        spent_s = _cpu_s() - cpu_s - (bus.played_s - played_s)
        spans_us.append(spent_s / (n - done) * 1e6)
    profile.disable()
    stopping.set()
    await asyncio.gather(*calling)
    print(f"{args.connections} callers: {min(spans_us):.1f} us of gateway CPU per request, no HTTP")
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--binary", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--ask", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        uvloop.run(ask(args.ask, args.connections, question(binary=args.binary)))
    else:
        uvloop.run(measure_direct(args) if args.direct else measure(args))


if __name__ == "__main__":
    main()
