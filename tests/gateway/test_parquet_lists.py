"""Outputs of a row as nested lists of a Parquet file, empty ones in their places."""

from __future__ import annotations

import io
import struct
from typing import Any

import pyarrow.parquet as pq
import pytest

from inferbus_gateway.columns import wire, write
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import TensorSpec


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((1,), 0.0),
        ((1, 0), []),
        ((1, 2), [0.0, 1.0]),
        ((1, 2, 0), [[], []]),
        ((1, 0, 2), []),
        ((1, 2, 1, 0), [[[]], [[]]]),
        ((1, 2, 1, 2), [[[0.0, 1.0]], [[2.0, 3.0]]]),
    ],
)
def test_lists_are_those_of_the_shape(shape: tuple[int, ...], found: Any) -> None:
    count = 1
    for dim in shape:
        count *= dim
    data = struct.pack(f"<{count}f", *range(count))
    tensor = m.Tensor(name="y", datatype="FP32", shape=shape, data=data)
    said = m.Prediction(id=bytes(16), outcome=m.OUTCOME_OK)
    said.outputs = m.TensorSet(tensors=[tensor]).SerializeToString()
    rows = m.ChunkResults(rows=[m.RowResult(number=0, prediction=said)])
    source = wire.part(wire.ROWS, rows.SerializeToString()) + wire.part(wire.END)
    made = io.BytesIO()
    spec = TensorSpec("y", "FP32", (-1,) * len(shape))
    write.file(io.BytesIO(source), made, wire.Writing((spec,)))
    assert pq.read_table(io.BytesIO(made.getvalue())).to_pylist()[0]["y"] == found
