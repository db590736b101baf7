"""Models of every datatype: `every-type` gives each input back, `bf16` computes in between.

In: a folder. Out: a complete version in it. BF16 has a model of its own, since ONNX Runtime's
Python binding gives no BF16 where a graph takes strings.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import onnx
from onnx import TensorProto, helper

from inferbus_schemas import manifest as manifests
from inferbus_schemas.manifest import FileEntry, Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

NAME = "every-type"
BF16_FACTOR = 1.5
TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def every_type_folder(folder: Path) -> Path:
    """Write the model: inputs `in-<DATATYPE>` and outputs `out-<DATATYPE>`, each [rows, 2]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in-{name}"], [f"out-{name}"]) for name in TYPES],
        "every_type",
        [
            helper.make_tensor_value_info(f"in-{name}", kind, ["n", 2])
            for name, kind in TYPES.items()
        ],
        [
            helper.make_tensor_value_info(f"out-{name}", kind, ["n", 2])
            for name, kind in TYPES.items()
        ],
    )
    return write(folder, NAME, graph, Signature(_specs("in"), _specs("out")))


def bf16_folder(folder: Path, **fields: Any) -> Path:
    """Write the model `bf16`: BF16 `x` [rows, 2] -> `y`, `x` times 1.5 rounded, and `same`.

    `fields` are further ones of the manifest.
    """
    kind = TensorProto.BFLOAT16

    def node(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["n", 2])

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "factor"], ["more"]),
            helper.make_node("Cast", ["more"], ["y"], to=kind),
            helper.make_node("Identity", ["x"], ["same"]),
        ],
        "bf16",
        [node("x")],
        [node("y"), node("same")],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [BF16_FACTOR])],
    )
    x, y, same = (TensorSpec(name, "BF16", (-1, 2)) for name in ("x", "y", "same"))
    return write(folder, "bf16", graph, Signature((x,), (y, same)), **fields)


def write(
    folder: Path, name: str, graph: onnx.GraphProto, signature: Signature, **fields: Any
) -> Path:
    """Write a graph and what its signature says; `fields` are further ones of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    manifest = Manifest(
        model=name,
        task="tensor",
        engine="onnx",
        signature=signature,
        files=(FileEntry("model.onnx", hashlib.sha256(data).hexdigest(), len(data)),),
        **fields,
    )
    (folder / manifests.MANIFEST_NAME).write_bytes(manifests.encode(manifest))
    return folder


def _specs(side: Literal["in", "out"]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{side}-{name}", name, (-1, 2)) for name in TYPES)  # type: ignore[arg-type]
