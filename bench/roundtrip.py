"""HTTP to HTTP latency of one model through the whole stack, split by hop.

Hops, from the answer's own header: parse, produce, queue, engine, reply, respond.
"""

from __future__ import annotations

import asyncio
import json
import sys

from bench.deployed import deployed, load, oip_body
from bench.record import memory_mib, store
from inferbus_models import samples

CONNECTIONS = (1, 16, 64, 256)
SECONDS = 8.0
WARM_S = 60.0


def rows(count: int, folder: object) -> list[list[float]]:
    """Return `count` rows of real features."""
    from pathlib import Path  # noqa: PLC0415 -- only here

    found = samples.load(Path(str(folder)) / "models" / "breast-cancer")
    data = [list(map(float, sample.inputs[0]["data"])) for sample in found]
    return [data[i % len(data)][:30] for i in range(count)]


async def measure() -> dict[str, object]:
    """Run the stack once and measure each number of connections in turn."""
    figures: dict[str, object] = {}
    async with deployed(["breast-cancer"]) as (stack, folder):
        body = folder / "body.json"
        body.write_text(json.dumps(oip_body(rows(1, folder))))
        url = f"{stack.http}/v2/models/breast-cancer/infer"
        # Kafka takes twice the CPU per request until its JVM has compiled what runs often.
        await load(url, body, 64, 1.0, WARM_S)
        for connections in CONNECTIONS:
            figures[str(connections)] = found = await load(url, body, connections, SECONDS, 2.0)
            sys.stderr.write(f"{connections:>4} connections: {json.dumps(found)}\n")
        figures["memory_mib"] = {
            role: memory_mib([stack.process(role).pid])
            for role in ("gateway", "worker", "logger", "registry", "kafka", "postgres", "valkey")
        }
    return figures


def main() -> None:
    """Measure and store."""
    path = store("roundtrip", asyncio.run(measure()))
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
