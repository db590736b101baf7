"""One trace for whatever is asked, whichever way; a part of `test_serving` and `test_streams`.

In: a stack whose processes export to a collector. Out: spans that follow one another from the
caller to the log, or an assertion.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from confluent_kafka import Producer

from inferbus_dev.stack import Stack
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_schemas import topics
from tests.support import stacks
from tests.support.collector import Collector, SeenSpan
from tests.support.ledger import Ledger

GATEWAY, WORKER, LOGGER = (f"inferbus-{role}" for role in ("gateway", "worker", "logger"))
IN_INBOX = (WORKER, f"process {topics.topic(topics.REQUESTS, 'default').name}")
IN_JOBS = (WORKER, f"process {topics.topic(topics.JOB_CHUNKS, 'default').name}")
IN_LOG = (LOGGER, f"process {topics.topic(topics.PREDICTIONS).name}")
SUBMISSIONS = topics.topic(topics.SUBMISSIONS, tenant="local").name
SUBMITTED = (GATEWAY, f"process {SUBMISSIONS}")
MODEL = "breast-cancer"
N_ROWS = 40


@dataclass(frozen=True, slots=True)
class Caller:
    """A span of somebody else's trace, from which something is asked."""

    trace: str = field(default_factory=lambda: secrets.token_hex(16))
    span: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.span}-01"


async def follow(collector: Collector, caller: Caller, *steps: tuple[str, str]) -> None:
    """Wait for a trace of these services and spans, each the child of the one before.

    A batch links to what asked for its rows: the chunk of a job, else what came before the worker.
    """
    spans: list[SeenSpan] = []
    for _ in range(200):
        spans = collector.by_trace().get(caller.trace, [])
        if {(one.service, one.name) for one in spans} >= set(steps):
            break
        await asyncio.sleep(0.1)
    assert {(one.service, one.name) for one in spans} == set(steps)
    parents = {"": caller.span}
    above = caller.span
    for service, name in steps:
        found = [one for one in spans if (one.service, one.name) == (service, name)]
        assert {one.parent_id for one in found} == {above}, spans
        if service != LOGGER:
            # However many rows there are; the log writes them by transactions.
            assert len(found) == 1, spans
        parents[name], above = above, found[0].span_id
    linked = {link for one in collector.spans for link in one.links}
    asked = parents[IN_LOG[1]] if IN_JOBS in steps else parents[IN_INBOX[1]]
    assert asked in linked


async def of_each_way_to_ask(stack: Stack, collector: Collector, ledger: Ledger) -> None:
    """Ask in every way at once; nothing that was not asked for is traced."""
    ways: tuple[tuple[Callable[[Stack, Ledger, str], Awaitable[None]], Any], ...] = (
        (_by_http, ((GATEWAY, "POST /v2/models/{model}/infer"), IN_INBOX)),
        (_by_grpc, ((GATEWAY, "inference.GRPCInferenceService/ModelInfer"), IN_INBOX)),
        (_by_kafka, (SUBMITTED, IN_INBOX)),
        (_as_a_job, ((GATEWAY, "POST /v1/jobs"), IN_JOBS)),
        (_as_a_job_of_one_row, ((GATEWAY, "POST /v2/models/{model}/infer"), IN_JOBS)),
        (_as_a_batch, ((GATEWAY, "POST /v1/batches"), IN_JOBS)),
    )
    callers = [Caller() for _ in ways]

    async def one(caller: Caller, way: Any, steps: Any) -> None:
        await way(stack, ledger, caller.traceparent)
        await follow(collector, caller, *steps, IN_LOG)

    async with asyncio.TaskGroup() as group:
        for caller, (way, steps) in zip(callers, ways, strict=True):
            group.create_task(one(caller, way, steps))
    batches = {one.trace_id for one in collector.spans if one.links}
    assert set(collector.by_trace()) == {one.trace for one in callers} | batches


def _body(name: str) -> dict[str, Any]:
    return {"id": name, "inputs": stacks.sample_inputs(MODEL)[0]}


def _sent(ledger: Ledger, name: str) -> str:
    """Write a request down that the log may have a row of."""
    ledger.sent(name, "-")
    return name


async def _by_http(stack: Stack, ledger: Ledger, traceparent: str) -> None:
    inputs = stacks.sample_inputs(MODEL)[0]
    answer = await stacks.infer(
        stack.http, MODEL, inputs, ledger, "traced", traceparent=traceparent
    )
    assert answer.status_code == 200, answer.text


async def _by_grpc(stack: Stack, ledger: Ledger, traceparent: str) -> None:
    tensor = pb.ModelInferRequest.InferInputTensor(name="features", datatype="FP32", shape=[1, 30])
    question = pb.ModelInferRequest(
        id=_sent(ledger, "traced-grpc"),
        model_name=MODEL,
        inputs=[tensor],
        raw_input_contents=[struct.pack("<30f", *range(30))],
    )
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        await infer(question, metadata=(("traceparent", traceparent),), timeout=30)


async def _by_kafka(stack: Stack, ledger: Ledger, traceparent: str) -> None:
    data = base64.b64encode(struct.pack("<30f", *range(30))).decode()
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 30], "data": data}
    request = {
        "model": MODEL,
        "client_request_id": _sent(ledger, "traced-kafka"),
        "inputs": {"tensors": [tensor]},
    }
    producer = Producer({"bootstrap.servers": stack.kafka})
    producer.produce(
        SUBMISSIONS,
        json.dumps({"requests": [request]}),
        headers={"content-type": "application/json", "traceparent": traceparent},
    )
    assert await asyncio.to_thread(producer.flush, 30) == 0


async def _post(stack: Stack, path: str, status: int, **said: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=stack.http, timeout=30, trust_env=False) as http:
        answer = await http.post(path, **said)
    assert answer.status_code == status, answer.text
    return answer


async def _as_a_job(stack: Stack, ledger: Ledger, traceparent: str) -> None:
    names = [_sent(ledger, f"traced-job-{number}") for number in range(N_ROWS)]
    lines = "\n".join(json.dumps(_body(name)) for name in names)
    head = {"content-type": "application/x-ndjson", "traceparent": traceparent}
    await _post(stack, f"/v1/jobs?model={MODEL}", 202, content=lines.encode(), headers=head)


async def _as_a_job_of_one_row(stack: Stack, ledger: Ledger, traceparent: str) -> None:
    head = {"prefer": "respond-async", "traceparent": traceparent}
    body = _body(_sent(ledger, "traced-later"))
    await _post(stack, f"/v2/models/{MODEL}/infer", 202, json=body, headers=head)


async def _as_a_batch(stack: Stack, ledger: Ledger, traceparent: str) -> None:
    lines = [
        {
            "custom_id": _sent(ledger, f"traced-line-{number}"),
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "minilm", "input": "a cat"},
        }
        for number in range(3)
    ]
    text = "\n".join(json.dumps(line) for line in lines).encode()
    file = {"file": ("lines.jsonl", text)}
    made = await _post(stack, "/v1/files", 200, data={"purpose": "batch"}, files=file)
    asked = {
        "input_file_id": made.json()["id"],
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    await _post(stack, "/v1/batches", 200, json=asked, headers={"traceparent": traceparent})
