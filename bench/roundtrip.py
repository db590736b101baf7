"""HTTP to HTTP latency of one model through the whole stack, split by hop, in three rounds.

Out: of each number of connections the round whose p50 is the middle one, and all rounds. Hops, from
the answer's own header: parse, produce, queue, engine, reply, respond.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from bench.deployed import deployed, load, oip_body
from bench.record import memory_mib, store
from inferbus_models import samples

CONNECTIONS = (1, 16, 64, 256)
ROUNDS = 3
SECONDS = 8.0
WARM_S = 60.0


def rows(count: int, folder: object) -> list[list[float]]:
    """Return `count` rows of real features."""
    from pathlib import Path  # noqa: PLC0415 -- only here

    found = samples.load(Path(str(folder)) / "models" / "breast-cancer")
    data = [list(map(float, sample.inputs[0]["data"])) for sample in found]
    return [data[i % len(data)][:30] for i in range(count)]


async def measure() -> dict[str, object]:
    """Run the stack once and measure each number of connections in turn, three times."""
    rounds: list[dict[str, dict[str, Any]]] = [{} for _ in range(ROUNDS)]
    async with deployed(["breast-cancer"]) as (stack, folder):
        body = folder / "body.json"
        body.write_text(json.dumps(oip_body(rows(1, folder))))
        url = f"{stack.http}/v2/models/breast-cancer/infer"
        # Kafka takes twice the CPU per request until its JVM has compiled what runs often.
        await load(url, body, 64, 1.0, WARM_S)
        for number, found in enumerate(rounds, start=1):
            for connections in CONNECTIONS:
                one = await load(url, body, connections, SECONDS, 2.0)
                found[str(connections)] = one
                line = f"round {number}: {connections} connections: {json.dumps(one)}"
                sys.stderr.write(line + "\n")
        memory = {
            role: memory_mib([stack.process(role).pid])
            for role in ("gateway", "worker", "logger", "registry", "kafka", "postgres", "valkey")
        }
    middle = {
        case: sorted((found[case] for found in rounds), key=lambda one: float(one["p50_ms"]))[
            ROUNDS // 2
        ]
        for case in map(str, CONNECTIONS)
    }
    return {**middle, "rounds": rounds, "memory_mib": memory}


def main() -> None:
    """Measure and store."""
    path = store("roundtrip", asyncio.run(measure()))
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
