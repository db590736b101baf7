"""A gateway in a process of its own on a real broker, with a worker that answers as told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferbus_schemas import messages as m
from tests.gateway.test_idempotency_text import WRITES
from tests.support.gateway_process import GatewayProcess
from tests.support.gateway_side import GatewaySide, deployed
from tests.support.scripted_worker import echo, prediction, rows, silence, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ONE = rows([1.0, 2.5, -3.0])


async def resends(gateway: GatewayProcess, http: httpx.AsyncClient) -> Counter[str]:
    """Return how often the gateway has placed a request again, by why."""
    shown = (await http.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics")).text
    found = re.findall(r'inferbus_resends_total\{reason="(\w+)"\} ([\d.]+)', shown)
    return Counter({reason: int(float(count)) for reason, count in found})


async def test_an_answer_names_its_record(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateway)
    got = await http.post(gateway.url + side.path, json=ONE | {"id": "mine"})
    assert got.status_code == 200, got.text
    body = got.json()
    assert body == {
        "model_name": side.model,
        "model_version": "1",
        "id": "mine",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.5, -3.0]}],
    }
    partition, offset = map(int, got.headers["x-inferbus-receipt"].split(":"))
    await side.until(lambda: side.records(got.headers["x-request-id"]))
    ((record, said),) = side.predictions
    assert (record.partition, record.offset) == (partition, offset)
    assert said.output_sha256.hex() == got.headers["x-inferbus-output-sha256"]
    assert got.headers["x-inferbus-model-version"] == "1"
    assert got.headers["x-inferbus-served-by"] == "scripted"
    hops = dict(pair.split("=") for pair in got.headers["x-inferbus-timing"].split(","))
    assert set(hops) == {"parse", "produce", "queue", "engine", "reply", "respond"}
    (sent,) = worker.requests
    assert (sent.version, sent.attempt, sent.may_retry, sent.client_request_id) == (
        1,
        1,
        True,
        "mine",
    )
    assert 25_000 < sent.ttl_ms <= 30_000


async def test_binary_goes_both_ways(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    await side.worker(echo)
    await side.serves(gateway)
    raw = struct.pack("<6f", *range(6))
    one = {"name": "x", "datatype": "FP32", "shape": [2, 3]}
    head = json.dumps(
        {
            "inputs": [one | {"parameters": {"binary_data_size": len(raw)}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    # Without a Content-Type, as tritonclient sends it.
    got = await http.post(
        gateway.url + side.path,
        content=head + raw,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert got.status_code == 200, got.text
    length = int(got.headers["inference-header-content-length"])
    assert got.content[length:] == raw
    assert got.headers["content-type"] == "application/octet-stream"
    got = await http.post(
        gateway.url + side.path, content=raw, headers={"Inference-Header-Content-Length": "0"}
    )
    assert got.status_code == 200, got.text
    assert got.content.endswith(raw)


async def test_what_is_accepted_in_one_tick_shares_a_frame(
    side: GatewaySide, gateway: GatewayProcess
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateway)
    body = json.dumps(ONE).encode()
    head = f"POST {side.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    connections = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(40)]
    for _, writer in connections:
        writer.write(head.encode() + body)
    statuses = [(await reader.readline())[9:12] for reader, _ in connections]
    for _, writer in connections:
        writer.close()
    assert statuses == [b"200"] * 40
    assert len(worker.requests) == 40
    assert len(worker.frames) < 40
    assert max(len(frame.requests) for frame in worker.frames) > 1
    assert len({request.id for request in worker.requests}) == 40


OUTCOMES: list[tuple[Any, int, str]] = [
    (m.OUTCOME_INVALID_INPUT, 400, "invalid_request"),
    (m.OUTCOME_POISON, 422, "poison"),
    (m.OUTCOME_EXPIRED, 504, "expired"),
    (m.OUTCOME_CANCELLED, 499, "cancelled"),
    (m.OUTCOME_OUTPUT_TOO_LARGE, 422, "output_too_large"),
    (m.OUTCOME_FAILED, 500, "failed"),
    (77, 500, "failed"),
]


async def test_each_outcome_has_its_status(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateway)
    for outcome, status, code in OUTCOMES:
        worker.script = told(outcome)
        got = await http.post(gateway.url + side.path, json=ONE)
        assert (got.status_code, got.json()) == (status, {"error": "told so"})
        assert got.headers["x-inferbus-error-code"] == code
        assert ":" in got.headers["x-inferbus-receipt"]


async def test_a_deadline_is_answered_by_its_own_record_and_stays(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(silence)
    await side.serves(gateway)
    got = await http.post(
        gateway.url + side.path, json=ONE, headers={"x-inferbus-timeout-ms": "300"}
    )
    assert got.status_code == 504
    assert got.headers["x-inferbus-error-code"] == "deadline_exceeded"
    request_id = got.headers["x-request-id"]
    (record,) = await side.until(lambda: side.records(request_id))
    assert (record.outcome, record.served_by) == (m.OUTCOME_DEADLINE_EXCEEDED, gateway.instance)
    (sent,) = worker.requests
    assert sent.ttl_ms <= 300
    # An OK that comes late changes nothing: the first terminal record stands.
    await worker.answer(prediction(sent), partition=sent.reply_partition)
    await side.until(lambda: len(side.records(request_id)) == 2)
    outcomes = [one.outcome for one in side.records(request_id)]
    assert outcomes == [m.OUTCOME_DEADLINE_EXCEEDED, m.OUTCOME_OK]
    worker.script = echo
    assert (await http.post(gateway.url + side.path, json=ONE)).status_code == 200


async def test_timeouts_come_from_the_header_then_the_parameter(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateway)
    url = gateway.url + side.path
    micro = ONE | {"parameters": {"timeout": 4_000_000}}
    await http.post(url, json=micro)
    await http.post(url, json=micro, headers={"x-inferbus-timeout-ms": "2000"})
    await http.post(url, json=ONE, headers={"x-inferbus-timeout-ms": "99999999"})
    by_parameter, by_header, most = [request.ttl_ms for request in worker.requests]
    assert 3000 < by_parameter <= 4000
    assert 1000 < by_header <= 2000
    assert 590_000 < most <= 600_000
    for bad in ("0", "-1", "soon"):
        got = await http.post(url, json=ONE, headers={"x-inferbus-timeout-ms": bad})
        assert (got.status_code, got.headers["x-inferbus-error-code"]) == (400, "invalid_request")


async def test_an_attempt_that_failed_is_sent_to_another_worker(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    def fail(request: m.Request) -> list[m.Prediction]:
        return [prediction(request, m.OUTCOME_ATTEMPT_FAILED, error_code="overloaded")]

    bad = await side.worker(fail, inbox=0)
    good = await side.worker(echo, inbox=1)
    await side.serves(gateway)
    await side.until(lambda: len(side.fleet.holders(side.pool, side.model, 1)) == 2)
    for _ in range(20):
        got = await http.post(gateway.url + side.path, json=ONE)
        assert got.status_code == 200, got.text
    assert bad.requests, "twenty choices of two never met the bad one"
    for first in bad.requests:
        (again,) = [request for request in good.requests if request.id == first.id]
        assert (first.attempt, again.attempt) == (1, 2)
        assert (again.version, again.reply_partition) == (first.version, first.reply_partition)
        assert again.ttl_ms <= first.ttl_ms


async def test_a_released_inbox_is_sent_elsewhere_at_once(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    leaving = await side.worker(silence, inbox=0)
    await side.serves(gateway)
    waiting = asyncio.create_task(http.post(gateway.url + side.path, json=ONE))
    await side.until(lambda: leaving.requests)
    stays = await side.worker(echo, inbox=1)
    await side.until(lambda: len(side.fleet.holders(side.pool, side.model, 1)) == 2)
    before = await resends(gateway, http)
    # Read up to its start: the frame at offset 0 stands above the released end.
    await leaving.release(end_offset=0)
    got = await waiting
    assert got.status_code == 200, got.text
    assert await resends(gateway, http) - before == {"released": 1}
    assert [request.attempt for request in stays.requests] == [2]


async def test_a_silent_worker_expires_and_its_requests_go_elsewhere(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    dying = await side.worker(silence, inbox=0)
    await side.serves(gateway)
    waiting = asyncio.create_task(http.post(gateway.url + side.path, json=ONE))
    await side.until(lambda: dying.requests)
    await dying.stop()
    before = await resends(gateway, http)
    await side.worker(echo, inbox=1)
    got = await waiting
    assert got.status_code == 200, got.text
    assert await resends(gateway, http) - before == {"expired": 1}


async def test_no_worker_is_a_503_within_the_hold(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateway)
    await worker.release(end_offset=0)
    await side.until(lambda: not side.fleet.holders(side.pool, side.model, 1))
    got = await http.post(
        gateway.url + side.path, json=ONE, headers={"x-inferbus-timeout-ms": "500"}
    )
    assert got.status_code == 503, got.text
    assert got.headers["x-inferbus-error-code"] == "no_worker"
    assert int(got.headers["retry-after"]) >= 1
    assert "x-inferbus-receipt" not in got.headers
    assert not side.predictions


async def test_two_gateways_that_share_a_partition_answer_their_own(
    side: GatewaySide, http: httpx.AsyncClient
) -> None:
    worker = await side.worker(echo)
    first, second = await side.gateway(), await side.gateway()
    beats = [side.fleet.member(f"gateway/{one.instance}") for one in (first, second)]
    assert all(beats)
    # Records of the other one's requests, in one's own partition, are skipped.
    got = await http.post(first.url + side.path, json=rows([1, 1, 1]))
    partition = int(got.headers["x-inferbus-receipt"].split(":")[0])
    other = int(
        (await http.post(second.url + side.path, json=ONE))
        .headers["x-inferbus-receipt"]
        .split(":")[0]
    )
    assert partition != other, "the second one takes the partition that is named least"
    for request in list(worker.requests):
        await worker.answer(prediction(request), partition=partition)
        await worker.answer(prediction(request), partition=other)
    answers = await asyncio.gather(
        *(
            http.post(one.url + side.path, json=rows([n, n, n]))
            for n in range(30)
            for one in (first, second)
        )
    )
    for at, answer in enumerate(answers):
        assert answer.json()["outputs"][0]["data"] == [float(at // 2)] * 3


async def test_sigterm_under_load_fails_nothing(side: GatewaySide, http: httpx.AsyncClient) -> None:
    def slowly(request: m.Request) -> list[m.Prediction]:
        time.sleep(0.002)
        return [prediction(request)]

    await side.worker(slowly)
    leaving, staying = await side.gateway(), await side.gateway()
    targets = [leaving, staying]
    statuses: list[int] = []

    async def ask(number: int) -> None:
        while targets:
            target = targets[number % len(targets)]
            try:
                got = await http.post(target.url + side.path, json=ONE)
            except httpx.TransportError:
                # Refused or closed before a byte of the request was taken: a client's retry.
                assert target is leaving
                assert leaving not in targets or leaving.process.poll() is None
                continue
            statuses.append(got.status_code)

    asking = [asyncio.create_task(ask(number)) for number in range(16)]
    await asyncio.sleep(1.0)
    stopping = asyncio.create_task(asyncio.to_thread(leaving.stop))

    ready = 200
    while ready == 200:
        found = await http.get(f"http://127.0.0.1:{leaving.metrics_port}/readyz")
        ready = found.status_code
    targets.remove(leaving)
    code = await stopping
    await asyncio.sleep(0.3)
    targets.clear()
    await asyncio.gather(*asking)
    assert code == 0, leaving.log.read_text()[-2000:]
    # How many is the machine's affair; that none failed is ours.
    assert len(statuses) > 16
    assert set(statuses) == {200}
    gone = side.fleet.member(f"gateway/{leaving.instance}")
    await side.until(lambda: side.fleet.member(f"gateway/{leaving.instance}") is None)
    assert gone is None or gone.beat.state == m.STATE_DRAINING


async def test_the_output_digest_can_be_recomputed(
    side: GatewaySide, gateway: GatewayProcess, http: httpx.AsyncClient
) -> None:
    await side.worker(echo)
    await side.serves(gateway)
    got = await http.post(gateway.url + side.path, json=ONE)
    raw = struct.pack("<3f", 1.0, 2.5, -3.0)
    by_hand = hashlib.sha256(
        struct.pack("<I", 1)
        + b"y"
        + struct.pack("<I", 4)
        + b"FP32"
        + struct.pack("<Bqq", 2, 1, 3)
        + struct.pack("<Q", len(raw))
        + raw
    ).hexdigest()
    assert got.headers["x-inferbus-output-sha256"] == by_hand


async def test_a_client_that_leaves_ends_what_a_model_generates_for_it(
    kafka_bootstrap: str, gateway: GatewayProcess, tmp_path: Path, http: httpx.AsyncClient
) -> None:
    said = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
    body = json.dumps({"inputs": [said]}).encode()
    length, pieces = f"content-length: {len(body)}", "transfer-encoding: chunked"
    in_pieces = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    keeping = f"{length}\r\nx-inferbus-on-disconnect: keep"
    async with deployed(kafka_bootstrap, tmp_path, **WRITES) as side:
        worker = await side.worker(silence)
        await side.serves(gateway)
        cancelled = await side.cancelled()
        # By the listener itself, and by ASGI.
        for head, sent in ((keeping, body), (length, body), (pieces, in_pieces)):
            known = len(worker.requests)
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            line = f"POST {side.path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}\r\n\r\n"
            writer.write(line.encode() + sent)
            await side.until(lambda known=known: len(worker.requests) > known)  # type: ignore[misc]
            writer.close()
        await side.until(lambda: len(cancelled) == 2)
        assert cancelled == [one.id for one in worker.requests[1:]]
        odd = {"x-inferbus-on-disconnect": "x"}
        got = await http.post(gateway.url + side.path, content=body, headers=odd)
        assert (got.status_code, len(worker.requests)) == (400, 3)
