"""Edges of a running gateway: names, sizes, deadlines, exhaustion, its stop, its control routes."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import struct
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from inferbus_gateway.hot.pending import MAX_ATTEMPTS
from inferbus_kit.consume import PartitionReader
from inferbus_schemas import membership, topics
from inferbus_schemas import messages as m
from tests.support.gateway_process import GatewayProcess
from tests.support.gateway_side import VERSION_SHA256, GatewaySide
from tests.support.scripted_worker import echo, prediction, rows, silence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ASYNCAPI = Path(__file__).resolve().parents[2] / "schemas" / "asyncapi.yaml"
ONE = rows([1.0, 2.5, -3.0])


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60) as client:
        yield client


async def test_a_version_is_named_by_number_alias_or_digest(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    await side.worker(echo)
    await side.serves(gateway)
    base = f"{gateway.url}/v2/models/{side.model}"
    digest = VERSION_SHA256.hex()
    for name in ("1", "champion", digest[:8], digest):
        got = await http.post(f"{base}/versions/{name}/infer", json=ONE)
        assert got.status_code == 200, got.text
        assert got.headers["x-inferbus-model-version"] == "1"
        shown = (await http.get(f"{base}/versions/{name}")).json()
        assert shown == (await http.get(base)).json()
    assert shown == {
        "name": side.model,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    for name in ("2", "nobody", digest[:7], "f" * 64):
        for got in (
            await http.post(f"{base}/versions/{name}/infer", json=ONE),
            await http.get(f"{base}/versions/{name}"),
            await http.get(f"{base}/versions/{name}/ready"),
        ):
            assert got.status_code == 404
            assert "Request for unknown model" in got.json()["error"]
            assert got.headers["x-inferbus-error-code"] == "unknown_model"


async def test_an_answer_that_was_whole_is_no_stream(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    await side.worker(echo)
    await side.serves(gateway)
    got = await http.post(f"{gateway.url}/v2/models/{side.model}/infer", json=ONE)
    assert got.status_code == 200, got.text
    again = await http.get(f"{gateway.url}/v1/streams/{got.headers['x-request-id']}")
    assert again.status_code == 404, again.text
    assert again.json()["error"]["code"] == "stream_not_found"


async def test_who_watches_health_may_ask_by_head(
    gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        got, full = await http.head(gateway.url + path), await http.get(gateway.url + path)
        assert (got.status_code, got.content) == (200, b"")
        assert got.headers["content-length"] == full.headers["content-length"]
    # A connection that has had such an answer is good for more.
    assert (await http.head(f"{gateway.url}/v2/models/nobody")).status_code == 405


async def test_a_page_of_another_site_gets_no_answer(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    await side.worker(echo)
    await side.serves(gateway)
    base = f"{gateway.url}/v2/models/{side.model}"
    asks = [
        partial(http.post, f"{base}/infer", json=ONE),
        partial(http.post, f"{base}/versions/1/infer", json=ONE),
        partial(http.get, base),
    ]
    for ask in asks:
        for header in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            got = await ask(headers=header)
            assert (got.status_code, got.headers["x-inferbus-error-code"]) == (403, "forbidden")
        assert (await ask(headers={"origin": gateway.url})).status_code == 200


async def test_every_error_of_every_route_has_code_id_and_shape(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    await side.worker(echo)
    await side.serves(gateway)
    expect = [
        ("GET", "/v2/models/nobody", 404, "unknown_model"),
        ("GET", "/v2/models/nobody/ready", 404, "unknown_model"),
        ("GET", "/v2/models/nobody/versions/1", 404, "unknown_model"),
        ("POST", "/v2/models/nobody/infer", 404, "unknown_model"),
        ("GET", side.path, 405, "method_not_allowed"),
        ("POST", "/v2", 405, "method_not_allowed"),
        ("DELETE", f"/v2/models/{side.model}", 405, "method_not_allowed"),
        ("GET", "/v2/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("POST", f"/v2/models/{side.model}/versions/1/more/infer", 404, "not_found"),
    ]
    for method, path, status, code in expect:
        got = await http.request(method, gateway.url + path)
        assert (got.status_code, got.headers["x-inferbus-error-code"]) == (status, code), path
        assert list(got.json()) == ["error"]
        assert re.fullmatch(r"[0-9a-f-]{36}", got.headers["x-request-id"])
        assert ("allow" in got.headers) == (status == 405)
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/livez", "/readyz"):
        got = await http.get(gateway.url + path)
        assert got.status_code == 200, path
        assert re.fullmatch(r"[0-9a-f-]{36}", got.headers["x-request-id"])


async def test_what_the_listener_refuses_is_in_the_words_of_the_route(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    await side.worker(echo)
    await side.serves(gateway)
    many = {f"x-{number}": "1" for number in range(101)}
    asked = (
        ({"content": b" " * (9 << 20)}, 413, "request_too_large"),
        ({"headers": many}, 431, "headers_too_large"),
    )
    for path, of_error in (
        ("/v1/chat/completions", lambda body: body["error"]["code"]),
        ("/openai/v1/batches", lambda body: body["error"]["code"]),
        ("/v1/jobs/x/retry", lambda body: body["code"]),
        (side.path, lambda body: list(body) == ["error"] and None),
    ):
        for more, status, code in asked:
            got = await http.post(gateway.url + path, **more)
            assert (got.status_code, got.headers["x-inferbus-error-code"]) == (status, code), path
            assert of_error(got.json()) in {code, None}, got.text
            problem = "/jobs" in path
            assert (got.headers["content-type"] == "application/problem+json") == problem
            assert re.fullmatch(r"[0-9a-f-]{36}", got.headers["x-request-id"])
    foreign = {"host": "elsewhere.example"}
    for path in ("/v2/models/nobody", "/v1/jobs", "/v1/models", "/v2/models/nobody/ready"):
        got = await http.get(gateway.url + path, headers=foreign)
        assert got.headers["x-inferbus-error-code"] == "unauthorized", path
    text = (await http.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics")).text
    counted = dict(re.findall(r'^inferbus_rejected_total{code="(\w+)"} (\S+)', text, re.MULTILINE))
    assert (counted["request_too_large"], counted["headers_too_large"]) == ("4.0", "4.0")
    assert float(counted["unauthorized"]) >= 3


async def test_the_description_of_the_topics_is_the_stored_one(
    gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    got = await http.get(f"{gateway.url}/asyncapi.json")
    assert got.json() == yaml.safe_load(ASYNCAPI.read_text())


async def test_a_model_that_nobody_holds_any_more_says_when_to_come_back(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateway)
    await worker.release(end_offset=0)
    url = f"{gateway.url}/v2/models/{side.model}/ready"
    async with asyncio.timeout(15):
        while (got := await http.get(url)).status_code == 200:  # noqa: ASYNC110 -- a plain poll
            await asyncio.sleep(0.05)
    assert got.status_code == 503
    assert got.json() == {"name": side.model, "ready": False}
    assert got.headers["x-inferbus-error-code"] == "no_worker"
    assert int(got.headers["retry-after"]) in {1, 2, 3}


async def test_sizes_up_to_the_limit_travel_and_nothing_above(
    side: GatewaySide, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    gateway = await side.gateway(INFERBUS_MAX_ROWS=str(1 << 20))
    n_rows = ((4 << 20) - 400) // 12
    raw = struct.pack("<3f", 1, 2, 3) * n_rows

    def packed(n_bytes: int, n_rows: int) -> tuple[bytes, dict[str, str]]:
        one = {"name": "x", "datatype": "FP32", "shape": [n_rows, 3]}
        one["parameters"] = {"binary_data_size": n_bytes}  # type: ignore[assignment]
        head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
        return head, {"Inference-Header-Content-Length": str(len(head))}

    head, headers = packed(len(raw), n_rows)
    got = await http.post(gateway.url + side.path, content=head + raw, headers=headers)
    assert got.status_code == 200, got.text[:300]
    assert got.content.endswith(raw)
    (sent,) = worker.requests
    assert len(sent.tensors) > 4_000_000
    # Too large as it comes, or once it is unpacked; with and without a length given in front.
    more = raw + raw
    head, headers = packed(len(more), 2 * n_rows)
    zipped = gzip.compress(head + more)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(more), 1 << 16):
            yield more[at : at + (1 << 16)]

    for content in (head + more, zipped, chunks()):
        packing = {"Content-Encoding": "gzip"} if content is zipped else {}
        got = await http.post(gateway.url + side.path, content=content, headers=headers | packing)
        assert got.status_code == 413, got.text[:300]
        assert got.headers["x-inferbus-error-code"] == "request_too_large"
    # A short text may hold many numbers: 3 MB of JSON, 6 MB of FP32.
    n_rows = 500_000
    body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{n_rows},3],"data":['
    text = (body + "1,1,1," * (n_rows - 1) + "1,1,1]}]}").encode()
    got = await http.post(gateway.url + side.path, content=text)
    assert got.status_code == 413, got.text[:300]
    assert len(worker.requests) == 1
    # And gzip that ends twice is refused, not half read.
    twice = gzip.compress(json.dumps(ONE).encode()) + gzip.compress(b"more")
    got = await http.post(
        gateway.url + side.path, content=twice, headers={"Content-Encoding": "gzip"}
    )
    assert got.status_code == 400


async def test_an_answer_just_before_the_gateways_own_record_wins(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(silence)
    await side.serves(gateway)

    async def ask() -> httpx.Response:
        return await http.post(
            gateway.url + side.path, json=ONE, headers={"x-inferbus-timeout-ms": "400"}
        )

    statuses = []
    for delay_s in (0.1, 0.3, 0.38, 0.4, 0.42, 0.45, 0.6):
        seen = len(worker.requests)
        asking = asyncio.create_task(ask())
        while len(worker.requests) == seen:  # noqa: ASYNC110 -- a plain poll is quickest
            await asyncio.sleep(0.002)
        sent = worker.requests[-1]
        await asyncio.sleep(max(0.0, delay_s - (0.4 - sent.ttl_ms / 1000)))
        await worker.answer(prediction(sent), partition=sent.reply_partition)
        got = await asking
        first = (await side.until(partial(side.records, got.headers["x-request-id"])))[0]
        expected = {m.OUTCOME_OK: 200, m.OUTCOME_DEADLINE_EXCEEDED: 504}
        assert got.status_code == expected[first.outcome]
        statuses.append(got.status_code)
    assert (statuses[0], statuses[-1]) == (200, 504)


async def test_a_request_that_fails_everywhere_ends_with_our_own_failed(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    def fail(request: m.Request) -> list[m.Prediction]:
        return [prediction(request, m.OUTCOME_ATTEMPT_FAILED, error_code="overloaded")]

    worker = await side.worker(fail)
    await side.serves(gateway)
    got = await http.post(gateway.url + side.path, json=ONE)
    assert (got.status_code, got.headers["x-inferbus-error-code"]) == (500, "attempts_exhausted")
    assert [request.attempt for request in worker.requests] == [*range(1, MAX_ATTEMPTS + 1)]
    assert len({request.id for request in worker.requests}) == 1
    records = await side.until(
        lambda: [
            said
            for said in side.records(got.headers["x-request-id"])
            if said.outcome == m.OUTCOME_FAILED
        ]
    )
    assert [one.served_by for one in records] == [gateway.instance]
    assert records[0].inputs == worker.requests[0].tensors
    metrics = (await http.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics")).text
    assert 'inferbus_resends_total{reason="attempt_failed"}' in metrics


async def test_outcomes_are_counted_by_model_and_version(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateway)
    for _ in range(3):
        await http.post(gateway.url + side.path, json=ONE)
    worker.script = lambda request: [prediction(request, m.OUTCOME_POISON)]
    await http.post(gateway.url + side.path, json=ONE)
    await http.post(gateway.url + side.path, content=b"{")
    text = (await http.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics")).text
    labels = f'model="{side.model}",outcome="%s",version="1"'
    assert f"inferbus_requests_total{{{labels % 'ok'}}} 3.0" in text
    assert f"inferbus_requests_total{{{labels % 'poison'}}} 1.0" in text
    assert 'inferbus_rejected_total{code="invalid_request"}' in text
    assert f'inferbus_request_seconds_count{{model="{side.model}",version="1"}} 4.0' in text
    assert "inferbus_requests_in_flight 0.0" in text


async def test_an_answer_that_cannot_be_read_is_an_error_with_its_receipt(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    def nonsense(request: m.Request) -> list[m.Prediction]:
        said = prediction(request)
        said.outputs = b"\xff\xff\xff"
        return [said]

    await side.worker(nonsense)
    await side.serves(gateway)
    got = await http.post(gateway.url + side.path, json=ONE)
    assert (got.status_code, got.headers["x-inferbus-error-code"]) == (500, "failed")
    assert ":" in got.headers["x-inferbus-receipt"]


async def test_its_life_on_the_bus_ends_with_a_draining_beat_and_a_tombstone(
    side: GatewaySide, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(silence)
    leaving = await side.gateway()
    key = membership.gateway_key(leaving.instance)
    beats: list[m.Heartbeat | None] = []
    reader = PartitionReader(
        side.bootstrap, topics.topic(topics.HEARTBEATS).name, 0, client_id="t", start="end"
    )
    await reader.start()
    asking = asyncio.create_task(http.post(leaving.url + side.path, json=ONE))
    await side.until(lambda: worker.requests)
    stopping = asyncio.create_task(asyncio.to_thread(leaving.stop))
    # While it leaves it still answers what it has accepted.
    await asyncio.sleep(1.5)
    assert not stopping.done()
    (sent,) = worker.requests
    await worker.answer(prediction(sent), partition=sent.reply_partition)
    got = await asking
    assert got.status_code == 200
    assert got.headers["connection"] == "close"
    assert await stopping == 0, leaving.log.read_text()[-2000:]
    async with asyncio.timeout(10):
        while not beats or beats[-1] is not None:
            for record in await reader.read(timeout_ms=200):
                if record.key == key.encode():
                    value = record.value
                    beats.append(None if value is None else m.Heartbeat.FromString(value))
    await reader.stop()
    states = [None if beat is None else beat.state for beat in beats]
    assert m.STATE_DRAINING in states
    at = states.index(m.STATE_DRAINING)
    assert set(states[at:-1]) == {m.STATE_DRAINING}
    first = beats[at]
    assert first is not None
    mine = {one.model: one for one in first.gateway.models}[side.model]
    assert (list(mine.pinned), list(mine.in_flight)) == ([1], [1])


async def test_a_gateway_that_starts_is_in_the_fleet_before_it_is_ready(
    side: GatewaySide,
) -> None:
    await side.worker(echo)
    gateway = await side.gateway()
    reader = PartitionReader(
        side.bootstrap, topics.topic(topics.HEARTBEATS).name, 0, client_id="t", start="earliest"
    )
    await reader.start()
    _, end = await reader.bounds()
    keys: list[Any] = []
    while await reader.position() < end:
        keys += [record.key for record in await reader.read(timeout_ms=200)]
    await reader.stop()
    assert membership.gateway_key(gateway.instance).encode() in keys
