"""Requests that are answered without ASGI: what goes that way, in what order, and what ends it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from inferbus_guard.protocol import COPIED_BYTES, Limits
from inferbus_guard.refusals import Headers, Refusal, refuse_plainly
from tests.support.listener import (
    FAST,
    App,
    answer,
    answer_direct,
    ended,
    ends,
    pour,
    refused,
    serving,
)

HEAD = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"


def post(path: bytes, n_bytes: int = 3) -> bytes:
    return HEAD % (path, n_bytes) + b"b" * n_bytes


async def arrived(app: App, n: int) -> None:
    while len(app.exchanges) < n:  # noqa: ASYNC110 -- nothing tells of it
        await asyncio.sleep(0.005)


async def test_a_plain_post_is_answered_and_the_connection_goes_on() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        for n_bytes in (1, 2, COPIED_BYTES):
            writer.write(post(b"/direct", n_bytes))
            status, head, body = await answer(reader)
            assert (status, body) == (200, b"direct %d 2" % n_bytes)
            assert b"connection: close" not in head
        assert app.calls == 0


@pytest.mark.parametrize(
    "wire",
    [
        b"GET /direct HTTP/1.1\r\nhost: a\r\n\r\n",
        HEAD % (b"/direct", 0),
        post(b"/direct", COPIED_BYTES + 1),
        post(b"/direct?x=1"),
        b"POST /direct HTTP/1.0\r\ncontent-length: 1\r\n\r\nb",
        b"POST /direct HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n",
        b"POST /direct HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nb",
        b"GET /direct HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ],
    ids=["get", "empty", "large", "query", "http 1.0", "chunked", "expect", "upgrade"],
)
async def test_all_else_goes_to_the_app(wire: bytes) -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(wire)
        if b"expect" in wire:
            await reader.readuntil(b"\r\n\r\n")
        status, _, body = await answer(reader)
        assert (status, body.split()[0]) == (200, b"/direct")
        assert app.calls == 1
        assert not app.exchanges


async def test_a_body_in_pieces_is_whole() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        for piece in (HEAD % (b"/direct", 4), b"b", b"bb", b"b"):
            writer.write(piece)
            await asyncio.sleep(0.01)
        assert (await answer(reader))[2] == b"direct 4 2"
        assert app.exchanges[0].body == b"bbbb"


async def test_pipelined_answers_keep_their_order() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(SLOW + post(b"/direct") + post(b"/later") + SLOW)
        got = [(await answer(reader))[2].split()[0] for _ in range(4)]
        assert got == [b"/slow", b"/direct", b"/later", b"/slow"], "behind another all go by ASGI"
        writer.write(post(b"/later") + SLOW + post(b"/direct"))
        await arrived(app, 1)
        await asyncio.sleep(0.05)
        answer_direct(app.exchanges[0])
        got = [(await answer(reader))[2].split()[0] for _ in range(3)]
        assert got == [b"direct", b"/slow", b"/direct"]
        writer.write(post(b"/direct"))
        assert (await answer(reader))[2] == b"direct 3 2"


async def test_an_answer_is_written_once() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(post(b"/later"))
        await arrived(app, 1)
        answer_direct(app.exchanges[0])
        answer_direct(app.exchanges[0])
        assert (await answer(reader))[0] == 200
        writer.write(post(b"/direct", 7))
        assert (await answer(reader))[2] == b"direct 7 2"


async def test_a_client_that_left_is_not_answered() -> None:
    async with serving() as (app, server, dial):
        _, writer = await dial()
        writer.write(post(b"/later"))
        await arrived(app, 1)
        left = asyncio.Event()
        app.exchanges[0].left = left.set
        writer.transport.abort()
        await ended(server)
        assert app.exchanges[0].disconnected
        assert left.is_set()
        answer_direct(app.exchanges[0])


@pytest.mark.parametrize("client_asks", [True, False])
async def test_a_last_answer_closes(client_asks: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        wire = post(b"/later")
        if client_asks:
            wire = wire.replace(b"host: a", b"connection: close")
        writer.write(wire)
        await arrived(app, 1)
        answer_direct(app.exchanges[0], close=not client_asks)
        assert b"connection: close" in (await answer(reader))[1]
        assert await ends(reader) == b""


async def test_a_stop_waits_for_its_answer() -> None:
    async with serving() as (app, server, dial):
        reader, writer = await dial()
        writer.write(post(b"/later"))
        await arrived(app, 1)
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        answer_direct(app.exchanges[0])
        assert b"connection: close" in (await answer(reader))[1]
        await stopping


async def test_a_body_that_stalls_is_refused_and_never_handled() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(HEAD % (b"/direct", 100) + b"b")
        await refused(reader, 408)
        assert not app.exchanges


async def test_a_client_that_does_not_read_costs_no_memory() -> None:
    async with serving(replace(FAST, unread_s=5.0)) as (app, server, dial):
        app.answer_bytes = 4096
        _, writer = await dial()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        pouring = asyncio.create_task(pour(writer, post(b"/direct") * 50, 400))
        await asyncio.sleep(1.0)
        (connection,) = list(server._connections)
        assert connection.transport.get_write_buffer_size() < 1 << 20
        assert app.exchanges
        pouring.cancel()
        writer.transport.abort()


async def test_clients_that_do_not_read_hold_only_so_much_together() -> None:
    """Those go that hold most; whoever holds little is left in peace."""
    told: list[str] = []

    def refuse(target: bytes, why: Refusal) -> tuple[Headers, bytes]:
        told.append(why.code)
        return refuse_plainly(target, why)

    limits = replace(FAST, unread_s=60.0, idle_s=60.0, unread_bytes=24 << 20)
    async with serving(limits, refuse=refuse) as (app, server, dial):

        async def leave(n_bytes: int) -> asyncio.StreamWriter:
            app.answer_bytes = n_bytes
            _, writer = await dial()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(post(b"/direct"))
            await arrived(app, 1)
            app.exchanges.clear()
            return writer

        await leave(9 << 20)
        large = [await leave(16 << 20) for _ in range(4)]
        while len(server._connections) > 2:  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        held = [one.transport.get_write_buffer_size() for one in server._connections]
        assert len(held) == 2
        assert 5 << 20 < min(held) < 9 << 20 < max(held) <= 16 << 20
        assert told == ["answer_not_read"] * 3
        for writer in large:
            writer.transport.abort()


async def test_what_follows_an_answer_that_closes_is_not_handled() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        app.closing = True
        writer.write(post(b"/direct") * 5)
        assert (await answer(reader))[0] == 200
        assert await ends(reader) == b""
        assert len(app.exchanges) == 1


async def test_a_handler_that_fails_is_answered() -> None:
    # Writing the error to a log for people may take a busy machine longer than `FAST` lets it.
    async with serving(Limits()) as (app, server, dial):
        reader, writer = await dial()
        app.failing = True
        writer.write(post(b"/direct"))
        status, head, body = await answer(reader)
        assert (status, body) == (500, b'{"error": "something went wrong here"}')
        assert b"connection: close" in head
        assert await ends(reader) == b""
        await ended(server)


async def test_a_broken_request_behind_one_waits_for_its_answer() -> None:
    async with serving() as (app, _server, dial):
        reader, writer = await dial()
        writer.write(post(b"/later") + b"nonsense\r\n\r\n")
        await arrived(app, 1)
        await asyncio.sleep(0.05)
        answer_direct(app.exchanges[0])
        status, head, _ = await answer(reader)
        assert status == 200
        assert b"connection: close" in head
        assert await ends(reader) == b""
