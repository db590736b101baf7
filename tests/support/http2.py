"""A client of HTTP/2 that sends what no library would: calls that stay unfinished, odd names.

In: calls, and bytes for each. Out: how much of them the server's windows let in, and which calls
ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import time
from collections.abc import AsyncIterator, Mapping

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW, _MOST = 65_535, 16_384


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def head_of_call(path: bytes, more: Mapping[bytes, bytes] | None = None) -> bytes:
    """Return the block of headers of a gRPC call, as HPACK writes what no table has."""
    head = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x"}
    head |= {b"content-type": b"application/grpc", b"te": b"trailers", **(more or {})}
    return b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in head.items()
    )


class Http2:
    """One connection.

    Invariants: never more is sent than the server's windows allow.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count(1, 2)
        self._initial = self._window = _WINDOW
        self._windows: dict[int, int] = {}
        self.ended: set[int] = set()
        self.n_answered = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int) -> AsyncIterator[Http2]:
        """Connect to a port of this machine."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + frame(SETTINGS, 0, 0))
        client = cls(reader, writer)
        reading = asyncio.create_task(client._read())
        try:
            yield client
        finally:
            reading.cancel()
            writer.close()

    def call(self, path: str, **more: str) -> int:
        """Begin a call; return its stream."""
        head = head_of_call(path.encode(), {k.encode(): v.encode() for k, v in more.items()})
        stream = next(self._ids)
        self._windows[stream] = self._initial
        self._writer.write(frame(HEADERS, END_HEADERS, stream, head))
        return stream

    async def push(self, message: bytes, *, for_s: float) -> dict[int, int]:
        """Send a message on every call, as far as it goes in a time; return how far that was."""
        sent = dict.fromkeys(self._windows, 0)
        until_s = time.monotonic() + for_s
        while time.monotonic() < until_s:
            for stream, at in sent.items():
                room = min(self._window, self._windows[stream], _MOST, len(message) - at)
                if room > 0 and stream not in self.ended:
                    self._writer.write(frame(DATA, 0, stream, message[at : at + room]))
                    sent[stream] += room
                    self._window -= room
                    self._windows[stream] -= room
            await self._writer.drain()
            await asyncio.sleep(0.001)
        return sent

    async def _read(self) -> None:
        while True:
            head = await self._reader.readexactly(9)
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            stream = int.from_bytes(head[5:], "big")
            self._take(kind, flags, stream, await self._reader.readexactly(size))

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(body, "big")
        elif kind == WINDOW_UPDATE and stream in self._windows:
            self._windows[stream] += int.from_bytes(body, "big")
        elif kind == SETTINGS and not flags & ACK:
            for key, value in struct.iter_unpack(">HI", body):
                if key == INITIAL_WINDOW:
                    for known in self._windows:
                        self._windows[known] += value - self._initial
                    self._initial = value
            self._writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, body))
        elif kind == DATA:
            self.n_answered += 1
        if kind == RST_STREAM or (kind in {DATA, HEADERS} and flags & END_STREAM):
            self.ended.add(stream)
