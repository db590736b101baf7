"""An HTTP listener as a stage of the lifecycle: uvicorn without its own signals.

In: an ASGI app, a loopback host and a port. Out: a bound socket before anything is served, so that
a taken port is one clear sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn

from inferbus_kit.errors import StartupError
from inferbus_kit.guard import GuardedProtocol
from inferbus_kit.health import Asgi
from inferbus_kit.lifecycle import cancel


class HttpServer:
    """One listener.

    Invariants: `port` is the bound port from construction on; `stop` closes the listener first,
    lets running requests end within `drain_s`, then cuts what is left.
    """

    def __init__(
        self,
        app: Asgi,
        host: str,
        port: int,
        *,
        drain_s: float = 2.0,
        max_connections: int | None = None,
    ) -> None:
        self._socket = _bind(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._drain_s = drain_s
        config = uvicorn.Config(
            app,
            loop="none",
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(drain_s)),
            limit_concurrency=max_connections,
            backlog=2048,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        await self._server.startup(sockets=[self._socket])
        self._task = asyncio.create_task(self._server.main_loop(), name=f"http:{self.port}")

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._drain_s + 2.0):
                    await self._server.shutdown(sockets=[self._socket])
            await cancel(self._task)
        self._socket.close()


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
