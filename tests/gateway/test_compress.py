"""Compressed answers: when, and that nothing else of the answer changes."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import Callable

import pytest

from inferbus_gateway.hot.answer import Answer
from inferbus_gateway.hot.compress import MIN_BYTES, compressing
from inferbus_gateway.hot.incoming import read_head

UNPACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.decompress,
    b"deflate": zlib.decompress,
}


def answer(body: bytes) -> Answer:
    head = [(b"content-length", b"%d" % len(body)), (b"x-request-id", b"r")]
    return Answer(200, head, body)


async def taken(given: Answer, coding: bytes) -> Answer:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    compressing(coding, future.set_result)(given)
    return await future


@pytest.mark.parametrize("coding", sorted(UNPACK))
@pytest.mark.parametrize("size", [MIN_BYTES, 1 << 20])
async def test_a_body_is_compressed_and_the_rest_stays(coding: bytes, size: int) -> None:
    body = b"0123456789abcdef" * (size // 16)
    got = await taken(answer(body), coding)
    assert UNPACK[coding](got.body) == body
    assert len(got.body) < size // 10
    assert (got.status, dict(got.headers)) == (
        200,
        {
            b"content-length": b"%d" % len(got.body),
            b"content-encoding": coding,
            b"x-request-id": b"r",
        },
    )


@pytest.mark.parametrize("body", [b"0" * (MIN_BYTES - 1), os.urandom(2000), os.urandom(1 << 16)])
async def test_what_saves_nothing_stays_as_it_is(body: bytes) -> None:
    given = answer(body)
    assert await taken(given, b"gzip") is given


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"gzip, deflate, br", b""),
        (b"br", b""),
        (b"*", b""),
        (b"identity", b""),
        (b"gzip;q=0", b""),
    ],
)
def test_only_one_coding_by_name_asks_for_it(value: bytes, coding: bytes) -> None:
    assert read_head([(b"accept-encoding", value)]).coding == coding


@pytest.mark.parametrize(
    ("values", "later"),
    [
        ((b"respond-async",), True),
        ((b"return=minimal ,  Respond-Async; x=1, wait=1",), True),
        ((b"return=minimal", b"respond-async", b"wait=1"), True),
        ((b"x-respond-async-not",), False),
        ((b"respond-async-not, not-respond-async",), False),
        ((b"wait=1; respond-async",), False),
        ((b"", b",=;"), False),
    ],
)
def test_only_a_preference_of_that_name_makes_a_job(values: tuple[bytes, ...], later: bool) -> None:  # noqa: FBT001 -- a parameter of the table
    assert read_head([(b"prefer", value) for value in values]).respond_async == later
