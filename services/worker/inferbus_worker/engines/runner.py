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

    Invariants: an answer has as many rows as its batch, or says why there is none; where each row
    of the outputs has a fixed shape, no more than `max_rows` are computed at once.
    """

    def __init__(self, task: tasks.Task, engine: OnnxEngine, manifest: manifests.Manifest) -> None:
        self._task = task
        self._engine = engine
        self._specs = manifest.signature.outputs
        self._max_rows = manifest.batching.max_rows if manifest.signature.splits else 0

    def run(self, batch: wire.Run, body: bytes) -> tuple[wire.Done, list[bytes]]:
        """Run one batch; never raises for what the batch holds."""
        n_rows = batch.inputs[0].shape[0]
        try:
            outputs, row_tokens = self._outputs(_values(batch, body), n_rows)
            done, buffers = _answer(batch.number, n_rows, self._specs, outputs)
            return msgspec.structs.replace(done, row_tokens=row_tokens), buffers
        except RowsError as error:
            return wire.Done(batch.number, (), error.rows, "", 0, 0), []
        except (RuntimeError, ValueError, MemoryError) as error:
            return wire.Done(batch.number, (), {}, str(error) or "out of memory", 0, 0), []

    def _outputs(
        self, values: dict[str, Array], n_rows: int
    ) -> tuple[list[Array], tuple[int, ...]]:
        """Return the outputs of all rows and the tokens of each, computed in pieces of `max_rows`.

        Raises:
            RowsError: some rows cannot be read; nothing is computed behind the first of them.
            RuntimeError, ValueError, MemoryError: they cannot be computed.
        """
        step = self._max_rows or n_rows
        pieces: list[list[Array]] = []
        row_tokens: list[int] = []
        bad: dict[int, str] = {}
        for at in range(0, n_rows, step):
            piece = {name: value[at : at + step] for name, value in values.items()}
            try:
                feeds = self._task.prepare(piece)
            except RowsError as error:
                bad |= {at + row: why for row, why in error.rows.items()}
                continue
            if not bad:
                row_tokens += self._task.row_tokens
                pieces.append(self._engine.run(feeds))
        if bad:
            raise RowsError(bad)
        if len(pieces) == 1:
            return pieces[0], tuple(row_tokens)
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)], tuple(row_tokens)


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
