"""A job of 100,000 rows while its workers are killed, beside a raw loop; requests beside a job.

In: nothing. Out: rows per second of a job and of a plain loop over the same ONNX file in the same
run, whether each row was accounted for once, and the latency of requests without and with a job.
`--rows N` and `--kills N` make it smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from bench.deployed import deployed
from bench.record import store
from inferbus_dev.stack import Stack

MODEL = "breast-cancer"
INPUT = "features"
WIDTH = 30
_RAW_BATCH = 64
_RATE_PER_S = 50
_ASKED_S = 15.0


def _rows(n_rows: int) -> list[list[float]]:
    chance = random.Random(7)
    return [[round(chance.uniform(0, 30), 3) for _ in range(WIDTH)] for _ in range(n_rows)]


def _raw_rows_per_s(path: Path, rows: list[list[float]]) -> float:
    """Return how fast one loop over onnxruntime alone is, rows given as lists as a job has them."""
    import numpy as np  # noqa: PLC0415 -- only here
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = [one.name for one in session.get_inputs()]
    began_s = time.perf_counter()
    for at in range(0, len(rows), _RAW_BATCH):
        session.run(None, {name: np.array(rows[at : at + _RAW_BATCH], np.float32)})
    return len(rows) / (time.perf_counter() - began_s)


async def _submit(http: httpx.AsyncClient, rows: list[list[float]]) -> tuple[str, float]:
    body = "\n".join(json.dumps({INPUT: row}) for row in rows).encode()
    began_s = time.perf_counter()
    answer = await http.post(
        f"/v1/jobs?model={MODEL}", content=body, headers={"content-type": "application/x-ndjson"}
    )
    answer.raise_for_status()
    return answer.json()["id"], time.perf_counter() - began_s


async def _finish(
    http: httpx.AsyncClient, stack: Stack, job: str, kills: int, n_rows: int
) -> float:
    """Wait for a job's end, killing a worker each time a share of it is done."""
    began_s = time.perf_counter()
    killed = 0
    while True:
        counts = (await http.get(f"/v1/jobs/{job}")).json()["counts"]
        if killed < kills and counts["done"] >= n_rows * (killed + 0.5) / (kills + 1):
            await stack.wait_ready("worker", killed % 2)
            stack.kill("worker", killed % 2, signal.SIGKILL)
            killed += 1
            sys.stderr.write(f"killed worker {killed} of {kills} at {counts['done']} rows\n")
        if counts["done"] == counts["rows"]:
            if killed < kills:
                raise RuntimeError(f"only {killed} kills before the end; use more rows")
            return time.perf_counter() - began_s
        await asyncio.sleep(0.1)


async def _account(http: httpx.AsyncClient, stack: Stack, job: str, n_rows: int) -> dict[str, int]:
    """Count the rows of a job in its results and in the log."""
    found: list[int] = []
    ids: set[str] = set()
    async with http.stream("GET", f"/v1/jobs/{job}/results") as answer:
        async for line in answer.aiter_lines():
            row = json.loads(line)
            if row["status"] == "ok":
                found.append(row["row"])
                ids.add(row["request_id"])
    if found != list(range(n_rows)):
        raise RuntimeError("a row is missing from the results, or is there twice")
    connection = await asyncpg.connect(stack.postgres, ssl=False)
    try:
        until_s = time.monotonic() + 180
        while True:
            logged = {
                str(row["request_id"]): row["n"]
                for row in await connection.fetch(
                    "SELECT request_id, count(*) AS n FROM log.predictions GROUP BY 1"
                )
            }
            mine = {one: n for one, n in logged.items() if one in ids}
            if len(mine) == n_rows or time.monotonic() > until_s:
                break
            await asyncio.sleep(1.0)
    finally:
        await connection.close()
    twice = sum(n > 1 for n in mine.values())
    return {"results": len(found), "in_log": len(mine), "twice_in_log": twice}


async def _latencies_ms(http: httpx.AsyncClient, row: list[float], seconds: float) -> list[float]:
    """Send requests at a fixed rate, whatever the answers do; return their latencies."""
    tensor = {"name": INPUT, "datatype": "FP32", "shape": [1, WIDTH], "data": row}
    body = json.dumps({"inputs": [tensor]}).encode()

    async def one(due_s: float) -> float:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        answer = await http.post(f"/v2/models/{MODEL}/infer", content=body)
        answer.raise_for_status()
        return (time.perf_counter() - due_s) * 1000

    began_s = time.perf_counter()
    due = [began_s + at / _RATE_PER_S for at in range(int(seconds * _RATE_PER_S))]
    return sorted(await asyncio.gather(*(one(due_s) for due_s in due)))


def _figures(latencies_ms: list[float]) -> dict[str, float]:
    last = len(latencies_ms) - 1
    return {
        f"p{share}": round(latencies_ms[int(last * share / 100)], 2) for share in (50, 90, 99)
    } | {"n": len(latencies_ms)}


async def _run(n_rows: int, kills: int) -> dict[str, Any]:
    rows = _rows(n_rows)
    async with deployed((MODEL,), n_workers=2) as (stack, folder):
        (model,) = (folder / "models").rglob("*.onnx")
        raw = await asyncio.to_thread(_raw_rows_per_s, model, rows)
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(
            base_url=stack.http, timeout=120, trust_env=False, limits=limits
        ) as http:
            await _latencies_ms(http, rows[0], 3.0)
            alone = await _latencies_ms(http, rows[0], _ASKED_S)
            job, _ = await _submit(http, rows)
            beside = await _latencies_ms(http, rows[0], _ASKED_S)
            counts = (await http.get(f"/v1/jobs/{job}")).json()["counts"]
            await http.delete(f"/v1/jobs/{job}")
            await _finish(http, stack, job, 0, n_rows)
            job, upload_s = await _submit(http, rows)
            whole_s = await _finish(http, stack, job, 0, n_rows)
            job, _ = await _submit(http, rows)
            killed_s = await _finish(http, stack, job, kills, n_rows)
            accounted = await _account(http, stack, job, n_rows)
    return {
        "rows": n_rows,
        "upload_s": round(upload_s, 2),
        "job_rows_per_s": round(n_rows / whole_s),
        "raw_onnxruntime_rows_per_s": round(raw),
        "kills": kills,
        "job_rows_per_s_with_kills": round(n_rows / killed_s),
        "accounted": accounted,
        "requests_alone_ms": _figures(alone),
        "requests_beside_a_job_ms": _figures(beside),
        "job_rows_meanwhile": counts["done"],
    }


def main() -> None:
    """Run it and store the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench jobs")
    parser.add_argument("name")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    said = parser.parse_args()
    figures = asyncio.run(_run(said.rows, said.kills))
    sys.stdout.write(f"{json.dumps(figures, indent=1)}\n{store('jobs', figures).name}\n")
