"""Parquet files to rows and results to Parquet files, by the real process that does it."""

from __future__ import annotations

import io
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inferbus_gateway import errors
from inferbus_gateway.columns import read
from inferbus_gateway.control.jobs import parquet
from tests.support.parquet_rows import (
    GOOD,
    json_row,
    pieces,
    read_here,
    rows_of,
    table,
)


@pytest.mark.slow
async def test_a_row_is_the_same_from_parquet_and_from_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An image of the gateway has no numpy.
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    monkeypatch.setitem(parquet._ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    given = [{**GOOD, "words": f"é{at}", "x": [at, 0.1, -1e30]} for at in range(700)]
    assert await rows_of(table(given)) == [json_row(at, row) for at, row in enumerate(given)]
    with pytest.raises(errors.TooLargeError):
        await rows_of(table(given), max_rows=699)


@pytest.mark.parametrize(
    "types",
    [
        {
            "x": pa.large_list(pa.float32()),
            "words": pa.large_binary(),
            "any": pa.list_(pa.uint64()),
        },
        {"x": pa.list_(pa.int8()), "words": pa.dictionary(pa.int32(), pa.string())},
        {"words": pa.string_view()},
        {"words": pa.binary_view()},
    ],
)
def test_types_that_mean_the_same(types: dict[str, Any]) -> None:
    row = {**GOOD, "x": [1, 2, 3]}
    raw = {**row, "words": b"a"} if "binary" in str(types["words"]) else row
    assert read_here(table([raw, raw], **types)) == [json_row(0, row), json_row(1, row)]


def test_a_fixed_shape_may_come_as_a_flat_list() -> None:
    data = table([{**GOOD, "image": [1, 2, 3, 4]}], image=pa.list_(pa.uint8()))
    assert read_here(data) == [json_row(0, GOOD)]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"x": None}, "input 'x': is null"),
        ({"any": [1, None]}, "input 'any': an element is null"),
        ({"words": None}, "input 'words': is null"),
        ({"image": [[1, 2], [3]]}, "input 'image': its lists have different lengths"),
        ({"image": [[1, 2]]}, "input 'image': has the shape [1, 2], not [2, 2]"),
        ({"image": []}, "input 'image': has the shape"),
        ({"image": [[1, 2], [3, 256]]}, "input 'image': an element is out of the range of UINT8"),
        ({"image": [[1, 2], [3, -1]]}, "input 'image': an element is out of the range of UINT8"),
        ({"x": [0, 0, 1e300]}, "input 'x': an element is out of the range of FP32"),
        ({"words": "w" * (1 << 20)}, "the row's tensors are too large"),
    ],
)
def test_a_row_that_does_not_fit_says_why_and_no_other_does(bad: dict[str, Any], why: str) -> None:
    found = read_here(table([GOOD, {**GOOD, **bad}, GOOD]))
    assert not isinstance(found, str)
    assert found[1].refused.startswith(why)
    assert [found[0], found[2]] == [json_row(0, GOOD), json_row(2, GOOD)]


def without(name: str) -> bytes:
    out = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(table([GOOD]))).drop_columns(name), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (table([{**GOOD, "more": 1}], more=pa.int8()), "the model has no input 'more'"),
        (table([{**GOOD, "x\n": 1}], **{"x\n": pa.int8()}), "the model has no input 'of a column'"),
        (without("any"), "input 'any' has no column"),
        (table([{**GOOD, "any": [1.0]}], any=pa.list_(pa.float32())), "input 'any': a column of"),
        (table([{**GOOD, "yes": 1}], yes=pa.int8()), "input 'yes': a column of BOOL is needed"),
        (table([{**GOOD, "words": 1}], words=pa.timestamp("s")), "input 'words': a column of"),
        (table([{**GOOD, "x": {"a": 1}}], x=pa.struct([("a", pa.int8())])), "input 'x': lists 1"),
        (table([{**GOOD, "x": 1.0}], x=pa.float32()), "input 'x': lists 1 deep are needed"),
        (table([{**GOOD, "image": [None, [1, 2]]}]), "input 'image': a list inside a row is null"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(data: bytes, why: str) -> None:
    found = read_here(data)
    assert isinstance(found, str)
    assert found.startswith(why)


def test_row_groups_that_would_fill_memory_are_refused_by_the_footer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = table([{**GOOD, "words": "w" * 100_000}] * 300)
    assert len(data) < 30_000  # what it says of itself is a thousand times that
    monkeypatch.setattr(read, "_MAX_GROUP_BYTES", 100_000)
    assert "write smaller ones" in str(read_here(data))


@pytest.mark.slow
async def test_a_dictionary_that_unpacks_to_gigabytes_costs_a_process_and_no_gateway() -> None:
    values = pa.array(["w" * 6_000_000])
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), values)
    plain = pq.read_table(io.BytesIO(table([GOOD] * 256)))
    out = io.BytesIO()
    pq.write_table(plain.set_column(1, "words", words), out)
    assert len(out.getvalue()) < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.TooLargeError, match="write smaller row groups"):
        await rows_of(out.getvalue())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10  # KiB, or bytes on a system that counts those


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_what_is_no_file_is_refused_whatever_it_does_to_its_process() -> None:
    whole = table([GOOD] * 50)
    flipped = [bytearray(whole) for _ in range(6)]
    for number, one in enumerate(flipped):
        for at in range(number + 4, len(one) - 8, 97):
            one[at] ^= 0xFF
    footer = bytearray(whole)
    footer[-8:-4] = b"\xff\xff\xff\x7f"
    for data in (b"", b"PAR1PAR1", whole[:-1], whole[100:], bytes(footer), *map(bytes, flipped)):
        with pytest.raises(errors.InvalidRequestError) as refusal:
            await rows_of(data)
        assert "/" not in str(refusal.value)
    with pytest.raises(errors.TooLargeError):
        await parquet.spool(pieces(whole), len(whole) - 1, lambda _: None)
