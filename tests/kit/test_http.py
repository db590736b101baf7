"""The listener with healthy clients: order, reuse, limits, one write an answer, stop."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace

import pytest

from tests.support.listener import (
    FAST,
    POST,
    answer,
    ends,
    refused,
    serving,
)


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
        assert await ends(reader) == b""


async def test_an_upgrade_is_ignored_and_what_follows_is_read() -> None:
    async with serving() as (_app, _server, dial):
        reader, writer = await dial()
        upgrade = b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
        writer.write(b"GET /1 HTTP/1.1\r\n" + upgrade + b"GET /2 HTTP/1.1\r\n\r\n")
        assert [(await answer(reader))[2] for _ in range(2)] == [b"/1 0 2", b"/2 0 0"]


async def test_connections_over_the_limit_are_503_and_older_ones_go_on() -> None:
    async with serving(replace(FAST, idle_s=60), max_connections=2) as (_app, _server, dial):
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
