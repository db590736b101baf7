"""Bodies of the Open Inference Protocol, as tests make and read them.

In: signatures and values. Out: bodies of requests, and what was parsed from them.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from inferbus_gateway.errors import InvalidRequestError
from inferbus_gateway.hot import oip
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m

CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
RANGES = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FP32_MAX = 3.4028234663852886e38


def spec(name: str, datatype: Any, *shape: int) -> manifest.TensorSpec:
    return manifest.TensorSpec(name, datatype, shape)


def signature(
    *inputs: manifest.TensorSpec, outputs: tuple[manifest.TensorSpec, ...] = ()
) -> manifest.Signature:
    return manifest.Signature(inputs, outputs or (spec("y", "FP32", -1),))


CANCER = signature(
    spec("features", "FP32", -1, 3),
    outputs=(spec("label", "INT64", -1), spec("probabilities", "FP32", -1, 2)),
)
PAIR = signature(spec("a", "FP32", -1, 2), spec("b", "BYTES", -1))


def feature(**changes: Any) -> dict[str, Any]:
    return {
        "name": "features",
        "shape": [1, 3],
        "datatype": "FP32",
        "data": [1, 2.5, -3],
    } | changes


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs or (feature(),), **more}).encode()


def binary(head: dict[str, Any], *tails: bytes) -> tuple[bytes, int]:
    text = json.dumps(head).encode()
    return b"".join((text, *tails)), len(text)


def read(parsed: oip.Parsed) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    found = m.TensorSet.FromString(parsed.tensors)
    return [(t.name, t.datatype, tuple(t.shape), t.data) for t in found.tensors]


def refusal(body: bytes, of: manifest.Signature = CANCER, json_length: int | None = None) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        oip.parse(body, json_length, of)
    message = str(caught.value)
    assert message
    assert len(message) < 400
    return message


def element(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text(max_size=8)
    if datatype in RANGES:
        return st.integers(*RANGES[datatype])
    if datatype == "FP32":
        return st.floats(allow_nan=False, allow_infinity=False, width=32)
    return st.floats(allow_nan=False, allow_infinity=False)


def packed(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        return tensors.join_bytes(value.encode() for value in values)
    return struct.pack(f"<{len(values)}{CODES[datatype]}", *values)


def nest(values: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) == 1:
        return values
    size = math.prod(shape[1:])
    return [nest(values[at * size : (at + 1) * size], shape[1:]) for at in range(shape[0])]


@st.composite
def filled(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[Any]]:
    datatype = draw(st.sampled_from([*CODES, "BYTES"]))
    shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(0, 3), max_size=3)))
    n = math.prod(shape)
    return datatype, shape, draw(st.lists(element(datatype), min_size=n, max_size=n))
