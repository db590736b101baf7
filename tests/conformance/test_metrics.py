"""promtool, Prometheus's own checker, on what every process of a running stack exposes."""

from __future__ import annotations

import httpx
import pytest

from inferbus_dev.stack import Stack
from tests.support import clients, stacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(bool(clients.NO_PROMTOOL), reason=clients.NO_PROMTOOL),
]

OWN = {
    "gateway": "inferbus_requests_total{",
    "worker": "inferbus_engine_first_token_seconds_bucket{",
    "registry": "inferbus_outbox_published_total{",
    "logger": "inferbus_log_rows_total ",
}
"""What each role counts once it has worked."""


async def promtool(text: str) -> clients.Done:
    return await clients.call("promtool", "check", "metrics", given=text.encode())


async def test_promtool_finds_nothing_to_say(stack: Stack) -> None:
    async with httpx.AsyncClient(timeout=40, trust_env=False) as http:
        body = {"inputs": stacks.sample_inputs("breast-cancer")[0]}
        url = f"{stack.http}/v2/models"
        assert (await http.post(f"{url}/breast-cancer/infer", json=body)).status_code == 200
        assert (await http.post(f"{url}/nobody/infer", json=body)).status_code == 404
        text = {"text_input": "Hi", "parameters": {"max_tokens": 2}}
        assert (await http.post(f"{url}/smollm2/generate_stream", json=text)).status_code == 200
        await stacks.at_rest(stack)
        assert {name.partition("-")[0] for name in stack.metrics} == set(OWN)
        for name, address in stack.metrics.items():
            shown = (await http.get(f"{address}/metrics")).text
            assert OWN[name.partition("-")[0]] in shown
            done = await promtool(shown)
            assert (done.code, done.out + done.err) == (0, ""), name


async def test_promtool_would_say_something() -> None:
    assert (await promtool("# TYPE a_ms counter\na_ms 1\n")).code != 0
