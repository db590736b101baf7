"""Models of every datatype: `every-type` gives each input back, `bf16` computes in between.

In: a folder. Out: a complete version in it. `listed-types` is the first without FP16, of which the
protocol has no lists of numbers and whose requests so cannot have any. BF16 has a model of its own,
since ONNX Runtime's Python binding gives no BF16 where a graph takes strings.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import onnx
from onnx import TensorProto, helper

from inferbus_schemas import manifest as manifests
from inferbus_schemas.manifest import FileEntry, Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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
    return _echo(folder, NAME, TYPES)


def listed_types_folder(folder: Path) -> Path:
    """Write the model `listed-types`, of the same inputs and outputs but those of FP16."""
    types = {name: kind for name, kind in TYPES.items() if name != "FP16"}
    return _echo(folder, "listed-types", types)


def _echo(folder: Path, model: str, types: Mapping[str, int]) -> Path:
    def nodes(side: str) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(f"{side}-{name}", kind, ["n", 2])
            for name, kind in types.items()
        ]

    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in-{name}"], [f"out-{name}"]) for name in types],
        "echo",
        nodes("in"),
        nodes("out"),
    )
    return write(folder, model, graph, Signature(_specs("in", types), _specs("out", types)))


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


def _specs(side: Literal["in", "out"], types: Iterable[str]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{side}-{name}", name, (-1, 2)) for name in types)  # type: ignore[arg-type]
