"""Our bodies against the encoder and the decoder of tritonclient's HTTP client.

Only its pure functions run here, so its transport (gevent) is replaced by empty modules while it
is imported; the client over a real socket belongs to `tests/conformance`.
"""

from __future__ import annotations

import importlib
import struct
import sys
import types
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from inferbus_gateway.hot import oip
from inferbus_schemas import manifest, tensors
from inferbus_schemas import messages as m

_TRANSPORT = ("gevent", "gevent.pool", "geventhttpclient", "geventhttpclient.url")

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255], [1, 2]], np.uint8),
    "UINT16": np.array([[0, 65535], [1, 2]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1], [1, 2]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1], [1, 2]], np.uint64),
    "INT8": np.array([[-128, 127], [1, 2]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1], [1, 2]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1], [1, 2]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [1, 2]], np.int64),
    "FP16": np.array([[0.1, 65504], [-0.0, 2]], np.float16),
    "BF16": np.array([[0.1, 3e38], [-0.0, 2]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, 3.4028234663852886e38], [-0.0, 2]], np.float32),
    "FP64": np.array([[0.1, 1e308], [-0.0, 5e-324]], np.float64),
    "BYTES": np.array([["é".encode(), b""], [b'"', b"a\nb"]], np.object_),
}
JSON_TYPES = sorted(set(ARRAYS) - {"FP16", "BF16"})


@pytest.fixture(scope="module")
def triton() -> Iterator[Any]:
    before = {name: sys.modules.get(name) for name in _TRANSPORT}
    for name in _TRANSPORT:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["geventhttpclient"].HTTPClient = object  # type: ignore[attr-defined]
    sys.modules["geventhttpclient.url"].URL = object  # type: ignore[attr-defined]
    yield importlib.import_module("tritonclient.http")
    for name in [name for name in sys.modules if name.startswith("tritonclient.http")]:
        del sys.modules[name]
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module


def raw(array: np.ndarray[Any, Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        return tensors.join_bytes(array.flatten())
    return array.tobytes()


def signature(datatype: Any) -> manifest.Signature:
    return manifest.Signature(
        inputs=(manifest.TensorSpec("x", datatype, (-1, 2)),),
        outputs=(manifest.TensorSpec("y", datatype, (-1, 2)),),
    )


@pytest.mark.parametrize("datatype", sorted(ARRAYS))
def test_its_binary_request_is_read(triton: Any, datatype: str) -> None:
    array = ARRAYS[datatype]
    item = triton.InferInput("x", list(array.shape), datatype)
    item.set_data_from_numpy(array, binary_data=True)
    body, json_length = triton.InferenceServerClient.generate_request_body(
        [item], request_id="r", timeout=1_000, priority=1, parameters={"mine": "é"}
    )
    parsed = oip.parse(body, json_length, signature(datatype))
    (tensor,) = m.TensorSet.FromString(parsed.tensors).tensors
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", datatype, [2, 2])
    assert tensor.data == raw(array, datatype)
    assert (parsed.client_request_id, parsed.timeout_us) == ("r", 1_000)
    assert (parsed.n_rows, parsed.outputs, parsed.binary) == (2, (), None)


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_its_json_request_is_read(triton: Any, datatype: str) -> None:
    array = ARRAYS[datatype]
    item = triton.InferInput("x", list(array.shape), datatype)
    item.set_data_from_numpy(array, binary_data=False)
    wanted = triton.InferRequestedOutput("y", binary_data=False)
    body, json_length = triton.InferenceServerClient.generate_request_body([item], outputs=[wanted])
    assert json_length is None
    parsed = oip.parse(body, None, signature(datatype))
    (tensor,) = m.TensorSet.FromString(parsed.tensors).tensors
    assert tensor.data == raw(array, datatype)
    assert (parsed.outputs, parsed.binary) == (("y",), frozenset())


def test_its_mixed_request_is_read(triton: Any) -> None:
    of = manifest.Signature(
        inputs=(
            manifest.TensorSpec("text", "BYTES", (-1, 2)),
            manifest.TensorSpec("numbers", "FP32", (-1, 2)),
            manifest.TensorSpec("mask", "BOOL", (-1, 2)),
        ),
        outputs=(manifest.TensorSpec("y", "FP32", (-1,)), manifest.TensorSpec("z", "FP16", (-1,))),
    )
    items = []
    for name, datatype, binary in (
        ("mask", "BOOL", True),
        ("text", "BYTES", False),
        ("numbers", "FP32", True),
    ):
        item = triton.InferInput(name, [2, 2], datatype)
        item.set_data_from_numpy(ARRAYS[datatype], binary_data=binary)
        items.append(item)
    outputs = [
        triton.InferRequestedOutput("z", binary_data=True),
        triton.InferRequestedOutput("y", binary_data=False),
    ]
    body, json_length = triton.InferenceServerClient.generate_request_body(items, outputs=outputs)
    parsed = oip.parse(body, json_length, of)
    found = m.TensorSet.FromString(parsed.tensors).tensors
    assert [(t.name, t.data) for t in found] == [
        ("text", raw(ARRAYS["BYTES"], "BYTES")),
        ("numbers", raw(ARRAYS["FP32"], "FP32")),
        ("mask", raw(ARRAYS["BOOL"], "BOOL")),
    ]
    assert (parsed.outputs, parsed.binary) == (("z", "y"), frozenset({"z"}))


@pytest.mark.parametrize("datatype", sorted(ARRAYS))
@pytest.mark.parametrize("binary", [None, frozenset[str]()])
def test_it_reads_our_answer(triton: Any, datatype: str, binary: frozenset[str] | None) -> None:
    if binary is not None and datatype not in JSON_TYPES:
        binary = frozenset({"y"})
    array = ARRAYS[datatype]
    outputs = [
        m.Tensor(name="first", datatype="INT64", shape=[1], data=struct.pack("<q", -7)),
        m.Tensor(name="y", datatype=datatype, shape=array.shape, data=raw(array, datatype)),
    ]
    rendered = oip.render(outputs, model="m", version=3, client_request_id="r", binary=binary)
    result = triton.InferenceServerClient.parse_response_body(
        rendered.body, header_length=rendered.json_length
    )
    found = result.as_numpy("y")
    if datatype == "BYTES" and binary is not None:
        found = np.char.encode(found.astype(str), "utf-8").astype(np.object_)
    assert found.shape == array.shape
    assert raw(found, datatype) == raw(array, datatype)
    assert result.as_numpy("first").tolist() == [-7]
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("r", "m", "3")


def test_it_reads_what_is_not_finite_from_our_json(triton: Any) -> None:
    array = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    tensor = m.Tensor(name="y", datatype="FP32", shape=[4], data=array.tobytes())
    rendered = oip.render([tensor], model="m", version=1, client_request_id="", binary=frozenset())
    result = triton.InferenceServerClient.parse_response_body(rendered.body)
    np.testing.assert_array_equal(result.as_numpy("y"), array)
