"""First tokens of `smollm2`: of the engine alone, through the platform, and beside a batch.

In: nothing. Out: milliseconds to the first token and between tokens, of llama.cpp called in this
process with the worker's settings and of streams over HTTP, in rounds that alternate; then streams
alone and beside a batch, in rounds that alternate too. Each prompt is another, so that none is
answered from a slot's kept prefix. `--rounds N` and `--streams N` make it smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import httpx

from bench.deployed import deployed
from bench.record import store
from inferbus_dev.stack import Stack

MODEL = "smollm2"
N_TOKENS = 24
N_LINES = 2000
_LINE_TOKENS = 64
_BATCH_TOKENS = 24
_PARALLEL = 8
_N_WARM = 5
_WORDS = ("one", "bus", "leaves", "the", "square", "at", "seven", "and", "another", "comes", "back")

_numbers = count(1)


@dataclass(slots=True)
class Times:
    """When tokens came, in milliseconds: the first of each stream, and those between two."""

    first_ms: list[float] = field(default_factory=list)
    between_ms: list[float] = field(default_factory=list)

    def add(self, began_s: float, came_s: list[float]) -> None:
        """Take a stream's times."""
        if len(came_s) <= N_TOKENS // 2:
            raise RuntimeError(f"only {len(came_s)} pieces came")
        self.first_ms.append(1e3 * (came_s[0] - began_s))
        self.between_ms += [1e3 * (after - before) for before, after in pairwise(came_s)]

    def figures(self) -> dict[str, float]:
        """Return medians and tails."""
        found = {}
        for name, each in (("first", self.first_ms), ("between", self.between_ms)):
            ordered = sorted(each)
            found[f"{name}_p50_ms"] = round(statistics.median(ordered), 1)
            found[f"{name}_p95_ms"] = round(ordered[int(0.95 * (len(ordered) - 1))], 1)
        return found


def prompt() -> str:
    """Return a prompt of about 40 tokens that was not asked before."""
    number = next(_numbers)
    words = [_WORDS[(number * step + step) % len(_WORDS)] for step in range(1, 25)]
    return f"{number}. Once upon a time {' '.join(words)}. Then"


def asked(n_tokens: int = N_TOKENS) -> dict[str, Any]:
    """Return the body of a request."""
    bias = {"0": -100, "2": -100}  # never an end: each stream has as many tokens
    return {"prompt": prompt(), "max_tokens": n_tokens, "temperature": 0, "logit_bias": bias}


@contextlib.contextmanager
def engine(path: Path) -> Iterator[Any]:
    """Yield llama.cpp's own server as a worker sets it for this model."""
    import xllamacpp  # noqa: PLC0415 -- only here

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = _PARALLEL
    params.n_ctx = 2048 * _PARALLEL
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = 0
    params.ui = False
    with tempfile.TemporaryDirectory() as folder:
        params.hostnames = [f"{folder}/s.sock"]
        yield xllamacpp.Server(params)


def of_the_engine(server: Any, times: Times) -> None:
    """Take one stream's times from llama.cpp itself."""
    came_s: list[float] = []

    def heard(chunk: dict[str, Any]) -> bool:
        if chunk.get("choices") and (chunk["choices"][0].get("text") or ""):
            came_s.append(time.perf_counter())
        return False

    began_s = time.perf_counter()
    server.handle_completions({**asked(), "stream": True}, heard)
    times.add(began_s, came_s)


async def of_the_platform(http: httpx.AsyncClient, times: Times) -> None:
    """Take one stream's times over HTTP."""
    came_s: list[float] = []
    body = {**asked(), "model": MODEL, "stream": True}
    began_s = time.perf_counter()
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["text"]:
                came_s.append(time.perf_counter())  # noqa: PERF401 -- a time for each, as it comes
    times.add(began_s, came_s)


async def _batch(http: httpx.AsyncClient) -> str:
    """Begin a batch that does not end while it is looked at; return its id."""
    lines = [
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/completions",
                "body": {**asked(_LINE_TOKENS), "model": MODEL},
            }
        )
        for number in range(N_LINES)
    ]
    file = {"file": ("lines.jsonl", "\n".join(lines).encode())}
    made = (await http.post("/v1/files", data={"purpose": "batch"}, files=file)).json()
    said = {"endpoint": "/v1/completions", "completion_window": "24h", "input_file_id": made["id"]}
    name: str = (await http.post("/v1/batches", json=said)).json()["id"]
    await _until(http, name, lambda now: now["request_counts"]["completed"] > 0)
    return name


async def _until(
    http: httpx.AsyncClient, name: str, good: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    async with asyncio.timeout(120):
        while True:
            said: dict[str, Any] = (await http.get(f"/v1/batches/{name}")).json()
            if good(said):
                return said
            await asyncio.sleep(0.2)


async def _completed(http: httpx.AsyncClient, name: str) -> int:
    return int((await http.get(f"/v1/batches/{name}")).json()["request_counts"]["completed"])


async def _end(http: httpx.AsyncClient, name: str) -> int:
    """Cancel a batch; return how many of its lines were answered."""
    now = (await http.get(f"/v1/batches/{name}")).json()
    if now["status"] != "in_progress":
        raise RuntimeError(f"the batch did not run all the time: {now['status']}")
    await http.post(f"/v1/batches/{name}/cancel")
    await _until(http, name, lambda said: said["status"] == "cancelled")
    return int(now["request_counts"]["completed"])


async def _measure(stack: Stack, path: Path, rounds: int, streams: int) -> dict[str, Any]:
    head = {"authorization": f"Bearer {stack.api_key}"}
    alone, ours, quiet, beside = Times(), Times(), Times(), Times()
    lines_per_s: list[float] = []
    async with httpx.AsyncClient(
        base_url=stack.http, timeout=120, trust_env=False, headers=head
    ) as http:
        with engine(path) as server:
            for _ in range(_N_WARM):
                of_the_engine(server, Times())
                await of_the_platform(http, Times())
            for number in range(rounds):
                for _ in range(streams):
                    await asyncio.to_thread(of_the_engine, server, alone)
                for _ in range(streams):
                    await of_the_platform(http, ours)
                sys.stderr.write(f"round {number + 1}: {alone.figures()} {ours.figures()}\n")
        for number in range(rounds):
            for _ in range(streams):
                await of_the_platform(http, quiet)
            name = await _batch(http)
            before, began_s = await _completed(http, name), time.perf_counter()
            for _ in range(streams):
                await of_the_platform(http, beside)
            lasted_s = time.perf_counter() - began_s
            lines_per_s.append(round((await _end(http, name) - before) / lasted_s, 2))
            sys.stderr.write(f"round {number + 1}: {quiet.figures()} {beside.figures()}\n")
    part_ms = statistics.median(ours.first_ms) - statistics.median(alone.first_ms)
    return {
        "streams_a_side": rounds * streams,
        "tokens_a_stream": N_TOKENS,
        "engine_alone": alone.figures(),
        "through_the_platform": ours.figures(),
        "platform_part_of_first_p50_ms": round(part_ms, 1),
        "without_a_batch": quiet.figures(),
        "beside_a_batch": beside.figures(),
        "batch_lines_per_s_meanwhile": lines_per_s,
    }


async def _run(rounds: int, streams: int) -> dict[str, Any]:
    async with deployed((MODEL,)) as (stack, folder):
        (path,) = (folder / "models").rglob("*.gguf")
        return await _measure(stack, path, rounds, streams)


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(prog="python -m bench first_token")
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--streams", type=int, default=25)
    said = parser.parse_args()
    path = store("first_token", asyncio.run(_run(said.rounds, said.streams)))
    sys.stderr.write(f"stored in bench/results/{path.name}\n")
