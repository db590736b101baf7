"""Hostile clients, over real sockets, against a listener with a small app."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from inferbus_guard.refusals import Headers, Refusal, refuse_plainly
from tests.support.listener import (
    CHUNKED,
    FAST,
    POST,
    answer,
    ended,
    ends,
    pour,
    refused,
    rss_bytes,
    serving,
)


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
        slow = [await dial()]
        while len(slow) < 200:
            slow.append(await dial())
            slow[-1][1].write(b"GET / HTTP/1.1\r\nhost: ")

        async def dribble(writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while not writer.is_closing():
                    writer.write(b"a")
                    await asyncio.sleep(0.01)

        dribbling = asyncio.create_task(dribble(slow[1][1]))
        reader, writer = await dial()
        served = 0
        closing = asyncio.gather(*(ends(reader) for reader, _writer in slow))
        over = False
        while not over:
            over = closing.done()
            writer.write(POST + b"content-length: 1\r\n\r\n1")
            assert (await answer(reader))[0] == 200
            served += 1
            await asyncio.sleep(0.005)
        # One of them was still sending; who sent nothing asked nothing.
        nothing, *rest = await closing
        assert nothing == b""
        assert {said[:12] for said in rest} == {b"HTTP/1.1 408"}
        assert app.calls == served
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


async def test_a_mebibyte_of_6_byte_chunks_is_read() -> None:
    """Were each chunk to cost what came before it, `serving` would not wait for the end."""
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        writer.write(CHUNKED + b"6\r\nabcdef\r\n" * 174_763 + b"0\r\n\r\n")
        assert (await answer(reader))[2] == b"/x 1048578 2"


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
    async with serving(replace(FAST, body_window_s=0.5)) as (_app, _server, dial):
        slow, slow_writer = await dial()
        steady, steady_writer = await dial()
        left = 1_000_000
        for writer in (slow_writer, steady_writer):
            writer.write(POST + b"content-length: %d\r\n\r\n" % left)
        feeding = asyncio.create_task(refused(slow, 408))
        while not feeding.done():
            slow_writer.write(b"x")
            steady_writer.write(bytes(500))
            left -= 500
            await asyncio.sleep(0.02)
        await feeding
        steady_writer.write(bytes(left))
        assert (await answer(steady))[2] == b"/x 1000000 2"


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
        while not server._connections:  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0)
        await ended(server)
        assert rss_bytes() - before < 16 << 20


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


async def test_who_serves_writes_the_refusal_by_its_target() -> None:
    def refuse(target: bytes, why: Refusal) -> tuple[Headers, bytes]:
        body = b"%d %s %s" % (why.status, why.code.encode(), target[:9])
        return [(b"content-length", b"%d" % len(body)), (b"x-mine", b"1")], body

    large = b"content-length: 9999999\r\n\r\n"
    many = b"a:\r\n" * 200 + b"\r\n"
    cases = {
        b"\x00": b"400 bad_http ",
        b"GET /y HTTP/9.9\r\n\r\n": b"400 bad_http /y",
        POST + large: b"413 request_too_large /x",
        b"POST /direct HTTP/1.1\r\n" + large: b"413 request_too_large /direct",
        b"POST /z?a HTTP/1.1\r\n" + many: b"431 headers_too_large /z?a",
        b"GET /" + b"u" * 40_000: b"431 headers_too_large /uuuuuuuu",
        CHUNKED + b"3;" + b"x" * 80_000: b"400 bad_framing /x",
        POST + b"content-length: 5\r\n\r\n1": b"408 slow_body /x",
    }
    async with serving(refuse=refuse) as (_app, _server, dial):
        for sent, want in cases.items():
            reader, writer = await dial()
            writer.write(sent)
            status, head, body = await answer(reader)
            assert body == want
            assert status == int(want[:3])
            assert b"x-mine: 1\r\nconnection: close\r\n\r\n" in head
            assert await ends(reader) == b""


async def test_every_refusal_is_told_once_also_where_no_answer_can_be_written() -> None:
    told: list[str] = []

    def refuse(target: bytes, why: Refusal) -> tuple[Headers, bytes]:
        told.append(why.code)
        return refuse_plainly(target, why)

    slow = POST + b"content-length: 5\r\n\r\n1"
    cases: list[tuple[bytes, list[str]]] = [
        (b"\x00", ["bad_http"]),
        (slow, ["slow_body"]),
        (b"GET / HTTP/1.1\r\nx: ", ["slow_headers"]),
        # Behind an answer that is not given yet nothing can be written.
        (b"GET /slow HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nx: ", ["slow_headers"]),
        (b"GET /slow HTTP/1.1\r\n\r\n\x00", ["bad_http"]),
        # Nothing came: a connection that was only held open is no refusal.
        (b"", []),
        (b"GET / HTTP/1.1\r\n\r\n", []),
    ]
    async with serving(replace(FAST, unread_s=5), refuse=refuse) as (_app, _server, dial):
        for sent, want in cases:
            reader, writer = await dial()
            writer.write(sent)
            await ends(reader)
            assert (sent, told) == (sent, want)
            told.clear()
    async with serving(refuse=refuse) as (_app, server, dial):
        _reader, writer = await dial()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /big HTTP/1.1\r\n\r\n")
        while not server._connections:  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0)
        await ended(server)
        assert told == ["answer_not_read"]
