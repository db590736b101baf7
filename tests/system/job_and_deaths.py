"""A job while every process of a stack is killed, and others after it; a part of `test_serving`.

In: a stack with two workers, two gateways and `minilm`, and an origin that it may read from. Out:
each row once in the results and once in the log; or an assertion.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from inferbus_dev.stack import Stack
from inferbus_models import samples
from tests.support import stacks
from tests.support.https_origin import HttpsOrigin
from tests.support.sample_models import model_folder

MODEL = "minilm"
N_ROWS = 4000
TOO_LONG = (256 << 10) + 1
OTHERS = (("engines",), ("kafka",), ("registry", "logger", "valkey", "postgres"))
"""Who dies together; the last ones are not waited for, since a job needs none of them."""
BAD = frozenset(range(7, N_ROWS, 211))
WORDS = ("cat", "mat", "bus", "kafka", "sat", "on", "the", "a")


def rows() -> list[str]:
    """Return the rows; each text is another, so that answers cannot be taken for one another."""
    chance = random.Random(1)
    made = [
        json.dumps({"text": f"{number} {' '.join(chance.choices(WORDS, k=6))}"})
        for number in range(N_ROWS)
    ]
    for number in BAD:
        made[number] = '{"text": 5}'
    return made


def environment(origin: HttpsOrigin) -> dict[str, str]:
    """Return what a stack must be told to read inputs of jobs from an origin."""
    return {
        "INFERBUS_JOB_URI_SOURCES": origin.url,
        "INFERBUS_JOB_URI_NETWORKS": "127.0.0.0/8,::1/128",
        "SSL_CERT_FILE": str(origin.authority),
    }


async def survives_the_death_of_everybody(stack: Stack, origin: HttpsOrigin, folder: Path) -> None:
    texts = rows()
    await stacks.at_rest(stack)
    n_before = len(await _logged(stack))
    async with httpx.AsyncClient(base_url=stack.http, timeout=30, trust_env=False) as http:
        answer = await http.post(
            f"/v1/jobs?model={MODEL}",
            content="\n".join(texts).encode(),
            headers={"content-type": "application/x-ndjson"},
        )
        assert answer.status_code == 202, answer.text
        job = answer.json()["id"]
        await _until(http, job, lambda said: said["state"] != "queued")
        stack.kill("worker", 0, signal.SIGKILL)
        await _until(http, job, lambda said: said["counts"]["done"] > 0)
        stack.kill("gateway", 0, signal.SIGKILL)
        stack.kill("worker", 1, signal.SIGKILL)
        for roles in OTHERS:
            await _goes_on_without(stack, http, job, roles)
        done = await _until(http, job, lambda said: said["state"] == "completed")
        assert done["counts"] == {
            "rows": N_ROWS,
            "done": N_ROWS,
            "ok": N_ROWS - len(BAD),
            "failed": len(BAD),
            "cancelled": 0,
            "refused": len(BAD),
        }
        found = (await http.get(f"/v1/jobs/{job}/results")).text.splitlines()
        results = [json.loads(line) for line in found]
        assert [row["row"] for row in results] == list(range(N_ROWS))
        assert {row["row"] for row in results if row["status"] != "ok"} == BAD
        some = random.Random(2).sample(sorted(set(range(N_ROWS)) - BAD), 10)
        await _answers_are_the_rows_own(http, texts, results, some)
        await stacks.at_rest(stack)
        await _the_log_has_each_row_once(stack, results, n_before)
        await _what_was_cancelled_is_run_by_retry(http, texts)
        await _nobody_waits_for_a_job_of_one_row(http)
        await _the_input_is_at_a_uri(http, origin)
        await _by_the_command_line(stack, http, folder)


async def _until(http: httpx.AsyncClient, job: str, what: Any) -> dict[str, Any]:
    async with asyncio.timeout(200):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await http.get(f"/v1/jobs/{job}")
                if answer.status_code == httpx.codes.OK and what(said := answer.json()):
                    found: dict[str, Any] = said
                    return found
            await asyncio.sleep(0.05)


async def _goes_on_without(
    stack: Stack, http: httpx.AsyncClient, job: str, roles: tuple[str, ...]
) -> None:
    """Kill some of the others in the middle of the job; more of its rows are done afterwards."""
    if "engines" in roles:
        await stack.wait_ready("worker", 0)
    said = await _until(http, job, lambda _said: True)
    assert said["state"] == "running", f"the job ended before {roles} died: {said}"
    for role in roles:
        if role == "engines":
            for engine in psutil.Process(stack.process("worker", 0).pid).children():
                os.kill(engine.pid, signal.SIGKILL)
        else:
            stack.kill(role, 0, signal.SIGKILL)
    done = said["counts"]["done"]
    await _until(http, job, lambda said: said["counts"]["done"] > done)
    for role in set(roles) - {"engines"}:
        await stack.wait_ready(role, 0)


async def _answers_are_the_rows_own(
    http: httpx.AsyncClient,
    texts: list[str],
    results: list[dict[str, Any]],
    numbers: Iterable[int],
) -> None:
    tolerance = max(one.tolerance for one in samples.load(model_folder(MODEL)))
    for number in numbers:
        text = json.loads(texts[number])["text"]
        one = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
        answer = await http.post(f"/v2/models/{MODEL}/infer", json={"inputs": [one]})
        alone = answer.json()["outputs"][0]["data"]
        in_job = results[number]["outputs"][0]["data"]
        assert max(abs(a - b) for a, b in zip(alone, in_job, strict=True)) <= tolerance


async def _logged(stack: Stack) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(stack.postgres, ssl=False)
    try:
        logged: list[asyncpg.Record] = await connection.fetch(
            "SELECT request_id, outcome FROM log.predictions"
        )
    finally:
        await connection.close()
    return logged


async def _the_log_has_each_row_once(
    stack: Stack, results: list[dict[str, Any]], n_before: int
) -> None:
    logged = await _logged(stack)
    outcomes = {str(row["request_id"]): row["outcome"] for row in logged}
    assert len(outcomes) == len(logged)
    for row in results:
        want = "ok" if row["status"] == "ok" else "invalid_input"
        assert outcomes[row["request_id"]] == want
    assert len(logged) == n_before + N_ROWS + 10


async def _results(http: httpx.AsyncClient, job: str) -> list[dict[str, Any]]:
    text = (await http.get(f"/v1/jobs/{job}/results")).text
    return [json.loads(line) for line in text.splitlines()]


async def _what_was_cancelled_is_run_by_retry(http: httpx.AsyncClient, texts: list[str]) -> None:
    some = texts[:300]
    made = await http.post(
        f"/v1/jobs?model={MODEL}",
        content="\n".join(some).encode(),
        headers={"content-type": "application/x-ndjson"},
    )
    first = made.json()["id"]
    assert (await http.delete(f"/v1/jobs/{first}")).status_code == 200
    counts = (await _until(http, first, lambda said: said["state"] == "cancelled"))["counts"]
    assert counts["cancelled"] > 0
    before = await _results(http, first)
    again = (await http.post(f"/v1/jobs/{first}/retry")).json()
    assert (again["parent"], again["counts"]["rows"]) == (first, counts["cancelled"])
    await _until(http, again["id"], lambda said: said["state"] == "completed")
    after = await _results(http, again["id"])
    assert [row["row"] for row in after] == list(range(len(some)))
    assert {row["row"] for row in after if row["status"] != "ok"} == BAD & set(range(len(some)))
    kept = [row for row in before if row["status"] != "cancelled"]
    assert [after[row["row"]] for row in kept] == kept


async def _nobody_waits_for_a_job_of_one_row(http: httpx.AsyncClient) -> None:
    one = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a cat"]}
    asked = {"id": "mine", "inputs": [one]}
    now = (await http.post(f"/v2/models/{MODEL}/infer", json=asked)).json()
    later = await http.post(
        f"/v2/models/{MODEL}/infer", json=asked, headers={"prefer": "respond-async"}
    )
    assert later.status_code == 202, later.text
    job = later.headers["location"].removeprefix("/v1/jobs/")
    await _until(http, job, lambda said: said["state"] == "completed")
    (row,) = await _results(http, job)
    assert (row["id"], row["status"]) == ("mine", "ok")
    (got,), (want,) = row["outputs"], now["outputs"]
    assert (got["name"], got["shape"]) == (want["name"], want["shape"])
    tolerance = max(one.tolerance for one in samples.load(model_folder(MODEL)))
    assert max(abs(a - b) for a, b in zip(got["data"], want["data"], strict=True)) <= tolerance


async def _the_input_is_at_a_uri(http: httpx.AsyncClient, origin: HttpsOrigin) -> None:
    texts = rows()[:8]
    origin.answers = {"/rows.jsonl": (200, {}, "\n".join(texts).encode())}

    async def submit(uri: str) -> httpx.Response:
        return await http.post("/v1/jobs", json={"model": MODEL, "input": {"uri": uri}})

    answer = await submit(f"{origin.url}/rows.jsonl")
    assert answer.status_code == 202, answer.text
    job = answer.json()["id"]
    await _until(http, job, lambda said: said["state"] == "completed")
    results = await _results(http, job)
    assert [row["status"] for row in results] == ["ok"] * 7 + ["failed"]
    await _answers_are_the_rows_own(http, texts, results, [0, 6])
    refused = await submit(f"https://localhost:{origin.port + 1}/rows.jsonl")
    assert (refused.status_code, refused.json()["code"]) == (422, "uri_refused")
    assert origin.asked == [("/rows.jsonl", f"localhost:{origin.port}")]


async def _by_the_command_line(stack: Stack, http: httpx.AsyncClient, folder: Path) -> None:
    async def jobs(*argv: str) -> str:
        return await stacks.cli("jobs", *argv, "--gateway", stack.http, api_key=stack.api_key)

    path = folder / "rows.jsonl"
    # A worker refuses the last one: it is a row that can be tried again.
    path.write_text("\n".join([*rows()[:8], json.dumps({"text": "x" * TOO_LONG})]))
    job = (await jobs("submit", MODEL, str(path), "--wait", "--job-id", "mine")).strip()
    assert (await jobs("submit", MODEL, str(path), "--job-id", "mine")).strip() == job
    results = [json.loads(line) for line in (await jobs("results", job)).splitlines()]
    assert [row["status"] for row in results] == ["ok"] * 7 + ["failed"] * 2
    assert job in await jobs("list")
    assert json.loads(await jobs("get", job, "--json"))["state"] == "completed"
    assert "completed" in await jobs("cancel", job)
    again = (await jobs("retry", job)).strip()
    done = await _until(http, again, lambda said: said["state"] == "completed")
    assert (done["parent"], done["counts"]["rows"], done["counts"]["failed"]) == (job, 1, 1)
    both = await _results(http, again)
    assert both[:8] == results[:8]
    assert (both[8]["row"], both[8]["error"]) == (8, results[8]["error"])
    assert both[8]["request_id"] != results[8]["request_id"], "it was tried again"
