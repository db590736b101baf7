"""The same ONNX model behind Inferbus and behind two FastAPI servers, side by side in one run.

Each round also says what CPU every process takes per request, the load generator too.

All servers run at once and take turns under load, several rounds, so that a machine whose speed
drifts hurts all alike; quote the medians and the ratios of one round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path
from typing import cast

from bench.deployed import deployed, load, oip_body
from bench.record import cpu_s, memory_mib, store
from bench.roundtrip import WARM_S, rows
from inferbus_dev.ports import free_port

ROUNDS = 3
SECONDS = 5.0
CASES = ((16, 1), (64, 1), (16, 64), (64, 64))


@contextlib.asynccontextmanager
async def peer(kind: str, model: Path) -> AsyncIterator[tuple[str, int]]:
    """Run one of the FastAPI servers; yield its URL and pid."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.peer_app", kind, str(model), str(port)
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.1)
        yield f"http://127.0.0.1:{port}/predict", process.pid
    finally:
        process.terminate()
        await process.wait()


async def measure() -> dict[str, object]:
    """Return figures by case and server, and the ratios of medians."""
    runs: dict[str, dict[str, list[dict[str, object]]]] = {}
    async with contextlib.AsyncExitStack() as stack_of:
        stack, folder = await stack_of.enter_async_context(deployed(["breast-cancer"]))
        model = folder / "models" / "breast-cancer" / "model.onnx"
        usual, usual_pid = await stack_of.enter_async_context(peer("usual", model))
        tuned, tuned_pid = await stack_of.enter_async_context(peer("tuned", model))
        urls = {
            "inferbus": f"{stack.http}/v2/models/breast-cancer/infer",
            "usual": usual,
            "tuned": tuned,
        }
        bodies: dict[tuple[str, int], Path] = {}
        for count in {count for _, count in CASES}:
            data = rows(count, folder)
            for name in urls:
                content = oip_body(data) if name == "inferbus" else {"features": data}
                bodies[name, count] = folder / f"{name}-{count}.json"
                bodies[name, count].write_text(json.dumps(content))
        services = ("gateway", "worker", "logger", "registry")
        servers = ("kafka", "postgres", "valkey")
        ours = {role: stack.process(role).pid for role in (*services, *servers)}
        pids = {"inferbus": ours, "usual": {"usual": usual_pid}, "tuned": {"tuned": tuned_pid}}
        await load(urls["inferbus"], bodies["inferbus", 1], 64, 1.0, WARM_S)
        for number in range(ROUNDS):
            for connections, count in CASES:
                case = f"{connections} connections, {count} rows"
                for name, url in urls.items():
                    found = await _accounted(
                        pids[name], load(url, bodies[name, count], connections, SECONDS, 0.0)
                    )
                    runs.setdefault(case, {}).setdefault(name, []).append(found)
                    line = {k: found[k] for k in ("req_per_s", "p50_ms", "p99_ms", "statuses")}
                    sys.stderr.write(f"round {number + 1}: {case}: {name}: {json.dumps(line)}\n")
        memory = {
            "inferbus services": memory_mib([ours[role] for role in services]),
            "kafka, postgres and valkey": memory_mib([ours[role] for role in servers]),
            "usual": memory_mib([usual_pid]),
            "tuned": memory_mib([tuned_pid]),
        }
    return {"cases": {case: _compare(found) for case, found in runs.items()}, "memory_mib": memory}


async def _accounted(
    pids: Mapping[str, int], run: Coroutine[None, None, dict[str, object]]
) -> dict[str, object]:
    """Add to a load's figures `cpu_us_per_request`: microseconds of each process by its name."""

    def spent() -> dict[str, float]:
        children = os.times()
        used = {name: cpu_s(pid) for name, pid in pids.items()}
        return {**used, "load": children.children_user + children.children_system}

    before = spent()
    found = await run
    after = spent()
    n_requests = sum(cast("dict[str, int]", found["statuses"]).values())
    cost = {name: round((after[name] - before[name]) / n_requests * 1e6, 1) for name in after}
    return {**found, "cpu_us_per_request": cost}


def _compare(found: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    medians = {
        name: {
            key: statistics.median(float(str(run[key])) for run in each)
            for key in ("req_per_s", "p50_ms", "p99_ms")
        }
        for name, each in found.items()
    }
    ratios = {
        f"req_per_s over {name}": round(
            statistics.median(
                float(str(ours["req_per_s"])) / float(str(theirs["req_per_s"]))
                for ours, theirs in zip(found["inferbus"], found[name], strict=True)
            ),
            2,
        )
        for name in ("usual", "tuned")
    }
    statuses = {name: [run["statuses"] for run in each] for name, each in found.items()}
    cpu = {name: _median_cpu(each) for name, each in found.items()}
    return {"medians": medians, "ratios": ratios, "cpu_us_per_request": cpu, "statuses": statuses}


def _median_cpu(runs: list[dict[str, object]]) -> dict[str, float]:
    costs = [cast("dict[str, float]", run["cpu_us_per_request"]) for run in runs]
    return {name: statistics.median(cost[name] for cost in costs) for name in costs[0]}


def main() -> None:
    """Measure and store."""
    path = store("peers", asyncio.run(measure()))
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
