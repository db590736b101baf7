"""An HTTP listener as a stage of the lifecycle: uvicorn's protocol without its server and signals.

In: an ASGI app, an address and a port. Out: a bound socket before anything is served, so that
a taken port is one clear sentence.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import structlog
import uvicorn
from uvicorn.server import ServerState

from inferbus_guard.protocol import Direct, GuardedProtocol, Limits, sweep
from inferbus_guard.refusals import Refuse, refuse_plainly
from inferbus_kit.errors import StartupError
from inferbus_kit.health import Asgi
from inferbus_kit.lifecycle import cancel, watched
from inferbus_kit.settings import is_loopback

_log = structlog.get_logger("http")


class HttpServer:
    """One listener.

    Invariants: `port` is the bound port from construction on; `stop` closes the listener first,
    lets running requests end within `drain_s`, then cuts what is left. `max_body_bytes` None means
    unlimited; a connection past `max_connections` is told 503 and closed, older ones go on.
    `direct` answers what it takes, `app` all else; `refuse` writes what we refuse ourselves.
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
        direct: Direct | None = None,
        refuse: Refuse = refuse_plainly,
    ) -> None:
        self._direct, self._refuse = direct, refuse
        self._limits = replace(
            limits or Limits(), connections=max_connections, body_bytes=max_body_bytes
        )
        self._host = host
        self._socket = _bind(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._drain_s = drain_s
        self._config = uvicorn.Config(
            app,
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
        self._connections: set[GuardedProtocol] = self._state.connections  # type: ignore[assignment]
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if not is_loopback(self._host):
            # Keys that travel in the clear are everyone's on the way.
            _log.warning("plain_http_beyond_this_machine", host=self._host, port=self.port)
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: GuardedProtocol(
                self._config, self._state, self._limits, self._direct, self._refuse
            ),
            sock=self._socket,
            backlog=2048,
        )
        sweeping = asyncio.create_task(self._sweep(), name=f"http:{self.port}")
        self._sweeper = watched(sweeping, None)

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._socket.close()
        for connection in list(self._connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._drain_s
        while (  # noqa: ASYNC110 -- uvicorn tells of no end
            self._connections or self._state.tasks
        ) and loop.time() < deadline_s:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.transport.abort()
        for task in [*self._state.tasks, self._sweeper]:
            await cancel(task)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._limits.sweep_s)
            sweep(self._connections, self._limits, asyncio.get_running_loop().time())


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else no TCP_NODELAY
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
