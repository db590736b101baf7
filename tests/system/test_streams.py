"""Streams on a whole stack: lost gateways, lost workers, clients that leave, hostile ones."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from inferbus_dev.stack import Stack
from inferbus_models import smollm2
from inferbus_schemas.membership import EXPIRY_MS
from tests.support import stacks
from tests.support.collector import Collector, collecting
from tests.support.event_streams import STORY, Heard, begun, read
from tests.support.log_rows import row, text_of, texts_of
from tests.system import batch_and_deaths, lost_workers, traces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture
async def stack(collector: Collector) -> AsyncIterator[Stack]:
    env = {"INFERBUS_DRAIN_TIMEOUT_S": "5", "INFERBUS_OTLP_ENDPOINT": collector.url}
    async with stacks.running(n_workers=2, n_gateways=2, env=env) as running:
        await stacks.push(running, "smollm2")
        yield running


async def test_streams(stack: Stack, collector: Collector) -> None:
    """One stack for all of it, since starting it is what costs."""
    await _a_whole_stream_is_its_row(stack, collector)
    await _hostile_parameters_reach_no_engine(stack)
    await _a_key_has_so_many_tokens_a_minute(stack)
    await _a_client_that_leaves_cancels(stack)
    await _a_lost_gateway_loses_and_doubles_no_token(stack)
    await _a_reader_that_came_back_and_leaves_cancels(stack)
    await _a_gateway_that_stops_sends_its_streams_on(stack)
    await lost_workers.is_an_error_and_no_end(stack)
    await batch_and_deaths.survives_the_death_of_everybody(stack)
    await lost_workers.is_seen_where_the_gateway_is_lost_too(stack)
    await stacks.at_rest(stack)
    await stacks.verify(stack)


async def _a_whole_stream_is_its_row(stack: Stack, collector: Collector) -> None:
    url = f"{stack.http}/v1/completions"
    caller = traces.Caller()
    head = {"traceparent": caller.traceparent}
    heard = await read("POST", url, Heard(), json=STORY, headers=head)
    assert heard.done
    assert heard.error is None
    assert len(set(heard.places)) == len(heard.places)
    found = await row(stack, heard.request_id)
    assert found["outcome"] == "ok"
    assert text_of(found) == heard.text
    # Read again at the other gateway, from each of a few places: exactly what follows.
    other = f"{stack.gateways[1]}/v1/streams/{heard.request_id}"
    again = await read("GET", other, Heard())
    assert (again.text, again.places, again.done) == (heard.text, heard.places, True)
    for at in (0, 7, len(heard.places) - 1):
        rest = await read("GET", other, Heard(), headers={"last-event-id": heard.places[at]})
        assert rest.places == heard.places[at + 1 :]
        assert heard.text.endswith(rest.text)
        assert rest.done
    asked = (traces.GATEWAY, "POST /v1/completions")
    await traces.follow(collector, caller, asked, traces.IN_INBOX, traces.IN_LOG)


async def _hostile_parameters_reach_no_engine(stack: Stack) -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}

    def shaped(schema: dict[str, Any]) -> dict[str, Any]:
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema},
            }
        }

    def tool(parameters: dict[str, Any]) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "f", "parameters": parameters}}

    chat: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
    hostile: list[dict[str, Any]] = [
        {"n": 1000},
        {"max_tokens": 1 << 40},
        {"max_tokens": -1},
        {"max_tokens": True},
        {"temperature": 1e308},
        {"stop": ["x"] * 10_000},
        {"stop": ["x" * 10_000]},
        {"stop": [""]},
        {"stop": "\ud800"},
        {"top_logprobs": 5},
        {"logprobs": True, "top_logprobs": 10_000},
        {"logit_bias": {str(key): 1 for key in range(10_000)}},
        {"logit_bias": {"__proto__": 1}},
        {"chat_template": "{{ 7 * 7 }}"},
        {"chat_template_kwargs": {"a": 1}},
        {"grammar": "root ::= root root"},
        {"guided_regex": "(a+)+$"},
        {"tools": [tool(nested(3))]},
        {"tool_choice": {"type": "function"}},
        {"messages": [{"role": "user", "content": "x" * 3_000_000}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": ["user"], "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi"}] * 5000},
        {"stream_options": {"include_usage": True}},
        shaped({"type": "string", "pattern": "(a|a)*" * 30}),
        shaped(nested(60)),
        shaped({"type": "array", "items": {"type": "string"}, "maxItems": 1_000_000}),
        shaped({"$ref": "http://169.254.169.254/latest"}),
        shaped({"enum": [str(number) * 50 for number in range(2000)]}),
        # What costs an engine seconds and hundreds of MiB.
        shaped({"type": "integer", "multipleOf": 999983}),
        shaped({"allOf": [{"anyOf": [{"multipleOf": p}, {}]} for p in (3, 7, 11, 13, 17, 19)]}),
        # What an engine would drop without a word.
        shaped({"type": "array", "uniqueItems": True}),
        {"tools": [tool({"type": "object", "properties": {"a": {"oneOf": [{}]}}})]},
    ]
    before = await _restarts(stack)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        for one in hostile:
            body = json.dumps(chat | one)
            answer = await client.post(f"{stack.http}/v1/chat/completions", content=body)
            assert answer.status_code in {400, 413}, (str(one)[:200], answer.text[:300])
            said = answer.json()["error"]
            assert said["code"], one
        too_long = chat | {"messages": [{"role": "user", "content": "word " * 3000}]}
        answer = await client.post(f"{stack.http}/v1/chat/completions", json=too_long)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        fine = await client.post(
            f"{stack.http}/v2/models/smollm2/generate",
            json={
                "text_input": smollm2.prompt("What is the capital of Italy?"),
                "parameters": {"temperature": 0},
            },
        )
        assert fine.json()["text_output"] == "The capital of Italy is Rome."
    assert await _restarts(stack) == before == 0


async def _a_key_has_so_many_tokens_a_minute(stack: Stack) -> None:
    """Used up by one long prompt, a key's tokens come back, and nobody else's are touched."""
    url = f"{stack.http}/v1/chat/completions"
    long = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "word " * 1200}],
        "temperature": 0,
        "max_tokens": 4,
    }
    short = long | {"messages": [{"role": "user", "content": "hi"}]}

    async def key(*limits: str) -> dict[str, str]:
        argv = ("keys", "create", "writer", "--scope", "infer:smollm2", *limits)
        made = await stacks.cli(*argv, "--registry", stack.registry, api_key=stack.api_key)
        return {"authorization": f"Bearer {made.strip()}"}

    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:

        async def ask(body: dict[str, Any], head: dict[str, str]) -> httpx.Response:
            return await client.post(url, json=body, headers=head)

        async def known(head: dict[str, str]) -> None:
            async with asyncio.timeout(20):
                while (await ask(short, head)).status_code == 401:  # noqa: ASYNC110 -- a plain poll
                    await asyncio.sleep(0.05)

        free = await key()
        await known(free)
        used = (await ask(long, free)).json()["usage"]["total_tokens"]
        # A few seconds' worth less than what it will have used.
        limited = await key("--tokens-per-min", str(int(used * 0.9)))
        await known(limited)
        assert (await ask(long, limited)).json()["usage"]["total_tokens"] == used
        for body in (short, short | {"stream": True}):
            refused = await ask(body, limited)
            assert refused.status_code == 429, refused.text
            assert refused.json()["error"]["code"] == "rate_limited"
            assert refused.headers["x-inferbus-error-code"] == "rate_limited"
            assert refused.headers["x-should-retry"] == "true"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.headers["content-type"] == "application/json"
        one = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
        infer = f"{stack.http}/v2/models/smollm2/infer"
        refused = await client.post(infer, json={"inputs": [one]}, headers=limited)
        assert refused.status_code == 429, "it is the same however it is asked"
        assert (await ask(short, free)).status_code == 200
        async with asyncio.timeout(60):
            while (again := await ask(short, limited)).status_code == 429:  # noqa: ASYNC110 -- a plain poll
                await asyncio.sleep(0.2)
        assert again.status_code == 200, again.text


async def _restarts(stack: Stack) -> float:
    total = 0.0
    async with httpx.AsyncClient(trust_env=False) as client:
        for name, url in stack.metrics.items():
            if name.startswith("worker"):
                text = (await client.get(f"{url}/metrics")).text
                total += sum(
                    float(line.rpartition(" ")[2])
                    for line in text.splitlines()
                    if line.startswith("inferbus_engine_restarts_total{")
                )
    return total


async def _a_client_that_leaves_cancels(stack: Stack) -> None:
    url = f"{stack.http}/v1/completions"
    endless = STORY | {"max_tokens": 1500}
    heard = await read("POST", url, Heard(), json=endless, stop_after=5)
    found = await row(stack, heard.request_id)
    assert found["outcome"] == "cancelled"
    assert text_of(found).startswith(heard.text)
    keeping = STORY | {"max_tokens": 30}
    kept = await read(
        "POST",
        url,
        Heard(),
        json=keeping,
        stop_after=5,
        headers={"x-inferbus-on-disconnect": "keep"},
    )
    found = await row(stack, kept.request_id)
    assert found["outcome"] == "ok"
    assert text_of(found).startswith(kept.text)
    # A client that wants the whole answer and leaves cancels as well.
    with pytest.raises(httpx.TimeoutException):
        async with httpx.AsyncClient(timeout=3, trust_env=False) as client:
            await client.post(url, json=endless | {"stream": False, "n": 4})
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        quick = await client.post(url, json=STORY | {"stream": False, "max_tokens": 2})
    assert quick.status_code == 200


async def _a_lost_gateway_loses_and_doubles_no_token(stack: Stack) -> None:
    said = {name: STORY[name] for name in ("model", "temperature", "stream")}
    tell = "Tell me a long story about a fox."
    chat = {**said, "messages": [{"role": "user", "content": tell}], "max_tokens": 60}
    sampled = {"temperature": 0.8, "seed": 11, "max_tokens": 60}
    prompts = [STORY["prompt"], "In a city"]
    for path, n_choices, body in (
        ("v1/completions", 4, {**STORY, "prompt": prompts, "n": 2}),
        ("v1/chat/completions", 2, {**chat, "n": 2}),
        ("v1/responses", 1, {**said, "input": tell, "max_output_tokens": 60}),
        (
            "v2/models/smollm2/generate_stream",
            1,
            {"text_input": STORY["prompt"], "parameters": sampled},
        ),
    ):
        heard = Heard()
        url = f"{stack.gateways[0]}/{path}"
        reading = asyncio.create_task(read("POST", url, heard, json=body))
        await begun(heard, 10)
        stack.kill("gateway", 0, signal.SIGKILL)
        await reading
        assert heard.cut
        assert not heard.done
        rest = await read(
            "GET",
            f"{stack.gateways[1]}/v1/streams/{heard.request_id}",
            Heard(),
            headers={"last-event-id": heard.places[-1]},
        )
        assert rest.done, rest
        assert not set(rest.places) & set(heard.places)
        offsets = [int(place.partition(":")[2]) for place in heard.places + rest.places]
        assert offsets == sorted(offsets)
        numbers = heard.numbers + rest.numbers
        assert numbers == list(range(len(numbers)))
        told = texts_of(await row(stack, heard.request_id))
        for choice, text in enumerate(told):
            assert heard.texts.get(choice, "") + rest.texts.get(choice, "") == text
        assert len(told) == n_choices
        await stack.wait_ready("gateway", 0)


async def _a_reader_that_came_back_and_leaves_cancels(stack: Stack) -> None:
    """Unless its request is to be kept, or another client reads it."""
    url = f"{stack.gateways[0]}/v1/completions"
    body = STORY | {"max_tokens": 1500}
    keeps = {"x-inferbus-on-disconnect": "keep"}
    streams = [Heard() for _ in range(3)]
    reading = [
        asyncio.create_task(read("POST", url, heard, json=body, headers=head))
        for heard, head in zip(streams, ({}, keeps, {}), strict=True)
    ]
    await asyncio.gather(*(begun(heard, 5) for heard in streams))
    left, kept, shared = (f"{stack.gateways[1]}/v1/streams/{one.request_id}" for one in streams)
    # The first one's client is there still, at the other gateway.
    assert len((await read("GET", left, Heard(), stop_after=10)).places) == 10
    await begun(streams[0], len(streams[0].places) + 60)
    stack.kill("gateway", 0, signal.SIGKILL)
    await asyncio.gather(*reading)
    await asyncio.sleep(EXPIRY_MS / 1000 + 2)
    staying = Heard()
    stays = asyncio.create_task(read("GET", shared, staying))
    await begun(staying, 5)
    for resumed in (left, kept, shared):
        again = await read("GET", resumed, Heard(), stop_after=10)
        assert not again.done, "it ended before its reader left"
    assert (await stays).done, "another reader has left, not this one"
    outcomes = [(await row(stack, heard.request_id))["outcome"] for heard in streams]
    assert outcomes == ["cancelled", "ok", "ok"]
    await stack.wait_ready("gateway", 0)


async def _a_gateway_that_stops_sends_its_streams_on(stack: Stack) -> None:
    heard = Heard()
    url = f"{stack.gateways[0]}/v1/completions"
    reading = asyncio.create_task(read("POST", url, heard, json=STORY | {"max_tokens": 1500}))
    await begun(heard, 5)
    await stack.restart("gateway", 0)
    await reading
    assert not heard.done
    assert heard.error is not None
    assert heard.error["code"] == "reconnect"
    rest = await read(
        "GET",
        f"{stack.gateways[1]}/v1/streams/{heard.request_id}",
        Heard(),
        headers={"last-event-id": heard.places[-1]},
    )
    assert rest.done, rest
    found = await row(stack, heard.request_id)
    assert found["outcome"] == "ok", "a gateway that stops cancels nothing"
    assert heard.text + rest.text == text_of(found)
