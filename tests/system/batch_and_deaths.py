"""A batch while a gateway and all workers of a stack are killed; a part of `test_streams`.

In: a stack with two workers, two gateways and `smollm2`. Out: each line once in a file and once in
the log, its tokens a debt of the key that sent it; or an assertion.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import asyncpg
import httpx

from inferbus_dev.stack import Stack
from inferbus_models import smollm2
from tests.support import stacks

N_LINES = 40
BAD = 5
ENDED = {"completed", "failed", "cancelled", "expired"}


def lines() -> list[str]:
    """Return the lines: questions with known answers, and one that cannot be asked."""
    questions = list(smollm2.QUESTIONS)
    made = []
    for number in range(N_LINES):
        question = questions[number % len(questions)]
        body: dict[str, Any] = {
            "model": smollm2.NAME,
            "prompt": smollm2.prompt(question),
            "temperature": 0 if number != BAD else 7,
        }
        said = {"custom_id": f"n{number}", "method": "POST", "url": "/v1/completions"}
        made.append(json.dumps({**said, "body": body}))
    return made


async def survives_the_death_of_everybody(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.gateways[1], timeout=30, trust_env=False) as http:
        http.headers["authorization"] = await _key(stack, http)
        form = {"purpose": "batch"}
        file = {"file": ("lines.jsonl", "\n".join(lines()).encode())}
        made = (await http.post("/v1/files", data=form, files=file)).json()
        asked = {"endpoint": "/v1/completions", "completion_window": "24h"}
        answer = await http.post(
            f"{stack.gateways[0]}/v1/batches", json={**asked, "input_file_id": made["id"]}
        )
        name = answer.json()["id"]
        # The one that took it never brings it to its end.
        stack.kill("gateway", 0, signal.SIGKILL)
        await until(http, name, lambda said: said["status"] == "in_progress")
        for index in (0, 1):
            stack.kill("worker", index, signal.SIGKILL)
        said = await until(http, name, lambda said: said["status"] in ENDED)
        assert said["status"] == "completed"
        counts = {"total": N_LINES, "completed": N_LINES - 1, "failed": 1}
        assert said["request_counts"] == counts
        good = await contents(http, said["output_file_id"])
        (bad,) = await contents(http, said["error_file_id"])
        refused = await http.post("/v1/batches", json={**asked, "input_file_id": made["id"]})
        assert refused.status_code == 429, refused.text
        assert refused.json()["error"]["code"] == "rate_limited"
        one = {"model": smollm2.NAME, "prompt": "Hi", "max_tokens": 1}
        assert (await http.post("/v1/completions", json=one)).status_code == 200
    assert bad["custom_id"] == f"n{BAD}"
    wanted = [f"n{number}" for number in range(N_LINES) if number != BAD]
    assert [row["custom_id"] for row in good] == wanted
    answers = list(smollm2.QUESTIONS.values())
    for row in good:
        text = row["response"]["body"]["choices"][0]["text"]
        assert text == answers[int(row["custom_id"][1:]) % len(answers)]
    await stacks.at_rest(stack)
    await _in_the_log_once(stack, [*good, bad])
    for role in ("gateway", "worker"):
        for index in (0, 1):
            await stack.wait_ready(role, index)


async def _key(stack: Stack, http: httpx.AsyncClient) -> str:
    """Return what a caller with few tokens a minute sends, once all gateways know it."""
    limits = ("--scope", f"infer:{smollm2.NAME}", "--tokens-per-min", "100")
    argv = ("keys", "create", "batcher", *limits, "--registry", stack.registry)
    head = f"Bearer {(await stacks.cli(*argv, api_key=stack.api_key)).strip()}"
    async with asyncio.timeout(20):
        for url in stack.gateways:
            while True:
                answer = await http.get(f"{url}/v1/batches", headers={"authorization": head})
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.05)
    return head


async def until(
    http: httpx.AsyncClient, name: str, good: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    async with asyncio.timeout(200):
        while True:
            said: dict[str, Any] = (await http.get(f"/v1/batches/{name}")).json()
            if good(said):
                return said
            await asyncio.sleep(0.1)


async def contents(http: httpx.AsyncClient, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (await http.get(f"/v1/files/{name}/content")).text.splitlines()
    ]


async def _in_the_log_once(stack: Stack, rows: list[dict[str, Any]]) -> None:
    connection = await asyncpg.connect(stack.postgres, ssl=False)
    try:
        logged = await connection.fetch(
            "SELECT request_id, outcome FROM log.predictions WHERE request_id = ANY($1::uuid[])",
            [row["response"]["request_id"] for row in rows],
        )
    finally:
        await connection.close()
    outcomes = {str(row["request_id"]): row["outcome"] for row in logged}
    assert len(outcomes) == len(logged) == N_LINES
    for row in rows:
        want = "ok" if row["response"]["status_code"] == 200 else "invalid_input"
        assert outcomes[row["response"]["request_id"]] == want
