"""Small ONNX versions for tests: one that works for as long as its input says, one that is refused.

In: a folder. Out: a manifest beside a graph.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from inferbus_schemas import manifest as manifests
from inferbus_schemas.manifest import (
    Batching,
    FileEntry,
    Golden,
    JsonTensor,
    Manifest,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

_OPSET = [helper.make_opsetid("", 17)]


def busy_folder(folder: Path, *, max_rows: int = 16, wrong_golden: bool = False) -> Path:
    """Write the model `busy`: INT64 `n` [rows] -> INT64 `twice` [rows], after max(n) loops.

    A loop costs about a microsecond or ten, so a huge `n` never ends: for tests that kill it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(_busy_graph().SerializeToString())
    answer = [6] if not wrong_golden else [7]
    golden = Golden(
        inputs=(JsonTensor("n", "INT64", (1,), [3]),),
        outputs=(JsonTensor("twice", "INT64", (1,), answer),),
    )
    _write(
        folder,
        inputs=(TensorSpec("n", "INT64", (-1,)),),
        outputs=(TensorSpec("twice", "INT64", (-1,)),),
        batching=Batching(max_rows=max_rows, max_wait_ms=20.0),
        golden=(golden,),
    )
    return folder


def external_folder(folder: Path) -> Path:
    """Write a model whose weights stand in another file of the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = numpy_helper.from_array(np.ones((4,), np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../secret.bin")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=_OPSET, ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    _write(
        folder,
        inputs=(TensorSpec("x", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "FP32", (-1, 4)),),
    )
    return folder


def _write(folder: Path, **fields: Any) -> None:
    data = (folder / "model.onnx").read_bytes()
    entry = FileEntry("model.onnx", hashlib.sha256(data).hexdigest(), len(data))
    signature = Signature(fields.pop("inputs"), fields.pop("outputs"))
    manifest = Manifest(
        model="test", task="tensor", engine="onnx", signature=signature, files=(entry,), **fields
    )
    (folder / manifests.MANIFEST_NAME).write_bytes(manifests.encode(manifest))


def _busy_graph() -> onnx.ModelProto:
    scalar = TensorProto.INT64
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["count_in", "one"], ["count_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", scalar, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count_in", scalar, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count_out", scalar, []),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["n"], ["trips"], keepdims=0),
            helper.make_node("Loop", ["trips", "go", "zero"], ["count"], body=body),
            helper.make_node("Mul", ["count", "zero"], ["nothing"]),
            helper.make_node("Add", ["n", "n"], ["sum"]),
            helper.make_node("Add", ["sum", "nothing"], ["twice"]),
        ],
        "busy",
        [helper.make_tensor_value_info("n", scalar, ["rows"])],
        [helper.make_tensor_value_info("twice", scalar, ["rows"])],
        [
            numpy_helper.from_array(np.array(1, np.int64), "one"),
            numpy_helper.from_array(np.array(0, np.int64), "zero"),
            numpy_helper.from_array(np.array(True), "go"),
        ],
    )
    return helper.make_model(graph, opset_imports=_OPSET, ir_version=8)
