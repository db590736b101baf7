"""A listener with a small app, and clients over raw sockets."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from inferbus_guard.protocol import Exchange, Handler, Limits
from inferbus_guard.refusals import Refuse, refuse_plainly
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
        self.exchanges: list[Exchange] = []
        self.answer_bytes = 0
        self.closing = self.failing = False

    def direct(self, target: bytes) -> Handler | None:
        """Take /direct, which is answered at once, and /later, which the test answers."""
        if target not in {b"/direct", b"/later"}:
            return None

        def handle(exchange: Exchange) -> None:
            self.exchanges.append(exchange)
            if self.failing:
                raise ValueError
            if target == b"/direct":
                answer_direct(exchange, close=self.closing, n_bytes=self.answer_bytes)

        return handle

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


def answer_direct(exchange: Exchange, *, close: bool = False, n_bytes: int = 0) -> None:
    body = f"direct {len(exchange.body)} {len(exchange.headers)}".encode().ljust(n_bytes)
    head = [(b"content-length", str(len(body)).encode())]
    exchange.respond(200, head, body, close=close)


@asynccontextmanager
async def serving(
    limits: Limits = FAST,
    *,
    max_body_bytes: int | None = 2 << 20,
    max_connections: int | None = None,
    drain_s: float = 0.5,
    refuse: Refuse = refuse_plainly,
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
        direct=app.direct,
        refuse=refuse,
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
