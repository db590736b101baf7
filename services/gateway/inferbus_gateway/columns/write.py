"""Results of a job as a Parquet file.

In: results, in the order of their rows. Out: the file, row group by row group: `row`, `request_id`,
`id`, `status`, `error_code`, `error_message` and a column per output, lists as deep as its shape
without the dimension of rows.
"""

from __future__ import annotations

import math
import struct
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from inferbus_gateway.columns import wire
from inferbus_schemas import ids, tensors
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import TensorSpec

_GROUP_ROWS = 8192
_GROUP_BYTES = 4 << 20
_OWN = (
    ("row", pa.int64()),
    ("request_id", pa.string()),
    ("id", pa.string()),
    ("status", pa.string()),
    ("error_code", pa.string()),
    ("error_message", pa.string()),
)
_KINDS: dict[str, tuple[Any, str]] = {
    "BOOL": (pa.bool_(), "?"),
    "UINT8": (pa.uint8(), "B"),
    "UINT16": (pa.uint16(), "H"),
    "UINT32": (pa.uint32(), "I"),
    "UINT64": (pa.uint64(), "Q"),
    "INT8": (pa.int8(), "b"),
    "INT16": (pa.int16(), "h"),
    "INT32": (pa.int32(), "i"),
    "INT64": (pa.int64(), "q"),
    "FP16": (pa.float32(), "e"),
    "BF16": (pa.float32(), ""),
    "FP32": (pa.float32(), "f"),
    "FP64": (pa.float64(), "d"),
    "BYTES": (pa.binary(), ""),
}


def file(source: BinaryIO, sink: BinaryIO, what: wire.Writing) -> None:
    """Write the rows that come from `source` as a file to `sink`."""
    schema = pa.schema([*_OWN, *((column(spec), _type(spec)) for spec in what.outputs)])
    out = pa.PythonFile(sink, mode="w")
    with pq.ParquetWriter(out, schema) as writer:
        held: list[dict[str, Any]] = []
        n_bytes = 0
        while (got := wire.read(source))[0] == wire.ROWS:
            rows = m.ChunkResults.FromString(got[1]).rows
            held += [_fields(row, what.outputs) for row in rows]
            n_bytes += len(got[1])
            if len(held) >= _GROUP_ROWS or n_bytes >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(held, schema))
                held, n_bytes = [], 0
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema))
    sink.flush()


def column(spec: TensorSpec) -> str:
    """Return the name of an output's column: its own, unless a column of ours has that."""
    return f"{spec.name}_output" if spec.name in dict(_OWN) else spec.name


def _type(spec: TensorSpec) -> Any:
    found = _KINDS[spec.datatype][0]
    for _ in spec.shape[1:]:
        found = pa.list_(found)
    return found


def _fields(row: m.RowResult, outputs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    said = row.prediction
    fields: dict[str, Any] = {"row": row.number, "request_id": ids.text(said.id)}
    fields["id"] = said.client_request_id or None
    if said.outcome == m.OUTCOME_OK:
        by_name = {one.name: one for one in m.TensorSet.FromString(said.outputs).tensors}
        given = [(spec, by_name[spec.name]) for spec in outputs if spec.name in by_name]
        if all(len(one.shape) == len(spec.shape) and one.shape[:1] == [1] for spec, one in given):
            fields["status"] = "ok"
            return fields | {column(spec): _value(one) for spec, one in given}
        error = "no_parquet_form", "the answer is not one row of each output; read it as JSON lines"
    else:
        error = said.error_code, said.error_message
    cancelled = said.outcome == m.OUTCOME_CANCELLED
    fields["status"] = "cancelled" if cancelled else "failed"
    fields["error_code"], fields["error_message"] = error
    return fields


def _value(one: m.Tensor) -> Any:
    """Return a tensor of one row as a scalar or nested lists."""
    values = _values(one.data, one.datatype, tensors.n_elements(one.shape))
    for rank in range(len(one.shape) - 1, 0, -1):
        dim, n_lists = one.shape[rank], math.prod(one.shape[:rank])
        values = [values[at * dim : (at + 1) * dim] for at in range(n_lists)]
    return values[0]


def _values(data: bytes, datatype: str, count: int) -> list[Any]:
    if datatype == "BYTES":
        return tensors.split_bytes(data)
    if datatype == "BF16":
        return list(tensors.floats_of_bf16(data))
    return list(struct.unpack(f"<{count}{_KINDS[datatype][1]}", data))
