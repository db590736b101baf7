"""11,400 hostile requests and 3,600 hostile gRPC calls against a running stack.

None may end in a 500, INTERNAL or UNKNOWN, in silence, in a telling word, grow the gateway by
50 MB for good or by 128 MiB for a moment; the exit code says so. Models are not loaded or unloaded,
which would end the rest. All comes from seeds, so a finding can be made again. Memory is read after
others of both kinds that fill caches, between the two and at the end, each time once the transports
have given back what they hold for large messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from bench.deployed import deployed
from bench.record import memory_mib, peak_mib, reset_peak, store
from inferbus_dev.stack import Stack
from tests.support import hostile, hostile_rpc

N = 11_400
WARM = 600
RPC_N = 3_600
RPC_WARM = 1_200
CONNECTIONS = 6
SETTLE_S = 5.0
SEED = 20261126
MOST_GROWTH_MIB = 50e6 / 2**20
MOST_PEAK_MIB = 128.0
"""Bodies of all connections on their way, and what one of them becomes while it is read."""


async def measure() -> dict[str, object]:
    """Throw everything; return counts, findings and memory."""
    async with deployed(["breast-cancer", "minilm", "smollm2"]) as (stack, _):
        pid = stack.process("gateway").pid
        requests, calls = hostile.Tally(), hostile_rpc.Tally()
        file = await hostile.a_file(stack.http)
        await _throw_requests(stack, file, requests, WARM, SEED)
        await _throw_calls(stack, calls, RPC_WARM, SEED)
        async with _watched(pid) as memory:
            start_s = time.monotonic()
            await _throw_requests(stack, file, requests, N, SEED + 1)
            spent_s = time.monotonic() - start_s
        figures: dict[str, object] = {
            "requests": requests.n,
            "seed": SEED,
            "statuses": {str(key): count for key, count in sorted(requests.statuses.items())},
            "closed_without_answer": requests.closed,
            "broken": [what for what, _, _ in requests.broken],
            "seconds": round(spent_s, 1),
            **memory,
        }
        async with _watched(pid) as memory:
            start_s = time.monotonic()
            await _throw_calls(stack, calls, RPC_N, SEED + 1)
            spent_s = time.monotonic() - start_s
        figures["grpc"] = {
            "calls": calls.n,
            "statuses": dict(sorted(calls.statuses.items())),
            "broken": [what for what, _, _ in calls.broken],
            "seconds": round(spent_s, 1),
            **memory,
        }
        for what, sent, got in [*requests.broken[:20], *calls.broken[:20]]:
            sys.stderr.write(f"{what}\n  sent {sent!r:.600}\n  got  {got!r}\n")
        figures["gateway_still_the_same_process"] = stack.process("gateway").pid == pid
    return figures


async def _throw_requests(stack: Stack, file: str, tally: hostile.Tally, n: int, seed: int) -> None:
    port = int(urlsplit(stack.http).port or 0)
    seeds = [seed * 100 + number for number in range(CONNECTIONS)]
    await asyncio.gather(
        *(
            hostile.throw(port, hostile.requests(each, file), n // CONNECTIONS, tally)
            for each in seeds
        )
    )


async def _throw_calls(stack: Stack, tally: hostile_rpc.Tally, n: int, seed: int) -> None:
    seeds = [seed * 100 + number for number in range(CONNECTIONS)]
    await asyncio.gather(
        *(
            hostile_rpc.throw(stack.grpc, hostile_rpc.calls(each), n // CONNECTIONS, tally)
            for each in seeds
        )
    )


@contextlib.asynccontextmanager
async def _watched(pid: int) -> AsyncIterator[dict[str, dict[str, float]]]:
    """Yield what will hold the memory of a process before, after, and at its peak (resident)."""
    before_mib = await _settled_mib(pid)
    reset_peak(pid)
    peak_before_mib = peak_mib(pid)
    figures: dict[str, dict[str, float]] = {}
    yield figures
    figures["gateway_peak_mib"] = {"before": peak_before_mib, "peak": peak_mib(pid)}
    figures["gateway_memory_mib"] = {"before": before_mib, "after": await _settled_mib(pid)}


async def _settled_mib(pid: int) -> float:
    """Return the memory of a process once it has been left alone."""
    await asyncio.sleep(SETTLE_S)
    return memory_mib([pid])


def findings(figures: Any) -> list[str]:
    """Return what must not be in the figures."""
    found = [*figures["broken"], *figures["grpc"]["broken"]]
    halves = {"requests": figures, "gRPC calls": figures["grpc"]}
    for what, part in halves.items():
        peak = part["gateway_peak_mib"]
        if (risen_mib := peak["peak"] - peak["before"]) >= MOST_PEAK_MIB:
            found.append(f"the gateway rose by {risen_mib:.1f} MiB during the {what}")
    memory_mib = {what: part["gateway_memory_mib"] for what, part in halves.items()}
    last = memory_mib["gRPC calls"]["after"]
    memory_mib["whole run"] = {"before": memory_mib["requests"]["before"], "after": last}
    for what, part in memory_mib.items():
        if (grown_mib := part["after"] - part["before"]) >= MOST_GROWTH_MIB:
            found.append(f"the gateway grew by {grown_mib:.1f} MiB over the {what}")
    if not figures["gateway_still_the_same_process"]:
        found.append("the gateway is another process")
    return found


def main() -> None:
    """Measure and store; findings are an exit code."""
    figures = asyncio.run(measure())
    path = store("fuzz", figures)
    sys.stderr.write(f"{json.dumps(figures)}\nstored in bench/results/{path.name}\n")
    if found := findings(figures):
        raise SystemExit("\n".join(found))
