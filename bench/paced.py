"""An open-loop HTTP load generator: requests at their times, whatever the answers do.

In: one prepared request and a rate. Out: latencies in seconds, each from the moment at which its
request was due, so that a stall counts for all that it delayed. Runs as a process of its own:
`python -m bench.paced URL --rate 50 --seconds 20 --body FILE`. A pool of a general client would not
do: those search all waiting requests at each answer, so a stall of seconds never ends for them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.load import figures, prepared, timing, whole

_LAST_S = 60.0
"""How long to wait for answers behind the last request."""


@dataclass(slots=True)
class Seen:
    """What came back: latencies from the due times, statuses, the timing headers."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    timings: list[bytes] = field(default_factory=list)
    n_wanted: int | None = None
    all_there: asyncio.Event = field(default_factory=asyncio.Event)

    def look(self) -> None:
        """Note that all is there, once it is."""
        if self.n_wanted == len(self.latencies_s):
            self.all_there.set()


class _Connection(asyncio.Protocol):
    """One keep-alive connection, with one request on its way at most."""

    def __init__(self, seen: Seen, idle: deque[_Connection]) -> None:
        self._seen = seen
        self._idle = idle
        self._buffer = b""
        self._due_s = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, due_s: float) -> None:
        """Send a request that was due at `due_s`."""
        assert self._transport is not None
        self._due_s = due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answer = whole(self._buffer)
        if answer is None:
            return
        head, _ = answer
        self._buffer = b""
        seen = self._seen
        seen.latencies_s.append(time.perf_counter() - self._due_s)
        seen.statuses[int(head[9:12])] += 1
        seen.timings += timing(head)
        seen.look()
        self._idle.append(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)


async def drive(url: str, body: bytes, rate_per_s: float, seconds: float, key: str = "") -> Seen:
    """Send `body` at a rate for some seconds; wait for the last answers."""
    parts, request = urlsplit(url), prepared(url, body, key)
    seen, idle = Seen(), deque[_Connection]()
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def fresh(due_s: float) -> None:
        _, made = await loop.create_connection(
            lambda: _Connection(seen, idle), str(parts.hostname), int(parts.port or 80)
        )
        made.send(request, due_s)

    began_s = time.perf_counter()
    n_requests = int(rate_per_s * seconds)
    for number in range(n_requests):
        due_s = began_s + number / rate_per_s
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        if idle:
            idle.pop().send(request, due_s)
        else:
            task = asyncio.create_task(fresh(due_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    seen.n_wanted = n_requests
    seen.look()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_S):
            await seen.all_there.wait()
    return seen


def summary(seen: Seen, n_requests: int) -> dict[str, object]:
    """Return the figures of a run."""
    return {"requests": n_requests, "answered": len(seen.latencies_s), **figures(seen)}


def main() -> None:
    """Run one load and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    # In the environment: every process of a machine can read command lines.
    key = os.environ.get("INFERBUS_API_KEY", "")
    seen = uvloop.run(drive(args.url, args.body.read_bytes(), args.rate, args.seconds, key))
    json.dump(summary(seen, int(args.rate * args.seconds)), sys.stdout)


if __name__ == "__main__":
    main()
