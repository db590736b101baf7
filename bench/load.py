"""A closed-loop HTTP load generator that costs little itself.

In: one prepared request and a number of keep-alive connections. Out: latencies in seconds, by
status, and the timing headers of the answers. Runs as a process of its own:
`python -m bench.load URL --connections 16 --seconds 5 --body FILE`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import urlsplit

import uvloop

_LENGTH = b"content-length:"
_TIMING = b"x-inferbus-timing:"


@dataclass(slots=True)
class Tally:
    """What was seen after the warm-up. Latencies are seconds from write to last byte."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    timings: list[bytes] = field(default_factory=list)
    first_bad: str = ""


class Seen(Protocol):
    """What a load generator keeps of the answers; latencies in seconds."""

    latencies_s: list[float]
    statuses: Counter[int]
    timings: list[bytes]


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends its request again as soon as it is answered."""

    def __init__(self, request: bytes, tally: Tally, window: tuple[float, float]) -> None:
        self._request = request
        self._tally = tally
        self._from, self._until = window
        self._sent = 0.0
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent = time.perf_counter()
        if self._sent >= self._until:
            self._transport.close()
            return
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        answer = whole(self._buffer)
        if answer is None:
            return
        self._answered(*answer)
        self._buffer = b""
        self._send()

    def _answered(self, head: bytes, body: bytes) -> None:
        now = time.perf_counter()
        if now < self._from:
            return
        status = int(head[9:12])
        self._tally.latencies_s.append(now - self._sent)
        self._tally.statuses[status] += 1
        if status != 200 and not self._tally.first_bad:
            self._tally.first_bad = body[:300].decode("utf-8", "replace")
        if len(self._tally.timings) < 20_000:
            self._tally.timings += timing(head)

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


def whole(buffer: bytes) -> tuple[bytes, bytes] | None:
    """Return the head of an answer, in lower case, and its body; None until all of it is there."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = buffer[:head_end].lower()
    at = head.find(_LENGTH)
    length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    if len(buffer) < head_end + 4 + length:
        return None
    return head, buffer[head_end + 4 :]


def timing(head: bytes) -> list[bytes]:
    """Return the timing header of an answer, if it has one."""
    at = head.find(_TIMING)
    return [head[at + len(_TIMING) :].split(b"\r\n", 1)[0].strip()] if at >= 0 else []


def prepared(url: str, body: bytes, key: str) -> bytes:
    """Return a request as it goes over the wire."""
    parts = urlsplit(url)
    caller = f"authorization: Bearer {key}\r\n" if key else ""
    return (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"{caller}content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def drive(  # noqa: PLR0917 -- the parameters of a load
    url: str, body: bytes, connections: int, seconds: float, warm_s: float, key: str = ""
) -> Tally:
    """Send `body` over `connections` for `seconds` after `warm_s` of warm-up, with an API key."""
    parts, request = urlsplit(url), prepared(url, body, key)
    tally = Tally()
    start = time.perf_counter()
    window = (start + warm_s, start + warm_s + seconds)
    loop = asyncio.get_running_loop()
    made = [
        (
            await loop.create_connection(
                lambda: Connection(request, tally, window),
                str(parts.hostname),
                int(parts.port or 80),
            )
        )[1]
        for _ in range(connections)
    ]
    await asyncio.wait([one.closed for one in made], timeout=warm_s + seconds + 35)
    return tally


def quantile(values: list[float], share: float) -> float:
    """Return a quantile of sorted values by the nearest-rank rule; NaN of none."""
    if not values:
        return float("nan")
    return values[min(len(values) - 1, int(share * len(values)))]


def figures(seen: Seen) -> dict[str, object]:
    """Return how long answers took, in milliseconds, their statuses, and where the time went."""
    ordered = sorted(seen.latencies_s)
    hops: dict[str, list[float]] = {}
    for line in seen.timings:
        for pair in line.decode().split(","):
            name, _, value = pair.strip().partition("=")
            hops.setdefault(name, []).append(float(value))
    return {
        "p50_ms": round(quantile(ordered, 0.50) * 1e3, 3),
        "p90_ms": round(quantile(ordered, 0.90) * 1e3, 3),
        "p99_ms": round(quantile(ordered, 0.99) * 1e3, 3),
        "max_ms": round(ordered[-1] * 1e3, 3) if ordered else None,
        "statuses": {str(key): count for key, count in sorted(seen.statuses.items())},
        "hops_p50_us": {name: quantile(sorted(v), 0.50) for name, v in hops.items()},
        "hops_p99_us": {name: quantile(sorted(v), 0.99) for name, v in hops.items()},
    }


def summary(tally: Tally, seconds: float) -> dict[str, object]:
    """Return the figures of a run."""
    n_answers = len(tally.latencies_s)
    return {
        "requests": n_answers,
        "req_per_s": round(n_answers / seconds, 1),
        **figures(tally),
        "first_bad": tally.first_bad,
    }


def main() -> None:
    """Run one load and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-s", type=float, default=1.0)
    args = parser.parse_args()
    body = args.body.read_bytes()
    # In the environment: every process of a machine can read command lines.
    key = os.environ.get("INFERBUS_API_KEY", "")
    tally = uvloop.run(drive(args.url, body, args.connections, args.seconds, args.warm_s, key))
    json.dump(summary(tally, args.seconds), sys.stdout)


if __name__ == "__main__":
    main()
