"""Messages on their way in: places, who waits for one, and what the transport holds meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from inferbus_gateway import errors
from inferbus_gateway.api import rpc
from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.api.rpc_arrivals import Arrivals
from inferbus_schemas import access
from tests.gateway.key_records import bearer, record
from tests.gateway.test_rpc_access import Listener
from tests.support.http2 import Http2
from tests.support.listener import rss_bytes


class Call:
    """A call whose message comes when it is told to."""

    def __init__(self, arrivals: Arrivals, holder: str) -> None:
        self.asked = False
        self._here = asyncio.Event()
        self.told = asyncio.create_task(arrivals.message(self._read, holder))

    async def _read(self) -> str:
        self.asked = True
        await self._here.wait()
        return "message"

    async def come(self) -> object:
        self._here.set()
        return await self.told


async def test_so_many_are_asked_for_and_the_others_wait_in_order() -> None:
    arrivals = Arrivals(3, 2, 30.0)
    calls = [Call(arrivals, holder) for holder in ("a", "a", "a", "b", "b", "c")]
    await asyncio.sleep(0)
    assert [one.asked for one in calls] == [True, True, False, True, False, False]
    assert await calls[0].come() == "message"
    await asyncio.sleep(0.01)
    # Who waits for a place of all was there before who now waits for one of its own.
    assert [one.asked for one in calls] == [True, True, False, True, True, False]
    for leaving in (calls[1], calls[2]):
        leaving.told.cancel()
    await asyncio.sleep(0.01)
    assert [one.asked for one in calls[2:]] == [False, True, True, True]
    for one in calls[3:]:
        assert await one.come() == "message"
    assert not arrivals._each
    assert not arrivals._n_here


async def test_what_comes_too_slowly_gives_its_place_back() -> None:
    arrivals = Arrivals(1, 1, 1.0)
    slow = Call(arrivals, "a")
    await asyncio.sleep(0.5)
    next_one = Call(arrivals, "b")
    with pytest.raises(errors.SlowBodyError):
        await slow.told
    assert await next_one.come() == "message"


async def test_who_waits_for_a_place_for_too_long_is_refused() -> None:
    arrivals = Arrivals(1, 1, 1.0)
    first = Call(arrivals, "a")
    await asyncio.sleep(0.6)
    waiting = [Call(arrivals, holder) for holder in "abc"]
    with pytest.raises(errors.SlowBodyError):
        await first.told
    await asyncio.sleep(0.02)
    (taken,) = (one for one in waiting if one.asked)
    for one in waiting:
        if one is not taken:
            with pytest.raises(errors.OverloadedError, match="try again"):
                await one.told
    assert await taken.come() == "message"
    assert not arrivals._each


async def test_a_call_without_a_message_is_refused() -> None:
    async def nothing() -> object:
        return grpc.aio.EOF

    with pytest.raises(errors.InvalidRequestError, match="no message"):
        await Arrivals(1, 1, 1.0).message(nothing, "a")


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener.running() as made:
        yield made


MESSAGE = struct.pack(">BI", 0, 1_000_000) + b"\x7a" * 999_000
"""All but the end of a message of the greatest size."""
NOT_SERVING = b"\x08\x02"
UNKNOWN_FIELD = b"\xfa\x3f" + b"\x80\x80\x3c" + b"x" * 983_040
"""A message of any kind: of one field, 1023, that none has."""


@pytest.mark.parametrize(
    ("method", "least"),
    [(f"{SERVICE}/ModelInfer", 1), ("grpc.health.v1.Health/Check", 4)],
)
async def test_the_transport_takes_little_of_what_nobody_reads_yet(
    listener: Listener, method: str, least: int
) -> None:
    """`Listener` has a place for one such message of a tenant, and for four of an address."""
    listener.keys.apply(record(1, access.INFER_ALL))
    n_calls = 12
    async with Http2.connected(listener.server.port) as client:
        for _ in range(n_calls):
            client.call(f"/{method}", authorization=bearer(1).decode())
        sent = await client.push(MESSAGE, for_s=3.0)
    whole = [size for size in sent.values() if size == len(MESSAGE)]
    assert len(whole) == least
    assert sum(sent.values()) < least * len(MESSAGE) + n_calls * (100 << 10)


@pytest.fixture
async def hasty(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Listener]:
    """A listener of little patience."""
    for name in ("_PATIENCE_S", "_PATIENCE_OF_SMALL_S"):
        monkeypatch.setattr(rpc, name, 0.3)
    async with Listener.running() as made:
        yield made


@pytest.mark.parametrize(
    ("method", "answered"),
    [(f"{SERVICE}/ModelInfer", 0), ("grpc.health.v1.Health/Check", 1)],
)
async def test_a_message_that_comes_too_slowly_ends_its_call(
    hasty: Listener, method: str, answered: int, caplog: pytest.LogCaptureFixture
) -> None:
    hasty.keys.apply(record(1, access.INFER_ALL))
    async with Http2.connected(hasty.server.port) as client:
        calls = [client.call(f"/{method}", authorization=bearer(1).decode()) for _ in range(5)]
        await client.push(MESSAGE, for_s=3.0)
        assert client.ended == set(calls)
        # A tenant has one place here; health four for an address, and answers others unread.
        assert client.n_answered == answered
    assert len(hasty.refused) == 5 - answered
    assert hasty.refused.count("slow_body") >= (1 if answered == 0 else 4)
    assert set(hasty.refused) <= {"slow_body", "overloaded"}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{hasty.server.port}") as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=5)
    # gRPC's poller is shared by a process, so it speaks of the closed loops of earlier tests too.
    said = [repr(one.exc_info or one) for one in caplog.records]
    others = ("BlockingIOError", "RuntimeError('Event loop is closed')")
    assert not [one for one in said if not any(other in one for other in others)]


async def test_nobody_keeps_others_from_hearing_that_it_serves(listener: Listener) -> None:
    async with Http2.connected(listener.server.port) as hostile:
        for _ in range(12):
            hostile.call("/grpc.health.v1.Health/Check")
        await hostile.push(MESSAGE[:9], for_s=0.3)
        assert hostile.n_answered == 12 - 4
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}") as channel:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
            for name in (b"", SERVICE.encode(), b"unknown"):
                asked = b"\x0a" + bytes([len(name)]) + name
                assert await check(asked, timeout=1) == NOT_SERVING
                call = watch(asked, timeout=1)
                assert await call.read() == NOT_SERVING
                call.cancel()


@pytest.mark.parametrize("name", ["ServerMetadata", "ModelInfer"])
async def test_a_message_is_gone_with_its_call(listener: Listener, name: str) -> None:
    """And not when the collector of cycles comes, which in a gateway is seldom."""
    listener.keys.apply(record(1, access.INFER_ALL))
    head = (("authorization", bearer(1).decode()),)
    raw: Any = {"request_serializer": bytes, "response_deserializer": bytes}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}") as channel:
        ask = channel.unary_unary(f"/{SERVICE}/{name}", **raw)

        async def times(n: int) -> float:
            for _ in range(n):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await ask(UNKNOWN_FIELD, metadata=head, timeout=10)
            return rss_bytes() / (1 << 20)

        gc.disable()
        try:
            before = await times(20)
            grown = await times(100) - before
        finally:
            gc.enable()
    assert grown < 40, "of a hundred messages of a MiB"


@pytest.mark.parametrize("name", ["ServerLive", "ServerReady"])
async def test_what_asks_nothing_is_answered_unread(listener: Listener, name: str) -> None:
    async with Http2.connected(listener.server.port) as client:
        call = client.call(f"/{SERVICE}/{name}")
        await client.push(MESSAGE, for_s=3.0)
        assert call in client.ended
        assert client.n_answered == 1
