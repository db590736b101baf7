"""Golden samples and warm-up batches: known inputs, answers held against known outputs.

In: a manifest. Out: batches for the engine, and one sentence where an answer is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferbus_schemas import tensors
from inferbus_schemas.manifest import Golden, JsonTensor, Manifest, TensorSpec
from inferbus_worker.engines import bfloat16, wire
from inferbus_worker.engines.onnx import DTYPES
from inferbus_worker.tasks.base import Array


class GoldenError(RuntimeError):
    """The engine's answer to a known input is not the known one; the message says how."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch for an engine: heads and, in the same order, bytes."""

    heads: tuple[wire.TensorHead, ...]
    buffers: tuple[bytes, ...]


def inputs_of(golden: Golden, signature: tuple[TensorSpec, ...]) -> Inputs:
    """Return a golden sample's inputs in the order of the signature.

    Raises:
        GoldenError: it lacks an input, or one does not fit its datatype.
    """
    by_name = {tensor.name: tensor for tensor in golden.inputs}
    heads, buffers = [], []
    for spec in signature:
        tensor = by_name.get(spec.name)
        if tensor is None or tensor.datatype != spec.datatype or not tensor.shape:
            raise GoldenError(f"a golden sample has no {spec.datatype} input {spec.name!r}")
        data = _data(tensor)
        heads.append(wire.TensorHead(spec.name, spec.datatype, tensor.shape, len(data)))
        buffers.append(data)
    return Inputs(tuple(heads), tuple(buffers))


def _data(tensor: JsonTensor) -> bytes:
    if tensor.datatype == "BYTES":
        return tensors.join_bytes(str(element).encode() for element in tensor.data)
    try:
        if tensor.datatype == "BF16":
            numbers = np.array(tensor.data, np.float32).reshape(tensor.shape)
            return bfloat16.bits(numbers).tobytes()
        return np.array(tensor.data, DTYPES[tensor.datatype]).reshape(tensor.shape).tobytes()
    except (KeyError, ValueError, OverflowError) as error:
        raise GoldenError(f"golden tensor {tensor.name!r} does not fit its shape") from error


def check(golden: Golden, done: wire.Done, body: memoryview) -> None:
    """Hold an answer against a golden sample: names, datatypes, shapes, finite, tolerance.

    Raises:
        GoldenError: it differs.
    """
    if done.error or done.bad_rows:
        said = done.error or next(iter(done.bad_rows.values()))
        raise GoldenError(f"the engine cannot compute a golden sample: {said}")
    found: dict[str, tuple[wire.TensorHead, memoryview]] = {}
    at = 0
    for head in done.outputs:
        found[head.name] = (head, body[at : at + head.n_bytes])
        at += head.n_bytes
    for wanted in golden.outputs:
        if wanted.name not in found:
            raise GoldenError(f"the engine gives no output {wanted.name!r}")
        head, data = found[wanted.name]
        if head.datatype != wanted.datatype or head.shape != wanted.shape:
            raise GoldenError(
                f"output {wanted.name!r} is {head.datatype} {list(head.shape)}, "
                f"the golden sample says {wanted.datatype} {list(wanted.shape)}"
            )
        _check_values(wanted, data, golden.tolerance)


def _check_values(wanted: JsonTensor, data: memoryview, tolerance: float) -> None:
    if wanted.datatype == "BYTES":
        if bytes(data) != _data(wanted):
            raise GoldenError(f"output {wanted.name!r} differs from the golden sample")
        return
    dtype = DTYPES[wanted.datatype]
    have: Array = np.frombuffer(data, dtype)
    want: Array = np.frombuffer(_data(wanted), dtype)
    if wanted.datatype == "BF16":
        have, want = bfloat16.floats(have), bfloat16.floats(want)
    if have.dtype.kind != "f":
        if not np.array_equal(have, want):
            raise GoldenError(f"output {wanted.name!r} differs from the golden sample")
        return
    if not np.isfinite(have).all():
        raise GoldenError(f"output {wanted.name!r} is not finite for a golden sample")
    worst = float(np.abs(have.astype(np.float64) - want).max(initial=0.0))
    if not worst <= tolerance:
        raise GoldenError(
            f"output {wanted.name!r} differs by {worst:.3g} from the golden sample, "
            f"more than {tolerance:g}"
        )


def warm_up(manifest: Manifest) -> list[Inputs]:
    """Return a batch of each size that the batcher makes: 1, 2, 4, ... and `max_rows`."""
    base = (
        inputs_of(manifest.golden[0], manifest.signature.inputs)
        if manifest.golden
        else _zeros(manifest.signature.inputs)
    )
    n_rows = max(base.heads[0].shape[0], 1)
    sizes, size = [], 1
    while size < manifest.batching.max_rows:
        sizes.append(size)
        size *= 2
    sizes.append(manifest.batching.max_rows)
    if any(spec.shape[0] != -1 for spec in manifest.signature.inputs):
        sizes = [n_rows]
    return [_repeat(base, max(1, size // n_rows)) for size in sizes]


def _repeat(base: Inputs, times: int) -> Inputs:
    heads = tuple(
        wire.TensorHead(
            head.name, head.datatype, (head.shape[0] * times, *head.shape[1:]), head.n_bytes * times
        )
        for head in base.heads
    )
    return Inputs(heads, tuple(data * times for data in base.buffers))


def _zeros(signature: tuple[TensorSpec, ...]) -> Inputs:
    heads, buffers = [], []
    for spec in signature:
        shape = tuple(1 if dim == -1 else dim for dim in spec.shape)
        count = tensors.n_elements(shape)
        if spec.datatype == "BYTES":
            data = tensors.join_bytes([b"a"] * count)
        else:
            data = bytes(count * tensors.ITEM_BYTES[spec.datatype])
        heads.append(wire.TensorHead(spec.name, spec.datatype, shape, len(data)))
        buffers.append(data)
    return Inputs(tuple(heads), tuple(buffers))
