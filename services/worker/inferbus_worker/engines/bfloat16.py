"""BF16 where numpy has no such type: arrays hold its bits as 16-bit integers.

In: a session whose graph takes or gives BF16. Out: how its graph is run on such arrays. ONNX
Runtime's `run` takes BF16 as a value of its own and cannot return it; what returns any type takes
values of its own alone, and those it makes of everything but strings.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from inferbus_worker.engines.refusals import LoadError
from inferbus_worker.tasks.base import Array

BITS = np.dtype("<u2")
TYPE = "tensor(bfloat16)"
"""What ONNX Runtime calls it."""
_ONNX_TYPE = 16
_NAN = 0x7FC0

Run = Callable[[dict[str, Array]], Sequence[Array]]


def bits(values: Array) -> Array:
    """Return numbers as BF16, rounded to the nearest, ties to even; of a dimension at least."""
    whole = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (whole + np.uint32(0x7FFF) + (whole >> 16 & 1)) >> 16
    return np.where(np.isnan(values), _NAN, rounded).astype(BITS)


def floats(values: Array) -> Array:
    """Return the numbers whose upper halves these bits are."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def run_of(session: onnxruntime.InferenceSession, names: list[str]) -> Run:
    """Return how to compute these outputs; without BF16 it is `session.run` itself.

    Raises:
        LoadError: this binding cannot give what is asked for.
    """
    taken = frozenset(one.name for one in session.get_inputs() if one.type == TYPE)
    if any(one.type == TYPE for one in session.get_outputs() if one.name in names):
        if any(one.type == "tensor(string)" for one in session.get_inputs()):
            raise LoadError("this engine gives no BF16 where the graph takes strings")
        return functools.partial(_run_values, session, names, taken)
    if taken:
        return functools.partial(_run_mixed, session, names, taken)
    return functools.partial(session.run, names)


def _run_values(
    session: onnxruntime.InferenceSession,
    names: list[str],
    taken: frozenset[str],
    feeds: dict[str, Array],
) -> list[Array]:
    made = onnxruntime.OrtValue.ortvalue_from_numpy
    given = {
        name: _value(array) if name in taken else made(np.ascontiguousarray(array))
        for name, array in feeds.items()
    }
    return [_array(value) for value in session.run_with_ort_values(names, given)]


def _run_mixed(
    session: onnxruntime.InferenceSession,
    names: list[str],
    taken: frozenset[str],
    feeds: dict[str, Array],
) -> Sequence[Array]:
    given = {name: _value(array) if name in taken else array for name, array in feeds.items()}
    outputs: Sequence[Array] = session.run(names, given)
    return outputs


def _value(array: Array) -> onnxruntime.OrtValue:
    """Return bits, or the floats that a task made, as a BF16 value; it keeps its array alive."""
    own = np.ascontiguousarray(array if array.dtype == BITS else bits(array))
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(own, _ONNX_TYPE)


def _array(value: onnxruntime.OrtValue) -> Array:
    if value.data_type() != TYPE:
        array: Array = value.numpy()
        return array
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, BITS).reshape(value.shape())
