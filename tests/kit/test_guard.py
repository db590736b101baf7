"""Hostile and healthy clients, over real sockets, against a listener with a small app."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from inferbus_kit.guard import Limits
from inferbus_kit.health import Receive, Scope, Send
from inferbus_kit.http import HttpServer

FAST = Limits(head_s=0.2, body_window_s=0.2, unread_s=0.3, idle_s=0.4, linger_s=0.1, sweep_s=0.02)
POST = b"POST /x HTTP/1.1\r\nhost: a\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[], Awaitable[Stream]]


class App:
    """Answers path, body bytes and headers; /slow waits, /big never ends, /stream pauses."""

    def __init__(self) -> None:
        self.calls = 0
        self.disconnects = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        n_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            n_bytes += len(message["body"])
            more = message["more_body"]
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.2)
            await send({"type": "http.response.body", "body": b"event"})
            return
        if scope["path"] == "/slow":
            await asyncio.sleep(0.3)
        body = f"{scope['path']} {n_bytes} {len(scope['headers'])}".encode()
        length = 1 << 40 if scope["path"] == "/big" else len(body)
        head = [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        while scope["path"] == "/big":
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(
    limits: Limits = FAST,
    *,
    max_body_bytes: int | None = 2 << 20,
    max_connections: int | None = None,
    drain_s: float = 0.5,
) -> AsyncIterator[tuple[App, HttpServer, Dial]]:
    app = App()
    server = HttpServer(
        app,
        "127.0.0.1",
        0,
        drain_s=drain_s,
        max_body_bytes=max_body_bytes,
        max_connections=max_connections,
        limits=limits,
    )
    await server.start()
    writers: list[asyncio.StreamWriter] = []

    async def dial() -> Stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(writer)
        return reader, writer

    try:
        async with asyncio.timeout(10):
            yield app, server, dial
    finally:
        for writer in writers:
            writer.close()
        await server.stop()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Return status, head and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), head, await reader.readexactly(length)


async def ends(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the server closes; a reset is a close."""
    parts: list[bytes] = []
    with suppress(ConnectionError):
        while part := await reader.read(1 << 16):
            parts.append(part)
    return b"".join(parts)


async def refused(reader: asyncio.StreamReader, status: int) -> None:
    """Expect one refusal in the one form, then the end of the stream."""
    got, head, body = await answer(reader)
    assert got == status
    assert b"connection: close" in head
    assert b"content-type: application/json" in head
    assert list(json.loads(body)) == ["error"]
    assert await ends(reader) == b""


async def pour(writer: asyncio.StreamWriter, piece: bytes, times: int) -> None:
    with suppress(ConnectionError):
        for _ in range(times):
            writer.write(piece)
            await writer.drain()


async def ended(server: HttpServer) -> None:
    while server._connections:  # noqa: ASYNC110 -- nothing tells of it
        await asyncio.sleep(0.01)


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nx: ",
        b"GET /",
        b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nx: ",
    ],
    ids=["lines", "one header", "url", "second request"],
)
async def test_60_mb_of_headers_cost_next_to_nothing(start: bytes) -> None:
    piece = b"a: %s\r\n" % bytes(b"x" * 1000) * 64 if start.endswith(b"\n") else b"x" * 65536
    async with serving() as (app, _server, dial):
        before = rss_bytes()
        reader, writer = await dial()
        writer.write(start)
        pouring = asyncio.create_task(pour(writer, piece, 60 * 16))
        if start.startswith(b"GET /1"):
            assert (await ends(reader)).startswith(b"HTTP/1.1 200")
        else:
            await refused(reader, 431)
        await pouring
        assert rss_bytes() - before < 16 << 20
        assert app.calls == start.startswith(b"GET /1")


@pytest.mark.parametrize("n_headers", [101, 10_000])
async def test_too_many_headers_are_431(n_headers: int) -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * n_headers + b"\r\n")
        await refused(reader, 431)
        assert app.calls == 0


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 431)])
@pytest.mark.parametrize("body", [b"", b"b" * 100_000])
async def test_a_head_may_have_exactly_32_kib(over: int, status: int, body: bytes) -> None:
    start = b"POST /x HTTP/1.1\r\ncontent-length: %d\r\na: " % len(body)
    head = start + b"x" * ((32 << 10) - len(start) - 4 + over) + b"\r\n\r\n"
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        writer.write(head + body)
        assert (await answer(reader))[0] == status


async def test_half_and_dribbled_heads_are_closed_and_others_served() -> None:
    async with serving() as (app, _server, dial):
        began_s = time.monotonic()
        slow = [await dial() for _ in range(200)]
        for _reader, writer in slow[1:]:
            writer.write(b"GET / HTTP/1.1\r\nhost: ")

        async def dribble(writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while not writer.is_closing():
                    writer.write(b"a")
                    await asyncio.sleep(0.01)

        dribbling = asyncio.create_task(dribble(slow[1][1]))
        reader, writer = await dial()
        served = 0
        closing = asyncio.gather(*(ends(reader) for reader, _writer in slow))
        while not closing.done():
            writer.write(POST + b"content-length: 1\r\n\r\n1")
            asked_s = time.monotonic()
            assert (await answer(reader))[0] == 200
            assert time.monotonic() - asked_s < 0.5
            served += 1
            await asyncio.sleep(0.005)
        assert set(await closing) == {b""}
        assert 0.15 < time.monotonic() - began_s < 1.0
        assert app.calls == served > 0
        dribbling.cancel()


@pytest.mark.parametrize("length", [b"1073741824", b"2097153"])
async def test_a_declared_body_over_the_maximum_is_413_at_once(length: bytes) -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(POST + b"expect: 100-continue\r\ncontent-length: " + length + b"\r\n\r\n")
        await refused(reader, 413)
        assert app.calls == 0


async def test_a_client_that_sends_all_before_it_reads_still_learns_why() -> None:
    async with serving(replace(FAST, linger_s=2)) as (_app, _server, dial):
        reader, writer = await dial()
        writer.write(POST + b"content-length: 33554432\r\n\r\n")
        await pour(writer, bytes(1 << 16), 512)
        await refused(reader, 413)


async def test_an_endless_chunked_body_is_413() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(CHUNKED)
        pouring = asyncio.create_task(pour(writer, b"10000\r\n%s\r\n" % bytes(1 << 16), 1000))
        await refused(reader, 413)
        await pouring
        assert app.disconnects == app.calls == 1


async def test_a_mebibyte_of_6_byte_chunks_is_read_quickly() -> None:
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        began_s = time.monotonic()
        writer.write(CHUNKED + b"6\r\nabcdef\r\n" * 174_763 + b"0\r\n\r\n")
        assert (await answer(reader))[2] == b"/x 1048578 2"
        assert time.monotonic() - began_s < 1.5


@pytest.mark.parametrize("start", [b"3\r\nabc\r\n0\r\nx: ", b"3\r\nabc\r\n0\r\n", b"3;"])
async def test_endless_trailers_and_extensions_are_400(start: bytes) -> None:
    piece = b"t: 1\r\n" * 10_000 if start.endswith(b"0\r\n") else b"x" * 65536
    async with serving() as (_app, _server, dial):
        before = rss_bytes()
        reader, writer = await dial()
        writer.write(CHUNKED + start)
        pouring = asyncio.create_task(pour(writer, piece, 500))
        await refused(reader, 400)
        await pouring
        assert rss_bytes() - before < 16 << 20


async def test_trailers_do_not_become_headers() -> None:
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        writer.write(CHUNKED + b"3\r\nabc\r\n0\r\nadmin: yes\r\n\r\n")
        assert (await answer(reader))[2] == b"/x 3 2"


async def test_a_slow_body_is_408_and_a_steady_one_is_served() -> None:
    async with serving() as (_app, _server, dial):
        slow, slow_writer = await dial()
        steady, steady_writer = await dial()
        for writer in (slow_writer, steady_writer):
            writer.write(POST + b"content-length: 6000\r\n\r\n")
        feeding = asyncio.create_task(refused(slow, 408))
        for _ in range(20):
            steady_writer.write(bytes(300))
            if not feeding.done():
                slow_writer.write(b"x")
            await asyncio.sleep(0.03)
        assert (await answer(steady))[2] == b"/x 6000 2"
        await feeding


async def test_an_upload_without_maximum_streams() -> None:
    async with serving(max_body_bytes=None) as (_app, _server, dial):
        before = rss_bytes()
        reader, writer = await dial()
        writer.write(POST + b"content-length: 67108864\r\n\r\n")
        await pour(writer, bytes(1 << 16), 1024)
        assert (await answer(reader))[2] == b"/x 67108864 2"
        assert rss_bytes() - before < 16 << 20


async def test_a_client_that_does_not_read_is_cut() -> None:
    async with serving() as (_app, server, dial):
        before = rss_bytes()
        _reader, writer = await dial()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /big HTTP/1.1\r\n\r\n")
        began_s = time.monotonic()
        await asyncio.sleep(0.1)
        assert len(server._connections) == 1
        await ended(server)
        assert 0.25 < time.monotonic() - began_s < 1.4
        assert rss_bytes() - before < 16 << 20


async def test_pipelined_requests_are_answered_in_order_and_bounded() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(
            b"GET /slow HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n"
            + POST
            + b"content-length: 3\r\n\r\nabc\r\nGET /4 HTTP/1.1\r\n\r\n"
        )
        bodies = [(await answer(reader))[2] for _ in range(4)]
        assert bodies == [b"/slow 0 0", b"/2 0 0", b"/x 3 2", b"/4 0 0"]
        writer.write(b"GET /1 HTTP/1.1\r\n\r\n" * 5000)
        assert (await ends(reader)).count(b"200 OK") == 101
        assert app.calls == 105


async def test_a_refusal_waits_for_earlier_answers() -> None:
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        writer.write(b"GET /slow HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGARBAGE\r\n\r\n")
        came = await ends(reader)
        assert came.count(b"HTTP/1.1 200") == came.count(b"HTTP/1.1 ") == 2
        assert came.endswith(b"/2 0 0")


async def test_keep_alive_connections_are_reused_then_closed_when_idle() -> None:
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        for _ in range(3):
            writer.write(b"GET /1 HTTP/1.1\r\n\r\n")
            assert (await answer(reader))[0] == 200
            await asyncio.sleep(0.25)  # longer than a head may take
        idle_s = time.monotonic()
        assert await ends(reader) == b""
        assert time.monotonic() - idle_s < 1.0


@pytest.mark.parametrize(
    "rest",
    [
        b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        b"content-length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"content-length: 3, 3\r\n\r\nabc",
        b"content-length: +3\r\n\r\nabc",
        b"content-length: 18446744073709551617\r\n\r\nabc",
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"transfer-encoding: chunked, identity\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"transfer-encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        b"x: a\0b\r\n\r\n",
        b"x: a\rb\r\n\r\n",
        b"x: a\n\r\n",
        b"x : a\r\n\r\n",
        b"x: a\r\n folded\r\n\r\n",
        b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n\r\nabc",
    ],
)
async def test_what_two_parsers_could_read_differently_is_400(rest: bytes) -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(POST + rest)
        got = asyncio.create_task(refused(reader, 400))
        await got
        assert app.disconnects == app.calls


async def test_an_upgrade_is_ignored_and_what_follows_is_read() -> None:
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        upgrade = b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
        writer.write(b"GET /1 HTTP/1.1\r\n" + upgrade + b"GET /2 HTTP/1.1\r\n\r\n")
        assert [(await answer(reader))[2] for _ in range(2)] == [b"/1 0 2", b"/2 0 0"]


async def test_connections_over_the_limit_are_503_and_older_ones_go_on() -> None:
    async with serving(max_connections=2) as (_app, _server, dial):
        old = [await dial() for _ in range(2)]
        for reader, writer in old:
            writer.write(b"GET /1 HTTP/1.1\r\n\r\n")
            assert (await answer(reader))[0] == 200
        reader, _writer = await dial()
        await refused(reader, 503)
        for reader, writer in old:
            writer.write(b"GET /1 HTTP/1.1\r\n\r\n")
            assert (await answer(reader))[0] == 200


async def test_a_small_answer_is_one_segment_without_delay() -> None:
    async with serving() as (_app, server, dial):
        reader, writer = await dial()
        for _ in range(10):
            writer.write(b"GET /1 HTTP/1.1\r\n\r\n")
            await answer(reader)
        info = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        assert struct.unpack_from("I", info, 152)[0] == 10  # tcpi_data_segs_in
        (connection,) = server._connections
        ours = connection.transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_an_answer_to_head_and_a_stream_leave_without_a_body() -> None:
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        for _ in range(2):
            writer.write(b"HEAD /1 HTTP/1.1\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /stream HTTP/1.1\r\n\r\n")
        assert b"transfer-encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        assert await reader.readuntil(b"0\r\n\r\n") == b"5\r\nevent\r\n0\r\n\r\n"


async def test_stop_lets_running_requests_end_and_takes_no_new_ones() -> None:
    async with serving() as (_app, server, dial):
        reader, writer = await dial()
        idle, _idle_writer = await dial()
        writer.write(b"GET /slow HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(server.stop())
        assert await ends(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            await dial()
        status, head, body = await answer(reader)
        assert (status, body) == (200, b"/slow 0 0")
        assert b"connection: close" in head
        await asyncio.wait_for(stopping, 0.3)


async def test_stop_cuts_what_does_not_end() -> None:
    async with serving(replace(FAST, unread_s=60), drain_s=0.1) as (_app, server, dial):
        _reader, writer = await dial()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /big HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.05)
        await asyncio.wait_for(server.stop(), 0.5)
        assert not server._connections
        assert not server._state.tasks
