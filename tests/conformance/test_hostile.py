"""Hostile requests and calls against the running stack; `python -m bench fuzz` throws many more."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from bench import fuzz
from inferbus_dev.stack import Stack
from inferbus_gateway import door
from tests.support import hostile, hostile_rpc, hostile_shapes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.asyncio(loop_scope="session")
async def test_every_hostile_request_is_refused_in_words(stack: Stack) -> None:
    tally = hostile.Tally()
    port = int(urlsplit(stack.http).port or 0)
    pid = stack.process("gateway").pid
    file = await hostile.a_file(stack.http)
    throwing = (hostile.throw(port, hostile.requests(seed, file), 150, tally) for seed in range(4))
    await asyncio.gather(*throwing)
    assert not tally.broken, tally.broken[:3]
    assert tally.n == 600
    assert min(tally.statuses[400], tally.statuses[404], tally.statuses[200]) > 0
    assert stack.process("gateway").pid == pid


@pytest.mark.asyncio(loop_scope="session")
async def test_every_hostile_call_is_refused_in_words(stack: Stack) -> None:
    tally = hostile_rpc.Tally()
    pid = stack.process("gateway").pid
    throwing = (
        hostile_rpc.throw(stack.grpc, hostile_rpc.calls(seed), 100, tally) for seed in range(4)
    )
    await asyncio.gather(*throwing)
    assert not tally.broken, tally.broken[:3]
    assert tally.n == 400
    wanted = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED")
    assert min(tally.statuses[one] for one in wanted) > 0
    assert stack.process("gateway").pid == pid


def test_hostile_calls_come_from_their_seed() -> None:
    first, again, other = (hostile_rpc.calls(seed) for seed in (7, 7, 8))
    made = [next(first) for _ in range(50)]
    assert made == [next(again) for _ in range(50)]
    assert made != [next(other) for _ in range(50)]


def test_the_rules_can_be_broken() -> None:
    assert hostile.LEAKS.search(b'{"error": "in /tmp/x/app.py line 3"}')
    assert hostile.LEAKS.search(b'data: {"error": {"message": "something went wrong here; the')
    assert hostile.LEAKS.search(b"<object at 0x7f00deadbeef>")
    assert not hostile.LEAKS.search(b'{"error": "the shape must be [-1, 30]"}')
    first = hostile.requests(7)
    again = hostile.requests(7)
    other = hostile.requests(8)
    made = [next(first) for _ in range(50)]
    assert made == [next(again) for _ in range(50)]
    assert made != [next(other) for _ in range(50)]


def test_growth_and_another_process_are_findings_of_the_bench() -> None:
    def figures(
        after: float, rpc_after: float, *, same: bool = True, peak: float = 177.9
    ) -> dict[str, Any]:
        high = {"broken": [], "gateway_peak_mib": {"before": 50.0, "peak": peak}}
        rpc = {**high, "gateway_memory_mib": {"before": after, "after": rpc_after}}
        http = {**high, "gateway_memory_mib": {"before": 50.0, "after": after}}
        return {**http, "grpc": rpc, "gateway_still_the_same_process": same}

    assert fuzz.findings(figures(97.6, 97.6)) == []
    assert "over the requests" in fuzz.findings(figures(97.7, 50.0))[0]
    assert "over the gRPC calls" in fuzz.findings(figures(50.0, 97.7))[0]
    (whole,) = fuzz.findings(figures(80.0, 97.7))
    assert "over the whole run" in whole
    assert fuzz.findings(figures(50.0, 50.0, same=False)) == ["the gateway is another process"]
    assert len(fuzz.findings(figures(50.0, 50.0, peak=178.0))) == 2
    assert fuzz.findings({**figures(50.0, 50.0), "broken": ["500"]}) == ["500"]


@pytest.mark.asyncio(loop_scope="session")
async def test_every_shape_is_fine_before_it_is_broken(stack: Stack) -> None:
    """But for a place that nobody has allowed to be read."""
    refused = []
    async with httpx.AsyncClient(base_url=stack.http, timeout=60, trust_env=False) as http:
        for one in hostile_shapes.shapes(await hostile.a_file(stack.http)):
            head = {"content-type": one.kind}
            got = await http.post(one.path, content=one.raw, headers=head)
            if got.status_code not in {200, 202} or '"error":{' in got.text:
                code = re.search(r'"code":"(\w+)"', got.text)
                refused.append((one.path, got.status_code, code[1] if code else got.text))
    assert refused == [("/v1/jobs", 422, "uri_refused")]


def test_every_way_to_ask_is_attacked() -> None:
    """A route that takes a body and has no shape is one that nobody has thought of."""
    asked = {
        one.path.partition("?")[0].removeprefix("/openai") for one in hostile_shapes.shapes("")
    }
    for model in ("breast-cancer", "minilm", "smollm2"):
        asked = {path.replace(f"/{model}/", "/{model}/") for path in asked}
    taking = {path for method, path in door.POLICIES.table if method == "POST"}
    same = {path.removeprefix("/openai").replace("/versions/{version}", "") for path in taking}
    named = {"/v1/jobs/{job}/retry", "/v1/batches/{batch}/cancel"}
    loading = {f"/v2/repository/models/{{model}}/{what}" for what in ("load", "unload")}
    assert asked == same - named - loading
