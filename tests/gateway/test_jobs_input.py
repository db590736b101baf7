"""From bytes of an upload to chunks: each row once, whatever the pieces and whatever it holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_gateway.control.jobs.chunks import Chunks, rows_per_chunk
from inferbus_gateway.control.jobs.lines import Lines
from inferbus_gateway.control.jobs.rows import RowReader
from inferbus_schemas import jobs
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m

SIGNATURE = manifests.Signature(
    inputs=(
        manifests.TensorSpec("x", "FP32", (-1, 3)),
        manifests.TensorSpec("words", "BYTES", (-1,)),
    ),
    outputs=(manifests.TensorSpec("y", "FP32", (-1, 3)),),
)
READER = RowReader(SIGNATURE, 1 << 20)
OPEN = RowReader(
    manifests.Signature(inputs=(manifests.TensorSpec("x", "INT64", (-1, -1, 2)),), outputs=()),
    1 << 20,
)

FLAT = RowReader(
    manifests.Signature(inputs=(manifests.TensorSpec("x", "FP32", (-1, -1)),), outputs=()), 1 << 20
)


def cut(data: bytes, *places: int, max_bytes: int = 1 << 20) -> list[bytes | None]:
    """Feed `data` in pieces that end at `places`."""
    lines = Lines(max_bytes)
    found: list[bytes | None] = []
    last = 0
    for place in (*sorted(place % (len(data) + 1) for place in places), len(data)):
        found += lines.feed(data[last:place])
        last = place
    return found + list(lines.end())


@given(
    st.lists(st.sampled_from([b"", b"  ", b"{}", b"[1]\r", b"abcdefgh"])),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_lines_do_not_depend_on_pieces(given_lines: list[bytes], places: list[int]) -> None:
    data = b"\n".join(given_lines)
    assert cut(data, *places) == [line.strip() for line in given_lines if line.strip()]


@given(st.lists(st.integers(0, 200), max_size=8))
def test_a_long_line_is_marked_and_not_held(places: list[int]) -> None:
    data = b"ab\n" + b"x" * 100 + b"\ncd"
    assert cut(data, *places, max_bytes=10) == [b"ab", None, b"cd"]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert cut(b"\xef\xbb\xbf{}\n{}") == [b"{}", b"{}"]


def plain(**fields: object) -> bytes:
    return json.dumps({"x": [1, 2, 3], "words": "a", **fields}).encode()


def oip(**more: object) -> bytes:
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]},
        {"name": "words", "datatype": "BYTES", "shape": [1], "data": ["a"]},
    ]
    return json.dumps({"inputs": inputs, **more}).encode()


def test_both_forms_of_a_row_are_the_same_tensors() -> None:
    short, long = READER.read(7, plain()), READER.read(7, oip(id="me", outputs=[{"name": "y"}]))
    assert short.tensors == long.tensors
    assert not short.refused
    assert (long.number, long.client_request_id, list(long.outputs)) == (7, "me", ["y"])
    first, second = m.TensorSet.FromString(short.tensors).tensors
    assert (first.name, list(first.shape)) == ("x", [1, 3])
    assert (second.name, second.data) == ("words", b"\x01\0\0\0a")


def test_open_dimensions_are_measured() -> None:
    row = OPEN.read(0, b'{"x": [[1, 2], [3, 4], [5, 6]]}')
    assert not row.refused
    assert list(m.TensorSet.FromString(row.tensors).tensors[0].shape) == [1, 3, 2]
    for bad in (b'{"x": [[1, 2], [3]]}', b'{"x": [1, 2]}', b'{"x": [[1, 2, 3]]}', b'{"x": 4}'):
        assert OPEN.read(0, bad).refused


@pytest.mark.parametrize(
    ("value", "n"),
    [
        (b"1" + b" " * 20_000, None),
        (b"[" + b" " * 20_000 + b"]", None),
        (b" [" + b"1," * 9999 + b"1 ] ", 10_000),
    ],
)
def test_a_long_list_of_numbers_is_measured_by_its_commas(value: bytes, n: int | None) -> None:
    row = FLAT.read(0, b'{"x": %s}' % value)
    assert bool(row.refused) == (n is None)
    if n is not None:
        assert list(m.TensorSet.FromString(row.tensors).tensors[0].shape) == [1, n]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (None, "too long"),
        (b"{bad", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b"{}", "'x' is missing"),
        (plain(z=1), "no input 'z'"),
        (plain(x=[1, 2]), "elements"),
        (plain(x=[1, 2, "3"]), "FP32"),
        (plain(x=[1, 2, float("nan")]), "not a JSON object"),
        (plain(x=[1, 2, 1e300]), "range"),
        (b'{"x":[1,2,3],"x":[1,2,3],"words":"a"}', "twice"),
        (b'{"x":[1,2,3],"words":"b","w\\u006frds":"a"}', "twice"),
        (plain(words=["a", "b"]), "words"),
        (oip(inputs=[]), "missing"),
        (oip(inputs=7), "not an inference request"),
        (oip(outputs=[{"name": "no"}]), "no output"),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[99999999999,3],"data":[1]}]}', "x"),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[-1,3],"data":[1]}]}', "shape"),
    ],
)
def test_a_bad_row_says_why(line: bytes | None, said: str) -> None:
    row = READER.read(3, line)
    assert said in row.refused
    assert (row.number, row.tensors) == (3, b"")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_row_raises(line: bytes) -> None:
    row = READER.read(0, line)
    assert bool(row.refused) != bool(row.tensors)


def test_tensors_over_the_limit_are_refused() -> None:
    reader = RowReader(SIGNATURE, 40)
    assert "too large" in reader.read(0, plain(words="w" * 100)).refused


@pytest.mark.parametrize(
    ("shape", "n_rows", "asked", "refused"),
    [
        ((-1, 2), 1, (), False),
        ((-1, 2), 2, (), True),
        ((-1, 2), 2, ("y",), False),
        ((-1, 2), 2, ("y", "half"), True),
        ((1, 2), 2, (), False),
        ((2,), 1, (), True),
        ((), 1, (), True),
    ],
)
@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_a_row_whose_answer_has_no_form_is_refused(
    shape: tuple[int, ...],
    n_rows: int,
    asked: tuple[str, ...],
    refused: bool,  # noqa: FBT001
    datatype: manifests.Datatype,
) -> None:
    """JSON lines have no halves; a Parquet file has one row of each output."""
    outputs = (
        manifests.TensorSpec("half", datatype, shape),
        manifests.TensorSpec("y", "FP32", (-1,)),
    )
    signature = manifests.Signature((manifests.TensorSpec("x", "FP32", (-1,)),), outputs)
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [n_rows], "data": [1] * n_rows}],
        "outputs": [{"name": one} for one in asked],
        "parameters": {"binary_data_output": True},
    }
    row = RowReader(signature, 1 << 20).read(0, json.dumps(body).encode())
    why = f"output 'half': the results of a job have {datatype} of one row only"
    assert row.refused.startswith(why) if refused else not row.refused


def test_a_line_has_no_more_rows_than_a_request() -> None:
    said = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 1], "data": [1, 2, 3]}]}
    of = manifests.Signature((manifests.TensorSpec("x", "FP32", (-1, 1)),), ())
    line = json.dumps(said).encode()
    assert "3 rows are more than the 2" in RowReader(of, 1 << 20, 2).read(0, line).refused
    assert RowReader(of, 1 << 20, 3).read(0, line).tensors


@given(st.lists(st.integers(0, jobs.MAX_CHUNK_BYTES + 10), max_size=30), st.integers(1, 5))
def test_each_row_is_in_one_chunk_in_order(sizes: list[int], max_rows: int) -> None:
    chunks = Chunks(max_rows)
    made = []
    for number, size in enumerate(sizes):
        if (done := chunks.add(m.Row(number=number, tensors=bytes(size)))) is not None:
            made.append(done)
    if (rest := chunks.rest()) is not None:
        made.append(rest)
    assert [row.number for chunk in made for row in chunk.rows] == list(range(len(sizes)))
    for chunk in made:
        assert 1 <= len(chunk.rows) <= max_rows
        n_bytes = sum(len(row.tensors) for row in chunk.rows)
        assert len(chunk.rows) == 1 or n_bytes <= jobs.MAX_CHUNK_BYTES


def manifest(*, task: str, shape: tuple[int, ...]) -> manifests.Manifest:
    said = {
        "model": "m",
        "task": task,
        "engine": "onnx",
        "signature": {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": shape}],
        },
        "files": [{"path": "model.onnx", "sha256": "0" * 64, "size_bytes": 1}],
    }
    return manifests.parse(json.dumps(said).encode())


def test_a_chunk_has_fewer_rows_where_answers_are_large() -> None:
    small, large = (
        manifest(task="tensor", shape=(-1, 3)),
        manifest(task="tensor", shape=(-1, 1 << 20)),
    )
    assert rows_per_chunk(small, "generate") == jobs.MAX_CHUNK_ROWS
    assert rows_per_chunk(large, "generate") == 4
    assert rows_per_chunk(small, "tensor") == 32


def test_what_a_row_asks_for_counts_as_its_tensors_do() -> None:
    chunks = Chunks(100)
    large = m.Row(generation=m.Generation(tools="x" * (jobs.MAX_CHUNK_BYTES // 2 + 1)))
    assert chunks.add(large) is None
    full = chunks.add(large)
    assert full is not None
    assert len(full.rows) == 1
