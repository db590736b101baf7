"""Rows of a job as Parquet, for a signature of every kind of column; and how they are read."""

from __future__ import annotations

import io
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inferbus_gateway.columns import read, wire
from inferbus_gateway.control.jobs import parquet
from inferbus_gateway.control.jobs.rows import RowReader
from inferbus_schemas import ids, tensors
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m

Spec = manifests.TensorSpec
SIGNATURE = manifests.Signature(
    inputs=(
        Spec("x", "FP32", (-1, 3)),
        Spec("words", "BYTES", (-1,)),
        Spec("image", "UINT8", (-1, 2, 2)),
        Spec("any", "INT64", (-1, -1)),
        Spec("yes", "BOOL", (-1,)),
    ),
    outputs=(Spec("y", "FP32", (-1, 2)), Spec("row", "BF16", (-1,)), Spec("text", "BYTES", (-1,))),
)
GOOD: dict[str, Any] = {
    "x": [1.0, 2.5, -3.0],
    "words": "a",
    "image": [[1, 2], [3, 4]],
    "any": [7, 8],
    "yes": True,
}
TYPES = {
    "x": pa.list_(pa.float64(), 3),
    "words": pa.string(),
    "image": pa.large_list(pa.list_(pa.int32())),
    "any": pa.list_(pa.int8()),
    "yes": pa.bool_(),
}
MAX_ROWS, MAX_ROW_BYTES = 1000, 1 << 20
AS_FILE = SIGNATURE, 4 << 20


def table(rows: list[dict[str, Any]], **types: Any) -> bytes:
    """Return a file; `types` are those of columns, over the usual ones."""
    schema = pa.schema([(name, kind) for name, kind in {**TYPES, **types}.items()])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out, row_group_size=300)
    return out.getvalue()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


async def rows_of(
    data: bytes, max_rows: int = MAX_ROWS, share: parquet.Share | None = None
) -> list[m.Row]:
    """Read a file as a gateway does."""
    seen: list[bytes] = []
    with await parquet.spool(pieces(data), 1 << 20, seen.append) as kept:
        assert b"".join(seen) == data
        mine = share or parquet.Slots().of("acme")
        found = parquet.rows(mine, kept, SIGNATURE, max_rows, MAX_ROW_BYTES)
        return [row async for row in found]


def read_here(data: bytes, signature: manifests.Signature = SIGNATURE) -> list[m.Row] | str:
    """Read a file in this process; return the rows or why there are none."""
    out = io.BytesIO()
    read.rows(io.BytesIO(data), out, wire.Reading(signature.inputs, MAX_ROWS, MAX_ROW_BYTES))
    out.seek(0)
    found: list[m.Row] = []
    while (got := wire.read(out))[0] == wire.ROWS:
        found += m.Chunk.FromString(got[1]).rows
    return found if got[0] == wire.END else got[1].decode()


def json_row(number: int, row: dict[str, Any]) -> m.Row:
    return RowReader(SIGNATURE, MAX_ROW_BYTES).read(number, json.dumps(row).encode())


def result(number: int, *outputs: m.Tensor, **more: Any) -> m.RowResult:
    said = m.Prediction(id=ids.uuid7(1, number), outcome=m.OUTCOME_OK, **more)
    said.outputs = m.TensorSet(tensors=outputs).SerializeToString()
    return m.RowResult(number=number, prediction=said)


def tensor(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> m.Tensor:
    return m.Tensor(name=name, datatype=datatype, shape=shape, data=data)


async def packed(n_rows: int = 300) -> AsyncIterator[m.RowResult]:
    """Yield results of 3 kB each that do not pack."""
    noise = random.Random(1)
    for at in range(n_rows):
        text = tensors.join_bytes([noise.randbytes(3000)])
        yield result(at, tensor("text", "BYTES", (1,), text))
