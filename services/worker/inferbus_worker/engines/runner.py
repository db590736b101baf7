"""Runs batches inside the engine process: bytes to arrays, the task, the graph, arrays to bytes.

In: a `wire.Run` and its body. Out: a `wire.Done` and the buffers of its tensors.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from inferbus_schemas import manifest as manifests
from inferbus_schemas import tensors
from inferbus_worker import tasks
from inferbus_worker.engines import wire
from inferbus_worker.engines.onnx import DTYPES, OnnxEngine
from inferbus_worker.tasks.base import Array, RowsError


def load(raw_manifest: bytes, folder: Path, threads: int) -> Runner:
    """Load a version from its folder.

    Raises:
        ManifestError, TaskError, LoadError: it cannot be run; the message says why.
    """
    manifest = manifests.parse(raw_manifest)
    task = tasks.make(manifest, folder)
    return Runner(task, OnnxEngine(manifest, folder, threads), manifest)


class Runner:
    """One loaded version.

    Invariants: an answer has as many rows as its batch, or says why there is none.
    """

    def __init__(self, task: tasks.Task, engine: OnnxEngine, manifest: manifests.Manifest) -> None:
        self._task = task
        self._engine = engine
        self._specs = manifest.signature.outputs

    def run(self, batch: wire.Run, body: bytes) -> tuple[wire.Done, list[bytes]]:
        """Run one batch; never raises for what the batch holds."""
        n_rows = batch.inputs[0].shape[0]
        try:
            outputs = self._engine.run(self._task.prepare(_values(batch, body)))
            done, buffers = _answer(batch.number, n_rows, self._specs, outputs)
            return msgspec.structs.replace(done, row_tokens=self._task.row_tokens), buffers
        except RowsError as error:
            return wire.Done(batch.number, (), error.rows, "", 0, 0), []
        except (RuntimeError, ValueError, MemoryError) as error:
            return wire.Done(batch.number, (), {}, str(error) or "out of memory", 0, 0), []


def _values(batch: wire.Run, body: bytes) -> dict[str, Array]:
    out: dict[str, Array] = {}
    view = memoryview(body)
    at = 0
    for head in batch.inputs:
        data = view[at : at + head.n_bytes]
        at += head.n_bytes
        if head.datatype == "BYTES":
            elements = tensors.split_bytes(data.tobytes())
            values = np.empty(len(elements), dtype=object)
            values[:] = elements
            out[head.name] = values.reshape(head.shape)
        else:
            out[head.name] = np.frombuffer(data, DTYPES[head.datatype]).reshape(head.shape)
    return out


def _answer(
    number: int,
    n_rows: int,
    specs: tuple[manifests.TensorSpec, ...],
    outputs: list[Array],
) -> tuple[wire.Done, list[bytes]]:
    heads: list[wire.TensorHead] = []
    buffers: list[bytes] = []
    for spec, output in zip(specs, outputs, strict=True):
        if output.shape[0] != n_rows:
            raise RuntimeError(f"output {spec.name!r} has {output.shape[0]} rows for {n_rows}")
        if spec.datatype == "BYTES":
            data = tensors.join_bytes(
                one if isinstance(one, bytes) else str(one).encode() for one in output.ravel()
            )
        else:
            data = output.tobytes()
        heads.append(wire.TensorHead(spec.name, spec.datatype, output.shape, len(data)))
        buffers.append(data)
    return wire.Done(number, tuple(heads), {}, "", 0, 0), buffers
