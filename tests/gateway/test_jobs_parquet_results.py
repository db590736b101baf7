"""Results of jobs as Parquet: the file, and what clients that take their time may hold."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pyarrow.parquet as pq
import pytest

from inferbus_gateway import errors
from inferbus_gateway.api.streamed import Streamed
from inferbus_gateway.control.jobs import forms, parquet
from inferbus_schemas import ids, tensors
from inferbus_schemas import messages as m
from tests.support.parquet_rows import (
    AS_FILE,
    GOOD,
    MAX_ROW_BYTES,
    MAX_ROWS,
    SIGNATURE,
    json_row,
    packed,
    pieces,
    result,
    rows_of,
    table,
    tensor,
)


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
