"""Streams whose worker is killed; a part of `test_streams`.

In: a stack with two workers, two gateways and `smollm2`. Out: an error to whoever reads the stream,
and never its end; or an assertion.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import httpx

from inferbus_dev.stack import Stack
from tests.support import clients
from tests.support.event_streams import STORY, Heard, begun, read
from tests.support.log_rows import row

ENDLESS = STORY | {"max_tokens": 1500}


async def _kill_the_busy_worker(stack: Stack) -> int:
    """Kill the worker that generates; return its index."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for index in range(2):
            text = (await client.get(f"{stack.metrics[f'worker-{index}']}/metrics")).text
            lines = text.splitlines()
            line = next(one for one in lines if one.startswith("inferbus_backlog_rows "))
            if float(line.rpartition(" ")[2]) > 0:
                stack.kill("worker", index, signal.SIGKILL)
                return index
    raise AssertionError("no worker generates")


async def is_seen_where_the_gateway_is_lost_too(stack: Stack) -> None:
    heard = Heard()
    url = f"{stack.gateways[0]}/v1/completions"
    reading = asyncio.create_task(read("POST", url, heard, json=ENDLESS))
    await begun(heard, 5)
    stack.kill("gateway", 0, signal.SIGKILL)
    await reading
    await _kill_the_busy_worker(stack)
    rest = await read(
        "GET",
        f"{stack.gateways[1]}/v1/streams/{heard.request_id}",
        Heard(),
        headers={"last-event-id": heard.places[-1]},
    )
    assert not rest.done
    assert rest.error is not None
    assert rest.error["code"] == "worker_lost"
    assert (await row(stack, heard.request_id))["outcome"] == "failed"


async def is_an_error_and_no_end(stack: Stack) -> None:
    """To the openai SDK in a process of its own, and to who reads the same stream beside it."""
    program = clients.PROGRAMS / "openai_broken.py"
    sdk = await asyncio.create_subprocess_exec(
        *(sys.executable, program, stack.http, stack.api_key, json.dumps(ENDLESS)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert sdk.stdout is not None
        name = (await sdk.stdout.readline()).decode().strip()
        assert name.startswith("cmpl-")
        heard = Heard()
        reading = asyncio.create_task(read("GET", f"{stack.http}/v1/streams/{name}", heard))
        await begun(heard, 5)
        killed = await _kill_the_busy_worker(stack)
        await reading
        raised = json.loads(await sdk.stdout.read())
    finally:
        if sdk.returncode is None:
            sdk.kill()
        await sdk.wait()
    assert (raised["kind"], raised["code"]) == ("APIError", "worker_lost")
    assert raised["text"].startswith(heard.text) or heard.text.startswith(raised["text"])
    assert not heard.done
    assert heard.error is not None
    assert heard.error["code"] == "worker_lost"
    found = await row(stack, name.removeprefix("cmpl-"))
    assert found["outcome"] == "failed"
    await stack.wait_ready("worker", killed)
