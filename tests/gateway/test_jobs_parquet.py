"""Parquet files to rows and results to Parquet files, by the real process that does it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inferbus_gateway import errors
from inferbus_gateway.api.streamed import Streamed
from inferbus_gateway.columns import read, wire
from inferbus_gateway.control.jobs import forms, parquet
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


def result(number: int, *outputs: m.Tensor, **more: Any) -> m.RowResult:
    said = m.Prediction(id=ids.uuid7(1, number), outcome=m.OUTCOME_OK, **more)
    said.outputs = m.TensorSet(tensors=outputs).SerializeToString()
    return m.RowResult(number=number, prediction=said)


def tensor(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> m.Tensor:
    return m.Tensor(name=name, datatype=datatype, shape=shape, data=data)


@pytest.mark.slow
async def test_results_as_a_file() -> None:
    y = tensor("y", "FP32", (1, 2), b"\0\0\x80\x3f\0\0\0\0")
    half = tensor("row", "BF16", (1,), b"\x40\xc0")
    text = tensor("text", "BYTES", (1,), tensors.join_bytes([b"\xff"]))
    wide = tensor("y", "FP32", (2, 2), bytes(16))
    failed = m.Prediction(
        id=ids.uuid7(1, 3), outcome=m.OUTCOME_FAILED, error_code="no", error_message="never"
    )
    gone = m.Prediction(id=ids.uuid7(1, 4), outcome=m.OUTCOME_CANCELLED)
    given = [
        result(0, y, half, text, client_request_id="mine"),
        result(1, y),
        result(2, wide, half, text),
        m.RowResult(number=3, prediction=failed),
        m.RowResult(number=4, prediction=gone),
    ]

    async def results() -> AsyncIterator[m.RowResult]:
        for one in given:
            yield one

    file = parquet.file(parquet.Slots().of("acme"), results(), *AS_FILE)
    data = b"".join([piece async for piece in file])
    found = pq.read_table(io.BytesIO(data)).to_pylist()
    assert [row["row"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["request_id"] for row in found] == [ids.text(ids.uuid7(1, at)) for at in range(5)]
    assert [row["status"] for row in found] == ["ok", "ok", "failed", "failed", "cancelled"]
    first = {name: found[0][name] for name in ("id", "y", "row_output", "text", "error_code")}
    assert first == {
        "id": "mine",
        "y": [1.0, 0.0],
        "row_output": -3.0,
        "text": b"\xff",
        "error_code": None,
    }
    assert (found[1]["y"], found[1]["text"]) == ([1.0, 0.0], None)
    assert found[2]["error_code"] == "no_parquet_form"
    assert (found[3]["error_code"], found[3]["error_message"]) == ("no", "never")


@pytest.mark.slow
async def test_a_client_that_takes_its_time_holds_no_process() -> None:
    one = parquet.Slots(1, 1).of("acme")
    slow = parquet.file(one, packed(), *AS_FILE)
    data = await anext(slow)
    assert await rows_of(table([GOOD]), share=one) == [json_row(0, GOOD)]
    data += b"".join([piece async for piece in slow])
    assert pq.read_table(io.BytesIO(data)).num_rows == 300
    with pytest.raises(errors.OutputTooLargeError, match="read them as JSON lines"):
        await anext(parquet.file(one, packed(), SIGNATURE, 50_000))


async def packed(n_rows: int = 300) -> AsyncIterator[m.RowResult]:
    """Yield results of 3 kB each that do not pack."""
    noise = random.Random(1)
    for at in range(n_rows):
        text = tensors.join_bytes([noise.randbytes(3000)])
        yield result(at, tensor("text", "BYTES", (1,), text))


async def receive() -> Any:
    await asyncio.Event().wait()


@pytest.mark.slow
async def test_a_client_that_leaves_or_takes_nothing_lets_its_place_go() -> None:
    async def gone(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    one = parquet.Slots(1, 1, wait_s=0.0).of("acme")
    scope = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.3"}}
    for send, error in ((gone, OSError), (stuck, errors.FailedError), (gone, OSError)):
        pieces = parquet.file(one, packed(), *AS_FILE)
        with pytest.raises(error):
            await Streamed(pieces, parquet.MEDIA_TYPE, 0.1)(scope, receive, send)


FILL_S = 0.3
"""In which a process fills its pipe and what is read ahead of it."""


@pytest.mark.slow
@pytest.mark.timeout(30)
async def test_who_stops_reading_early_lets_its_process_go() -> None:
    one = parquet.Slots(1, 1, wait_s=0.0).of("acme")
    noise = random.Random(1)
    much = table([{**GOOD, "words": noise.randbytes(3000).hex()} for _ in range(300)])
    with await parquet.spool(pieces(much), 4 << 20, lambda _: None) as kept:
        found = parquet.rows(one, kept, SIGNATURE, MAX_ROWS, MAX_ROW_BYTES)
        await anext(found)
        await asyncio.sleep(FILL_S)
        await found.aclose()
    async with one.process():
        pass


@pytest.mark.slow
@pytest.mark.timeout(30)
async def test_who_stops_writing_early_lets_its_process_go(monkeypatch: pytest.MonkeyPatch) -> None:
    add = parquet._Kept._add

    def slowly(kept: parquet._Kept, piece: bytes) -> None:
        time.sleep(FILL_S)
        add(kept, piece)

    monkeypatch.setattr(parquet._Kept, "_add", slowly)
    one = parquet.Slots(1, 1, wait_s=0.0).of("acme")
    with pytest.raises(errors.OutputTooLargeError):
        async for _ in parquet.file(one, packed(), SIGNATURE, 100_000):
            pass
    leaving = parquet.file(one, packed(), *AS_FILE)
    await anext(leaving)
    await leaving.aclose()
    async with one.process(), one.fetched():
        pass


@pytest.mark.slow
@pytest.mark.timeout(30)
async def test_a_store_that_breaks_off_says_so_to_who_fetches() -> None:
    async def broken() -> AsyncIterator[m.RowResult]:
        yield result(0)
        raise errors.ObjectStoreError("the store is away")

    one = parquet.Slots(1, 1, wait_s=0.0).of("acme")
    with pytest.raises(errors.ObjectStoreError, match="the store is away"):
        await anext(parquet.file(one, broken(), *AS_FILE))
    async with one.process(), one.fetched():
        pass


async def none() -> AsyncIterator[m.RowResult]:
    nothing: list[m.RowResult] = []
    for row in nothing:
        yield row


async def test_who_finds_no_place_is_told() -> None:
    slots = parquet.Slots(1, 1, wait_s=0.0, n_tenant_fetched=1)
    full, other = slots.of("acme"), slots.of("other")
    async with full.process(), full.fetched():
        for share, error in ((full, errors.TenantBusyError), (other, errors.OverloadedError)):
            with pytest.raises(error, match="being read or written"):
                await rows_of(table([GOOD]), share=share)
            with pytest.raises(error, match="being fetched"):
                await anext(parquet.file(share, none(), *AS_FILE))
        limits = forms.Limits(1, 1, 1, 1, 1, 1, parquet=slots)
        taken: list[bytes] = []
        body = pieces(table([GOOD]))
        with pytest.raises(errors.OverloadedError):
            await anext(
                forms.rows("parquet", body, SIGNATURE, limits, taken.append, tenant="other")
            )
        assert not taken, "of a file that nobody can read"
    async with full.process(), full.fetched():
        pass


async def test_a_tenant_has_its_share_of_the_places() -> None:
    slots = parquet.Slots(wait_s=0.0)
    async with contextlib.AsyncExitStack() as held:
        await held.enter_async_context(slots.of("acme").process())
        for _ in range(4):
            await held.enter_async_context(slots.of("acme").fetched())
        for place in (slots.of("acme").process(), slots.of("acme").fetched()):
            with pytest.raises(errors.TenantBusyError, match="of your tenant"):
                await held.enter_async_context(place)
        await held.enter_async_context(slots.of("other").process())
        await held.enter_async_context(slots.of("other").fetched())
