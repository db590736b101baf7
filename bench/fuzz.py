"""11,400 hostile requests against a running stack: no 500, no silence, no leak, no growth.

Every request comes from a seed, so a finding can be made again. The gateway's resident memory is
read after 600 others, which fill its caches, and at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

from bench.deployed import deployed
from bench.record import memory_mib, store
from tests.support import hostile

N = 11_400
WARM = 600
CONNECTIONS = 6
SEED = 20261126


async def measure() -> dict[str, object]:
    """Throw everything; return counts, findings and memory."""
    async with deployed(["breast-cancer", "minilm", "smollm2"]) as (stack, _):
        port = int(urlsplit(stack.http).port or 0)
        pid = stack.process("gateway").pid
        tally = hostile.Tally()

        async def throw(n: int, seed: int) -> None:
            seeds = [seed * 100 + number for number in range(CONNECTIONS)]
            await asyncio.gather(
                *(
                    hostile.throw(
                        port, hostile.requests(each, hostile.VALID), n // CONNECTIONS, tally
                    )
                    for each in seeds
                )
            )

        await throw(WARM, SEED)
        before_mib = memory_mib([pid])
        start_s = time.monotonic()
        await throw(N, SEED + 1)
        spent_s = time.monotonic() - start_s
        after_mib = memory_mib([pid])
        alive = stack.process("gateway").pid == pid
    for what, wire, body in tally.broken[:20]:
        sys.stderr.write(f"{what}\n  sent {wire[:600]!r}\n  got  {body!r}\n")
    return {
        "requests": tally.n,
        "seed": SEED,
        "statuses": {str(key): count for key, count in sorted(tally.statuses.items())},
        "closed_without_answer": tally.closed,
        "broken": [what for what, _, _ in tally.broken],
        "seconds": round(spent_s, 1),
        "gateway_memory_mib": {"before": before_mib, "after": after_mib},
        "gateway_still_the_same_process": alive,
    }


def main() -> None:
    """Measure and store; findings are an exit code."""
    figures = asyncio.run(measure())
    path = store("fuzz", figures)
    sys.stderr.write(f"{json.dumps(figures)}\nstored in bench/results/{path.name}\n")
    if figures["broken"]:
        raise SystemExit(1)
