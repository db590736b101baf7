"""A TCP proxy on the loopback address that a test can cut.

In: the address of a server. Out: another address for it, which a test takes away and gives back;
`before_kafka` puts one before all connections to the broker that aiokafka makes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
from aiokafka import client


class Proxy:
    """Passes bytes both ways until `cut`; after `heal` it passes new connections again.

    Invariants: while it is cut no connection lives and none is taken; from `hold` to `go_on` bytes
    are taken and not passed on; `hold_known` leaves the connections out that come after it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._gates = [self._open]
        self.port = 0

    @property
    def n_connections(self) -> int:
        """How many live."""
        return len(self._writers) // 2

    async def __aenter__(self) -> Self:
        await self.heal()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.cut()

    async def heal(self) -> None:
        """Take connections, on the same port as before."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset all connections and take none."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self.go_on()

    def hold(self) -> None:
        """Pass no more bytes, as a broker that hangs."""
        self._open.clear()

    def hold_known(self) -> None:
        """Pass no more bytes of the connections that there are."""
        self.hold()
        self._open = asyncio.Event()
        self._open.set()
        self._gates.append(self._open)

    def go_on(self) -> None:
        """Pass what was held, and what comes."""
        for gate in self._gates:
            gate.set()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gate = self._open
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers |= {writer, far_writer}
            await asyncio.gather(
                self._pump(reader, far_writer, gate), self._pump(far_reader, writer, gate)
            )
            self._writers -= {writer, far_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def before_kafka(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """Put a proxy before the broker."""
    host, _, port = bootstrap.partition(":")
    made = client.create_conn
    async with Proxy(host, int(port)) as one:

        async def through(_host: str, _port: int, **options: Any) -> Any:
            return await made(host, one.port, **options)

        monkeypatch.setattr(client, "create_conn", through)
        yield one
