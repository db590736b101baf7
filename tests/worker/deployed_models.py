"""Models that tests of a worker process deploy, what is asked of them and what is left behind.

In: a `Side`. Out: deployed versions, numbers to double, dead letters and committed offsets.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import numpy as np

from inferbus_kit.consume import PartitionReader, Record
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_schemas import tensors, topics
from tests.support import onnx_graphs
from tests.support.worker_side import Side, request, tensor_set


async def deployed(side: Side, folder: Path) -> tuple[str, manifests.Manifest]:
    """Register and deploy version 1 of a model with a name of its own."""
    model = f"m-{secrets.token_hex(4)}"
    manifest = side.publish_files(folder)
    await side.register(model, 1, manifest)
    await side.deploy(model, [1], generation=time.time_ns())
    return model, manifest


async def busy(side: Side, tmp_path: Path) -> str:
    model, _ = await deployed(side, onnx_graphs.busy_folder(tmp_path / "busy"))
    return model


def number(model: str, value: int, **fields: object) -> m.Request:
    raw = tensor_set(("n", "INT64", (1,), np.array([value], np.int64).tobytes()))
    return request(model, 1, raw, **fields)


def doubled(said: m.Prediction) -> list[int]:
    assert said.outcome == m.OUTCOME_OK, said
    out = m.TensorSet.FromString(said.outputs)
    assert said.output_sha256 == tensors.output_sha256(out.tensors)
    return list(np.frombuffer(out.tensors[0].data, np.int64))


async def letters(side: Side, n: int) -> list[Record]:
    """Wait until the pool has `n` dead letters and return all."""
    requests = topics.topic(topics.REQUESTS, side.pool).name
    reader = PartitionReader(
        side.bootstrap, topics.dead_letters(requests), 0, client_id="worker-test"
    )
    await reader.start()
    try:
        found: list[Record] = []
        while len(found) < n:
            found += await reader.read(timeout_ms=1000)
    finally:
        await reader.stop()
    return found


async def committed(side: Side, inbox: int, timeout_s: float = 5.0) -> int | None:
    """Return the committed offset of an inbox once it has stood still for a while."""
    reader = PartitionReader(
        side.bootstrap,
        topics.topic(topics.REQUESTS, side.pool).name,
        inbox,
        client_id="worker-test",
        group=f"worker.inbox.{side.pool}",
    )
    await reader.start(timeout_s)
    try:
        await asyncio.sleep(0.5)
        return await reader.committed()
    finally:
        await reader.stop()
