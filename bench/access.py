"""What a key, its limit and its tenant's limit cost: two callers of one gateway, in turn.

One has no key, as only `make up` allows; the other has one with a rate that it never reaches, in a
tenant that has one too, so that each of its requests is checked and counted. Quote the median of
the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from pathlib import Path

from bench.deployed import deployed, load, oip_body
from bench.record import store
from bench.roundtrip import WARM_S, rows
from inferbus_dev.stack import Stack

ROUNDS = 9
SECONDS = 4.0
CONNECTIONS = 64
RATE_PER_S = 1_000_000


async def make_key(stack: Stack) -> str:
    """Make a key with a rate for a tenant of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "inferbus_cli", "keys", "create", "bench", "--tenant", "bench"),
        *("--scope", "infer:breast-cancer", "--rate", str(RATE_PER_S)),
        *("--registry", stack.registry),
        env={**os.environ, "INFERBUS_API_KEY": stack.api_key},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return out.decode().strip()


async def measure() -> dict[str, object]:
    """Return the figures of both callers and their ratio."""
    env = {"INFERBUS_TENANT_REQUESTS_PER_S": str(RATE_PER_S)}
    found: dict[str, list[float]] = {"without key": [], "with key and limits": []}
    async with deployed(["breast-cancer"], env=env) as (stack, folder):
        keys = {"without key": "", "with key and limits": await make_key(stack)}
        body = Path(folder) / "body.json"
        body.write_text(json.dumps(oip_body(rows(1, folder))))
        url = f"{stack.http}/v2/models/breast-cancer/infer"
        await load(url, body, CONNECTIONS, 1.0, WARM_S)
        for number in range(ROUNDS):
            # Who goes first changes: the machine may be slower or faster a moment later.
            for name in sorted(keys, reverse=bool(number % 2)):
                seen = await load(url, body, CONNECTIONS, SECONDS, 0.5, keys[name])
                if list(seen["statuses"]) != ["200"]:  # type: ignore[call-overload]
                    raise RuntimeError(f"{name}: {seen['first_bad']}")
                found[name].append(float(str(seen["req_per_s"])))
                sys.stderr.write(f"round {number + 1}: {name}: {seen['req_per_s']} req/s\n")
    ratios = [
        ours / theirs
        for ours, theirs in zip(found["with key and limits"], found["without key"], strict=True)
    ]
    return {
        "req_per_s": {name: statistics.median(each) for name, each in found.items()},
        "rounds": found,
        "with over without": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    """Measure and store."""
    path = store("access", asyncio.run(measure()))
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
