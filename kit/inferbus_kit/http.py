"""An HTTP listener as a stage of the lifecycle: uvicorn's protocol without its server and signals.

In: an ASGI app, a loopback host and a port. Out: a bound socket before anything is served, so that
a taken port is one clear sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace

import uvicorn
from uvicorn.server import ServerState

from inferbus_kit.errors import StartupError
from inferbus_kit.guard import GuardedProtocol, Limits
from inferbus_kit.health import Asgi
from inferbus_kit.lifecycle import cancel


class HttpServer:
    """One listener.

    Invariants: `port` is the bound port from construction on; `stop` closes the listener first,
    lets running requests end within `drain_s`, then cuts what is left. `max_body_bytes` None means
    unlimited; a connection past `max_connections` is told 503 and closed, older ones go on.
    """

    def __init__(
        self,
        app: Asgi,
        host: str,
        port: int,
        *,
        drain_s: float = 2.0,
        max_connections: int | None = None,
        max_body_bytes: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = replace(
            limits or Limits(), connections=max_connections, body_bytes=max_body_bytes
        )
        self._socket = _bind(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._drain_s = drain_s
        self._config = uvicorn.Config(
            app,
            loop="none",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
        )
        self._config.load()
        self._state = ServerState()
        self._listener: asyncio.Server | None = None
        self._sweep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: GuardedProtocol(self._config, self._state, self._limits),
            sock=self._socket,
            backlog=2048,
        )
        self._sweep = asyncio.create_task(self._sweep_connections(), name=f"http:{self.port}")
        self._guard = asyncio.create_task(self._look(), name=f"guard:{self.port}")

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            for connection in cast(
                "set[GuardedProtocol]", set(self._server.server_state.connections)
            ):
                connection.look(loop.time())

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._socket.close()
        for connection in self._connections():
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self._state.connections or self._state.tasks:
                    await asyncio.sleep(0.01)
        for connection in self._connections():
            connection.transport.abort()
        for task in list(self._state.tasks):
            await cancel(task)
        if self._sweep is not None:
            await cancel(self._sweep)

    def _connections(self) -> list[GuardedProtocol]:
        return [c for c in self._state.connections if isinstance(c, GuardedProtocol)]

    async def _sweep_connections(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            now_s = loop.time()
            for connection in self._connections():
                connection.sweep(now_s)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise StartupError(
            f"port {port} on {host} cannot be bound ({error.strerror}); "
            "end what uses it or choose another port"
        ) from error
    sock.setblocking(False)
    return sock
