"""What this commit costs beside an earlier one: both stacks run at once and take turns under load.

The earlier one is `BEFORE` (the last commit without keys, limits, statistics and token streams)
or the commit named on the command line. It is called without a key; this one by a caller whose key
and tenant have limits. Quote the median of the rounds' ratios.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from bench.access import RATE_PER_S, make_key
from bench.checkout import clone, environment, resolved
from bench.deployed import deployed, load, oip_body
from bench.record import store
from bench.roundtrip import WARM_S, rows

BEFORE = "c162fd7"
CONNECTIONS = (16, 64)
ROUNDS = 9
SECONDS = 4.0

# What runs in the earlier checkout, with its own code: serve one model until the input ends.
_HOLD = """
import asyncio, sys
from bench.deployed import deployed
async def hold():
    async with deployed(["breast-cancer"]) as (stack, folder):
        print("URL", stack.http, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(hold())
"""


@contextlib.asynccontextmanager
async def serving(commit: str) -> AsyncIterator[str]:
    """Yield the URL of a stack that runs the code of a commit."""
    with clone(commit) as folder:
        sys.stderr.write(f"setting up {commit}\n")
        setup = await asyncio.create_subprocess_exec(
            "make", "setup", cwd=folder, env=environment(), stdout=subprocess.DEVNULL
        )
        if await setup.wait():
            raise RuntimeError(f"{commit} could not be set up")
        held = await asyncio.create_subprocess_exec(
            str(folder / ".venv" / "bin" / "python"),
            *("-c", _HOLD),
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert held.stdin is not None
        assert held.stdout is not None
        try:
            async for line in held.stdout:
                if line.startswith(b"URL "):
                    yield line.split()[1].decode()
                    return
            raise RuntimeError(f"the stack of {commit} did not start")
        finally:
            held.stdin.close()
            await held.wait()


async def measure(commit: str) -> dict[str, object]:
    """Return the figures of both by connections, and their ratios."""
    env = {"INFERBUS_TENANT_REQUESTS_PER_S": str(RATE_PER_S)}
    cases: dict[str, object] = {}
    async with deployed(["breast-cancer"], env=env) as (stack, folder), serving(commit) as earlier:
        body = Path(folder) / "body.json"
        body.write_text(json.dumps(oip_body(rows(1, folder))))
        path = "/v2/models/breast-cancer/infer"
        who = {"before": (earlier + path, ""), "now": (stack.http + path, await make_key(stack))}
        for url, key in who.values():
            await load(url, body, 64, 1.0, WARM_S, key)
        for connections in CONNECTIONS:
            found: dict[str, list[float]] = {name: [] for name in who}
            for number in range(ROUNDS):
                # Who goes first changes: the machine may be slower or faster a moment later.
                for name in sorted(who, reverse=bool(number % 2)):
                    url, key = who[name]
                    seen = await load(url, body, connections, SECONDS, 0.5, key)
                    if list(seen["statuses"]) != ["200"]:  # type: ignore[call-overload]
                        raise RuntimeError(f"{name}: {seen['first_bad']}")
                    found[name].append(float(str(seen["req_per_s"])))
                sys.stderr.write(
                    f"{connections} connections, round {number + 1}: "
                    + ", ".join(f"{name} {each[-1]} req/s" for name, each in found.items())
                    + "\n"
                )
            ratios = [a / b for a, b in zip(found["now"], found["before"], strict=True)]
            cases[f"{connections} connections"] = {
                "req_per_s": {name: statistics.median(each) for name, each in found.items()},
                "rounds": found,
                "now over before": round(statistics.median(ratios), 3),
            }
    return {"before": resolved(commit), "cases": cases}


def main() -> None:
    """Measure and store."""
    commit = sys.argv[2] if len(sys.argv) > 2 else BEFORE
    path = store("before", asyncio.run(measure(commit)))
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
