"""The engine `onnx`: ONNX Runtime on the CPU, inside the engine process.

In: feeds by graph input. Out: the outputs that the signature names; BF16 as its bits. Fields of
`engine_settings`: `intra_op_threads`; without it the host says how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from inferbus_schemas.manifest import Manifest, TensorSpec
from inferbus_worker.engines import bfloat16
from inferbus_worker.engines.external_data import NotOnnxError, has_external_data
from inferbus_worker.engines.refusals import LoadError
from inferbus_worker.tasks.base import Array

DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": bfloat16.BITS,
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_QUIET = 3


class OnnxEngine:
    """One session.

    Invariants: outputs come in the order of the signature, each with the datatype and rank that
    it names; threads never spin, since cores are shared.
    """

    def __init__(self, manifest: Manifest, folder: Path, threads: int) -> None:
        path = folder / _graph_file(manifest)
        try:
            if has_external_data(path.read_bytes()):
                raise LoadError("the ONNX file keeps data in other files; put all into one")
        except NotOnnxError as error:
            raise LoadError(str(error)) from error
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), _options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise LoadError(f"ONNX Runtime refuses the file: {_first_line(error)}") from error
        self._specs = manifest.signature.outputs
        self._names = [spec.name for spec in self._specs]
        missing = set(self._names) - {out.name for out in self._session.get_outputs()}
        if missing:
            raise LoadError(f"the graph has no output {min(missing)!r}")
        # Other types are converted; these are bits, which nobody may take for numbers.
        _check_bfloat16(manifest.signature.inputs, self._session.get_inputs())
        _check_bfloat16(manifest.signature.outputs, self._session.get_outputs())
        self._run = bfloat16.run_of(self._session, self._names)

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        """Run the graph.

        Raises:
            RuntimeError: the graph cannot compute these feeds.
        """
        try:
            outputs = self._run(feeds)
        except Exception as error:
            raise RuntimeError(_first_line(error)) from error
        return [_as_said(spec, out) for spec, out in zip(self._specs, outputs, strict=True)]


def _graph_file(manifest: Manifest) -> str:
    graphs = [entry.path for entry in manifest.files if entry.path.endswith(".onnx")]
    if len(graphs) != 1:
        raise LoadError("a version of this engine has exactly one .onnx file")
    return graphs[0]


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # The arena grows to the largest shape ever seen and never shrinks; patterns want fixed shapes.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _check_bfloat16(specs: tuple[TensorSpec, ...], nodes: Sequence[onnxruntime.NodeArg]) -> None:
    said = {spec.name: spec.datatype for spec in specs}
    for node in nodes:
        datatype = said.get(node.name)
        if datatype and (datatype == "BF16") != (node.type == bfloat16.TYPE):
            raise LoadError(f"tensor {node.name!r}: {datatype} is said, the graph has {node.type}")


def _as_said(spec: TensorSpec, out: Array) -> Array:
    if out.ndim != len(spec.shape):
        raise RuntimeError(f"output {spec.name!r} has another rank than the signature says")
    if spec.datatype == "BYTES":
        return out
    return np.ascontiguousarray(out, dtype=DTYPES[spec.datatype])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
