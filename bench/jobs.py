"""A job of 100,000 rows while its workers are killed, beside a raw loop; requests beside a job.

In: nothing. Out: rows per second of a job and of a plain loop over the same ONNX file in the same
run, whether each row was accounted for once, and the latency of requests alone and beside a job, in
rounds that alternate, so that what else the machine does falls on both. `--rows N`, `--kills N`,
`--rounds N` and `--seconds N` make it smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from bench.deployed import deployed, oip_body
from bench.record import store
from inferbus_dev.stack import Stack

MODEL = "breast-cancer"
INPUT = "features"
WIDTH = 30
_RAW_BATCH = 64
_RATE_PER_S = 50
_WARM_S = 10.0
_REST_S = 3.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for: rows of each job, kills of the last one, rounds and their length."""

    rows: int
    kills: int
    rounds: int
    seconds: float


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


async def _asked(url: str, body: Path, seconds: float) -> dict[str, Any]:
    """Ask at a fixed rate from a process of its own; return its figures."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.paced", url, "--body", str(body)),
        *("--rate", str(_RATE_PER_S), "--seconds", str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    figures: dict[str, Any] = json.loads(out)
    if figures["statuses"] != {"200": figures["requests"]}:
        raise RuntimeError(f"not every request was answered: {figures['statuses']}")
    return figures


async def _rounds(
    http: httpx.AsyncClient, stack: Stack, folder: Path, rows: list[list[float]], said: Asked
) -> dict[str, Any]:
    """Ask alone and beside a job, in turn; return each round and the ratios of their medians."""
    body = folder / "one.json"
    body.write_text(json.dumps(oip_body(rows[:1])))
    url = f"{stack.http}/v2/models/{MODEL}/infer"
    await _asked(url, body, _WARM_S)
    alone, beside, rates = [], [], []
    for number in range(said.rounds):
        alone.append(await _asked(url, body, said.seconds))
        job, _ = await _submit(http, rows)
        began_s = time.perf_counter()
        beside.append(await _asked(url, body, said.seconds))
        counts = (await http.get(f"/v1/jobs/{job}")).json()["counts"]
        rates.append(round(counts["done"] / (time.perf_counter() - began_s)))
        if counts["done"] == counts["rows"]:
            raise RuntimeError("the job ended before its round; use more rows")
        sys.stderr.write(
            f"round {number + 1}: p99 {alone[-1]['p99_ms']} ms alone, {beside[-1]['p99_ms']} ms "
            f"beside a job of {rates[-1]} rows/s\n"
        )
        await http.delete(f"/v1/jobs/{job}")
        await _finish(http, stack, job, 0, len(rows))
        await asyncio.sleep(_REST_S)

    def median(rounds: list[dict[str, Any]], figure: str) -> float:
        return float(statistics.median(one[figure] for one in rounds))

    return {
        "per_s": _RATE_PER_S,
        "seconds_a_round": said.seconds,
        "alone": alone,
        "beside_a_job": beside,
        "job_rows_per_s_meanwhile": rates,
        "ratio_of_medians": {
            figure: round(median(beside, figure) / median(alone, figure), 2)
            for figure in ("p50_ms", "p90_ms", "p99_ms")
        },
    }


async def _run(said: Asked) -> dict[str, Any]:
    n_rows = said.rows
    rows = _rows(n_rows)
    async with deployed((MODEL,), n_workers=2) as (stack, folder):
        (model,) = (folder / "models").rglob("*.onnx")
        async with httpx.AsyncClient(base_url=stack.http, timeout=120, trust_env=False) as http:
            requests = await _rounds(http, stack, folder, rows, said)
            raw = await asyncio.to_thread(_raw_rows_per_s, model, rows)
            job, upload_s = await _submit(http, rows)
            whole_s = await _finish(http, stack, job, 0, n_rows)
            undisturbed = await _account(http, stack, job, n_rows)
            raw_again = await asyncio.to_thread(_raw_rows_per_s, model, rows)
            job, _ = await _submit(http, rows)
            killed_s = await _finish(http, stack, job, said.kills, n_rows)
            accounted = await _account(http, stack, job, n_rows)
    return {
        "rows": n_rows,
        "upload_s": round(upload_s, 2),
        "job_rows_per_s": round(n_rows / whole_s),
        "accounted": undisturbed,
        "raw_onnxruntime_rows_per_s": [round(raw), round(raw_again)],
        "kills": said.kills,
        "job_rows_per_s_with_kills": round(n_rows / killed_s),
        "accounted_with_kills": accounted,
        "requests": requests,
    }


def main() -> None:
    """Run it and store the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench jobs")
    parser.add_argument("name")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    said = Asked(given.rows, given.kills, given.rounds, given.seconds)
    figures = asyncio.run(_run(said))
    sys.stdout.write(f"{json.dumps(figures, indent=1)}\n{store('jobs', figures).name}\n")
