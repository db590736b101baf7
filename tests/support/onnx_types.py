"""The model `every-type`: gives each input back, one for each datatype that the engine has.

In: a folder. Out: a complete version in it; BF16 is missing, since numpy has no such type.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from onnx import TensorProto, helper

from inferbus_schemas import manifest as manifests
from inferbus_schemas.manifest import FileEntry, Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

NAME = "every-type"
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
    folder.mkdir(parents=True, exist_ok=True)
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    manifest = Manifest(
        model=NAME,
        task="tensor",
        engine="onnx",
        signature=Signature(_specs("in"), _specs("out")),
        files=(FileEntry("model.onnx", hashlib.sha256(data).hexdigest(), len(data)),),
    )
    (folder / manifests.MANIFEST_NAME).write_bytes(manifests.encode(manifest))
    return folder


def _specs(side: Literal["in", "out"]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{side}-{name}", name, (-1, 2)) for name in TYPES)  # type: ignore[arg-type]
