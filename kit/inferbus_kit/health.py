"""Health that the loops themselves feed, and the listener that tells it.

In: beats of loops and reasons for not being ready. Out: `/livez` (own loops alive, no fatal flag;
never a dependency), `/readyz` (can do its work now) and `/metrics`, on the metrics port.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Health:
    """Whether this process lives and whether it can work.

    Invariants: a watched loop that has not beaten for its limit makes the process not live; any
    stated reason makes it not ready; a process starts not ready.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loops: dict[str, tuple[float, float]] = {}
        self._reasons: dict[str, str] = {"start": "starting"}

    def watch(self, loop: str, max_silence_s: float) -> None:
        """Expect `beat(loop)` at least every `max_silence_s` from now on."""
        self._loops[loop] = (self._clock(), max_silence_s)

    def beat(self, loop: str) -> None:
        """Say that a watched loop went round."""
        self._loops[loop] = (self._clock(), self._loops[loop][1])

    def unwatch(self, loop: str) -> None:
        self._loops.pop(loop, None)

    def not_ready(self, part: str, reason: str) -> None:
        """Say why `part` cannot work; the reason is shown to operators."""
        self._reasons[part] = reason

    def ready(self, part: str) -> None:
        """Say that `part` can work."""
        self._reasons.pop(part, None)

    def silent_loops(self) -> list[str]:
        """Return the watched loops that are over their limit."""
        now = self._clock()
        return sorted(name for name, (last, limit) in self._loops.items() if now - last > limit)

    def reasons(self) -> dict[str, str]:
        """Return why the process is not ready; empty when it is."""
        found = dict(self._reasons)
        found.update(dict.fromkeys(self.silent_loops(), "its loop is silent"))
        return found


def health_answer(health: Health, path: str) -> tuple[int, bytes] | None:
    """Return status and JSON body of `/livez` or `/readyz`; None for other paths."""
    if path == "/livez":
        silent = health.silent_loops()
        body = {"live": not silent, "silent_loops": silent}
        return (503 if silent else 200), json.dumps(body).encode()
    if path == "/readyz":
        reasons = health.reasons()
        body_ready = {"ready": not reasons, "reasons": reasons}
        return (503 if reasons else 200), json.dumps(body_ready).encode()
    return None


def health_app(health: Health, registry: CollectorRegistry) -> Asgi:
    """Return the ASGI app of the metrics port."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        path = scope["path"]
        content_type = b"application/json"
        if path == "/metrics":
            status, body = 200, generate_latest(registry)
            content_type = CONTENT_TYPE_PLAIN_0_0_4.encode()
        else:
            status, body = health_answer(health, path) or (404, b'{"error": "not found"}')
        head = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return app
