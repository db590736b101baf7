"""Clients that take a Parquet file too slowly, or not at all, over real sockets: cut off."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from inferbus_gateway.api.streamed import Streamed
from inferbus_gateway.control.jobs import parquet
from inferbus_kit.http import HttpServer
from tests.support.parquet_rows import SIGNATURE, packed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from inferbus_kit.health import Receive, Scope, Send

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]

N_ROWS = 1000
"""Of 3 kB: more than what two small buffers of sockets hold."""
FAST = 1 << 40
"""Bytes a second that nobody takes."""


@asynccontextmanager
async def fetching(
    slots: parquet.Slots, patience_s: float | None
) -> AsyncIterator[asyncio.StreamReader]:
    """Serve a file and ask for it; both ends hold little that was not read."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pieces = parquet.file(slots.of("acme"), packed(N_ROWS), SIGNATURE, 1 << 24)
        await Streamed(pieces, parquet.MEDIA_TYPE, patience_s)(scope, receive, send)

    server = HttpServer(app, "127.0.0.1", 0)
    server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    await server.start()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=16 << 10)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        yield reader
        writer.close()
    finally:
        await server.stop()


async def let_go(slots: parquet.Slots) -> None:
    """Wait until the one place of the tenant is free again."""
    async with slots.of("acme").fetched():
        pass


async def test_who_takes_less_than_it_must_on_the_whole_is_cut_off() -> None:
    slots = parquet.Slots(n_tenant_fetched=1, pace=parquet.Pace(FAST, 0.2))
    async with fetching(slots, None) as reader:
        taken = b""
        while piece := await reader.read(8 << 10):
            taken += piece
            await asyncio.sleep(0.01)
        assert taken.startswith(b"HTTP/1.1 200")
        assert len(taken) < N_ROWS * 3000
        assert not taken.endswith(b"0\r\n\r\n"), "the answer does not look whole"
        await let_go(slots)


async def test_who_takes_nothing_for_too_long_is_cut_off() -> None:
    slots = parquet.Slots(n_tenant_fetched=1)
    async with fetching(slots, 0.2) as reader:
        await reader.readuntil(b"\r\n\r\n")
        await let_go(slots)
        rest = await reader.read()
        assert len(rest) < N_ROWS * 3000
        assert not rest.endswith(b"0\r\n\r\n")


async def test_who_is_fast_enough_has_all_of_it() -> None:
    slots = parquet.Slots(n_tenant_fetched=1, pace=parquet.Pace(1, 0.2))
    async with fetching(slots, None) as reader:
        taken = b""
        while not taken.endswith(b"0\r\n\r\n"):
            taken += await reader.read(1 << 16)
        assert len(taken) > N_ROWS * 3000
        await let_go(slots)


def test_the_figures_of_the_documentation() -> None:
    pace = parquet.Pace()
    assert pace.holds(0, 60.0)
    assert not pace.holds(0, 60.1)
    assert pace.holds(64 << 10, 61.0)
    assert not pace.holds((64 << 10) - 1, 61.0)
