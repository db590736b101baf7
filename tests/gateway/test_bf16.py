"""BF16 (and FP16) beyond the codecs: columns of a job's input, the greatest of an output."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inferbus_gateway.columns import read, wire
from inferbus_gateway.hot import classify
from inferbus_schemas import messages as m
from inferbus_schemas import tensors
from inferbus_schemas.manifest import TensorSpec

BF16, FP16 = TensorSpec("x", "BF16", (-1, 2)), TensorSpec("x", "FP16", (-1, 2))


def rows(values: Any, kind: Any, spec: TensorSpec = BF16) -> list[m.Row]:
    file, out = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"x": pa.array(values, pa.list_(kind, 2))}), file)
    file.seek(0)
    read.rows(file, out, wire.Reading((spec,), 10_000, 1 << 20))
    out.seek(0)
    found: list[m.Row] = []
    while (got := wire.read(out))[0] == wire.ROWS:
        found += m.Chunk.FromString(got[1]).rows
    assert got[0] == wire.END
    return found


def data_of(row: m.Row, spec: TensorSpec = BF16) -> bytes:
    (tensor,) = m.TensorSet.FromString(row.tensors).tensors
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", spec.datatype, [1, 2])
    return tensor.data


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int16()])
def test_a_column_is_rounded_as_another_library_rounds_it(kind: Any) -> None:
    if kind == pa.int16():
        given = np.arange(-1000, 1000, 5, dtype=np.int16).astype(np.float32)
    else:
        bits = np.random.default_rng(2).integers(0, 1 << 32, 1000, np.uint32)
        ties = np.arange(100, dtype=np.uint32) << 16 | 0x3F80_8000
        given = np.concatenate([bits, ties]).view(np.float32)
        given = given[np.abs(given) < 3e38]
        given = np.append(given, [np.inf, -np.inf, -0.0, 1e-45]).astype(np.float32)
    pairs = given[: len(given) // 2 * 2].reshape(-1, 2)
    whole = pairs.astype(np.int64) if kind == pa.int16() else pairs.astype(np.float64)
    want = pairs.astype(ml_dtypes.bfloat16)
    found = rows(whole.tolist(), kind)
    assert [data_of(row) for row in found] == [one.tobytes() for one in want]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_so_is_one_of_fp16(kind: Any) -> None:
    given = np.arange(0x3C00_0000, 0x4700_0000, 0x1_1357, dtype=np.uint32).view(np.float32)
    pairs = given[: len(given) // 2 * 2].reshape(-1, 2)
    found = rows(pairs.astype(np.float64).tolist(), kind, FP16)
    want = pairs.astype(np.float16)
    assert [data_of(row, FP16) for row in found] == [one.tobytes() for one in want]


def test_what_it_cannot_hold_is_refused_alone_and_not_a_number_stays_none() -> None:
    # 3.4e38 is finite as FP32 and no more as BF16, 1e39 not even as FP32.
    given = [[1.0, 3.4e38], [1.0, 2.0], [-1e39, 1.0], [float("nan"), 1.0], [None, 1.0]]
    large, fine, larger, none, null = rows(given, pa.float64())
    assert "an element is out of the range of BF16" in large.refused
    assert "an element is out of the range of BF16" in larger.refused
    assert "an element is null" in null.refused
    assert data_of(fine) == bytes.fromhex("803f0040")
    assert np.isnan(tensors.floats_of_bf16(data_of(none))[0])


def test_the_greatest_come_first() -> None:
    classify.check("y", "BF16")
    values = np.array([[0.5, 2, -1]], ml_dtypes.bfloat16)
    given = m.Tensor(name="y", datatype="BF16", shape=values.shape, data=values.tobytes())
    (said,) = classify.replace([given], {"y": 2}, {"classes": ["a", "b"]})
    assert tensors.split_bytes(said.data) == [b"2.000000:1:b", b"0.500000:0:a"]
