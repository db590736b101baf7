"""The gRPC listener of a gateway in a process of its own, with a worker that answers as told."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from tests.gateway.test_idempotency_text import WRITES
from tests.support.gateway_process import GatewayProcess, spawn
from tests.support.gateway_side import GatewaySide, deployed
from tests.support.scripted_worker import ScriptedWorker, prediction, silence, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

SERVICE = "/inference.GRPCInferenceService/"
ROW = struct.pack("<3f", 1.0, 2.5, -3.0)
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Client:
    """Calls methods of the service by name."""

    def __init__(
        self, channel: grpc.aio.Channel, side: GatewaySide, gateway: GatewayProcess
    ) -> None:
        self.channel = channel
        self.side = side
        self.gateway = gateway
        self.model = side.model

    async def worker(self, script: Any) -> ScriptedWorker:
        """Start a worker and wait until the gateway knows it."""
        made = await self.side.worker(script)
        await self.side.serves(self.gateway)
        return made

    async def ask(self, method: str, question: Any, answer: Any, **more: Any) -> Any:
        call = self.channel.unary_unary(
            SERVICE + method,
            request_serializer=type(question).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return await call(question, **more)

    def request(self, *, raw: bytes = ROW, **more: Any) -> pb.ModelInferRequest:
        given = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
        return pb.ModelInferRequest(
            **{"model_name": self.model, "inputs": [given], "raw_input_contents": [raw]} | more
        )

    def infer(self, question: pb.ModelInferRequest, **more: Any) -> Any:
        return self.channel.unary_unary(
            SERVICE + "ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )(question, **more)

    def stream(self, questions: Any, **more: Any) -> Any:
        return self.channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(questions, **more)


def echo(request: m.Request) -> list[m.Prediction]:
    return [prediction(request, queue_us=30, engine_us=50, latency_us=100, batch_size=1)]


@pytest.fixture
async def client(side: GatewaySide, gateway: GatewayProcess) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}", OPTIONS) as channel:
        yield Client(channel, side, gateway)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    beside = {key: str(value) for key, value in error.trailing_metadata()}
    return error.code(), error.details() or "", beside


async def test_an_answer_is_the_record_and_names_it(side: GatewaySide, client: Client) -> None:
    worker = await client.worker(echo)
    call = client.infer(client.request(id="mine"), timeout=10)
    answer = await call
    assert (answer.model_name, answer.model_version, answer.id) == (side.model, "1", "mine")
    assert [(one.name, one.datatype, list(one.shape)) for one in answer.outputs] == [
        ("y", "FP32", [1, 3])
    ]
    assert list(answer.raw_output_contents) == [ROW]
    beside = {key: str(value) for key, value in await call.trailing_metadata()}
    record = (await side.until(lambda: side.records(beside["x-request-id"])))[0]
    assert [one.client_request_id for one in worker.requests] == ["mine"]
    assert beside["x-inferbus-output-sha256"] == record.output_sha256.hex()
    assert (beside["x-inferbus-model-version"], beside["x-inferbus-served-by"]) == ("1", "scripted")
    partition, offset = map(int, beside["x-inferbus-receipt"].split(":"))
    at = [
        found.offset
        for found, one in side.predictions
        if one.id == record.id and found.partition == partition
    ]
    assert at == [offset]

    typed = client.request()
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend([1.0, 2.5, -3.0])
    answer = await client.infer(typed)
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp32_contents) == [1.0, 2.5, -3.0]
    typed.outputs.add(name="y").parameters["classification"].int64_param = 2
    answer = await client.infer(typed)
    assert list(answer.outputs[0].contents.bytes_contents) == [b"2.500000:1", b"1.000000:0"]
    for coding in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        assert (await client.infer(client.request(), compression=coding)).raw_output_contents


@pytest.mark.parametrize("datatype", ["BF16", "FP16"])
async def test_half_floats_travel_raw_over_both_protocols(
    kafka_bootstrap: str, gateway: GatewayProcess, tmp_path: Path, datatype: Any
) -> None:
    spec = manifests.TensorSpec("x", datatype, (-1, 3))
    halves = manifests.Signature((spec,), (manifests.TensorSpec("y", datatype, (-1, 3)),))
    side = GatewaySide(kafka_bootstrap, tmp_path, halves)
    await side.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
            client = Client(channel, side, gateway)
            await client.worker(echo)
            raw = b"\x80\x3f\x00\x40\x7f\x7f"
            asked = client.request(raw=raw)
            asked.inputs[0].datatype = datatype
            answer = await client.infer(asked)
            assert (answer.outputs[0].datatype, list(answer.raw_output_contents)) == (
                datatype,
                [raw],
            )
        given = {"name": "x", "datatype": datatype, "shape": [1, 3]}
        given["parameters"] = {"binary_data_size": len(raw)}
        text = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        head = {"inference-header-content-length": str(len(text))}
        async with httpx.AsyncClient() as http:
            got = await http.post(gateway.url + side.path, content=text + raw, headers=head)
        assert got.content[int(got.headers["inference-header-content-length"]) :] == raw
    finally:
        await side.stop()


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (m.OUTCOME_INVALID_INPUT, grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (m.OUTCOME_POISON, grpc.StatusCode.INVALID_ARGUMENT, "poison"),
        (m.OUTCOME_OUTPUT_TOO_LARGE, grpc.StatusCode.RESOURCE_EXHAUSTED, "output_too_large"),
        (m.OUTCOME_FAILED, grpc.StatusCode.INTERNAL, "failed"),
    ],
)
async def test_a_record_that_is_no_answer_has_its_status_and_receipt(
    client: Client, outcome: Any, status: Any, code: str
) -> None:
    await client.worker(told(outcome))
    got, details, beside = await refused(client.infer(client.request()))
    assert (got, details, beside["x-inferbus-error-code"]) == (status, "told so", code)
    assert ":" in beside["x-inferbus-receipt"]


async def test_what_is_refused_says_why(client: Client) -> None:
    await client.worker(echo)
    got, details, beside = await refused(client.infer(client.request(model_name="nobody")))
    assert got == grpc.StatusCode.NOT_FOUND
    assert "Request for unknown model" in details
    assert beside["x-inferbus-error-code"] == "unknown_model"
    assert len(beside["x-request-id"]) == 36
    got, details, _ = await refused(client.infer(client.request(raw=ROW[:-1])))
    assert (got, "has 11" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    large = client.request(raw=bytes(4 << 20))
    large.inputs[0].shape[:] = [(4 << 20) // 12, 3]
    for size, shape in ((4 << 20, (4 << 20) // 12 + 1), (5 << 20, 1)):
        large = client.request(raw=bytes(size))
        large.inputs[0].shape[:] = [shape, 3]
        got, _, _ = await refused(client.infer(large))
        assert got in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}
    bomb = client.request(raw=bytes(64 << 20))
    got, _, _ = await refused(client.infer(bomb, compression=grpc.Compression.Gzip))
    assert got == grpc.StatusCode.RESOURCE_EXHAUSTED
    got, _, beside = await refused(
        client.ask("LogSettings", pb.ServerLiveRequest(), pb.InferParameter)
    )
    assert (got, beside["x-inferbus-error-code"]) == (grpc.StatusCode.UNIMPLEMENTED, "not_found")
    got, _, beside = await refused(
        client.ask("ModelMetadata", pb.ModelMetadataRequest(name="no"), pb.ModelMetadataResponse)
    )
    assert (got, beside["x-inferbus-error-code"]) == (grpc.StatusCode.NOT_FOUND, "unknown_model")


async def test_the_deadline_of_the_call_is_the_requests(side: GatewaySide, client: Client) -> None:
    worker = await client.worker(silence)
    got, _, _ = await refused(client.infer(client.request(), timeout=0.5))
    assert got == grpc.StatusCode.DEADLINE_EXCEEDED
    request = (await side.until(lambda: worker.requests))[0]
    assert 0 < request.ttl_ms <= 500
    own = client.request(parameters={"timeout": pb.InferParameter(int64_param=300_000)})
    got, _, beside = await refused(client.infer(own, timeout=20))
    assert (got, beside["x-inferbus-error-code"]) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "deadline_exceeded",
    )
    # Also the request whose client had left has its one record.
    for one in worker.requests:
        record = (await side.until(lambda one=one: side.records(one.id.hex())))[0]  # type: ignore[misc]
        assert record.outcome == m.OUTCOME_DEADLINE_EXCEEDED


async def test_a_stream_is_answered_in_order_and_an_error_ends_only_its_request(
    client: Client,
) -> None:
    held: list[m.Prediction] = []

    def backwards(request: m.Request) -> list[m.Prediction]:
        held.append(prediction(request))
        return held[::-1] if len(held) == 3 else []

    worker = await client.worker(backwards)
    asked = [
        client.request(id="a"),
        client.request(id="b"),
        client.request(id="bad", raw=b""),
        client.request(id="c"),
    ]
    got = [one async for one in client.stream(asked, timeout=20)]
    assert len(worker.requests) == 3
    assert [one.infer_response.id for one in got] == ["a", "b", "bad", "c"]
    assert [bool(one.error_message) for one in got] == [False, False, True, False]
    for one in got:
        beside = one.infer_response.parameters
        assert beside["triton_final_response"].bool_param
        assert len(beside["x-request-id"].string_param) == 36
        assert ("x-inferbus-receipt" in beside) == (not one.error_message)
    assert got[2].infer_response.parameters["x-inferbus-error-code"].string_param == (
        "invalid_request"
    )


async def test_a_stream_whose_client_leaves_leaves_nothing_behind(
    side: GatewaySide, client: Client
) -> None:
    worker = await client.worker(silence)
    call = client.stream(
        [client.request(parameters={"timeout": pb.InferParameter(int64_param=1_000_000)})]
    )
    await side.until(lambda: worker.requests)
    call.cancel()
    record = (await side.until(lambda: side.records(worker.requests[0].id.hex())))[0]
    assert record.outcome == m.OUTCOME_DEADLINE_EXCEEDED
    worker.script = echo
    assert [one async for one in client.stream([client.request()], timeout=20)]


async def test_a_client_that_leaves_ends_what_a_model_generates_for_it(
    kafka_bootstrap: str, gateway: GatewayProcess, tmp_path: Path
) -> None:
    said = pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
    said.contents.bytes_contents.append(b"hi")
    keeps = (("x-inferbus-on-disconnect", "keep"),)
    async with (
        deployed(kafka_bootstrap, tmp_path, **WRITES) as side,
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel,
    ):
        client = Client(channel, side, gateway)
        worker = await client.worker(silence)
        cancelled = await side.cancelled()
        asked = pb.ModelInferRequest(model_name=side.model, inputs=[said])
        for n_known, call in (
            (1, partial(client.infer, asked, metadata=keeps)),
            (2, partial(client.infer, asked)),
            # One that is awaited, and one behind it.
            (4, partial(client.stream, [asked, asked])),
        ):
            leaving = call()
            await side.until(lambda n=n_known: len(worker.requests) == n)  # type: ignore[misc]
            leaving.cancel()
        await side.until(lambda: len(cancelled) == 3)
        assert set(cancelled) == {one.id for one in worker.requests[1:]}


async def test_metadata_configuration_and_statistics_are_those_of_rest(
    side: GatewaySide, client: Client
) -> None:
    await client.worker(echo)
    for _ in range(3):
        await client.infer(client.request())
    name = side.model
    url = client.gateway.url
    base = f"{url}/v2/models/{name}"
    async with httpx.AsyncClient() as http:
        meta = (await http.get(base)).json()
        config = (await http.get(f"{base}/config")).json()
        stats = (await http.get(f"{base}/stats")).json()
        index = (await http.post(f"{url}/v2/repository/index")).json()
        server = (await http.get(f"{url}/v2")).json()
    got = await client.ask(
        "ModelMetadata", pb.ModelMetadataRequest(name=name), pb.ModelMetadataResponse
    )
    assert [(one.name, one.datatype, list(one.shape)) for one in got.inputs] == [
        (one["name"], one["datatype"], one["shape"]) for one in meta["inputs"]
    ]
    assert list(got.versions) == meta["versions"] == ["1"]
    got = (
        await client.ask("ModelConfig", pb.ModelConfigRequest(name=name), pb.ModelConfigResponse)
    ).config
    assert (got.name, got.platform, got.backend, got.max_batch_size) == (
        name,
        config["platform"],
        "onnxruntime",
        config["max_batch_size"],
    )
    assert (got.input[0].data_type, list(got.input[0].dims)) == (pb.TYPE_FP32, [3])
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    found = await client.ask(
        "ModelStatistics", pb.ModelStatisticsRequest(name=name), pb.ModelStatisticsResponse
    )
    (said_,) = found.model_stats
    (one,) = stats["model_stats"]
    assert (said_.inference_count, said_.execution_count) == (3, 3)
    assert (one["inference_count"], one["execution_count"]) == (3, 3)
    times = said_.inference_stats
    assert (times.success.count, times.fail.count) == (3, 0)
    assert (times.queue.ns, times.compute_infer.ns, times.compute_output.ns) == (
        90_000,
        150_000,
        60_000,
    )
    assert times.success.ns > 300_000
    assert {"name": name, "version": "1", "state": "READY", "reason": ""} in index
    got = await client.ask(
        "RepositoryIndex", pb.RepositoryIndexRequest(ready=True), pb.RepositoryIndexResponse
    )
    assert (name, "READY") in {(one.name, one.state) for one in got.models}
    got = await client.ask("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
    assert (got.name, list(got.extensions)) == ("inferbus", server["extensions"])
    got = await client.ask("ModelReady", pb.ModelReadyRequest(name=name), pb.ModelReadyResponse)
    assert got.ready
    got = await client.ask("ModelReady", pb.ModelReadyRequest(name="no"), pb.ModelReadyResponse)
    assert not got.ready
    assert (await client.ask("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
    assert (await client.ask("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready


async def test_a_stop_drains_and_health_tells(side: GatewaySide) -> None:
    worker = await side.worker(silence)
    own = await side.gateway(INFERBUS_GRACE_S="1.0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{own.grpc_port}") as channel:
        client = Client(channel, side, own)
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        first = await watch.read()
        assert first.status == health_pb2.HealthCheckResponse.SERVING
        waiting = asyncio.ensure_future(client.infer(client.request(), timeout=30))
        await side.until(lambda: worker.requests)
        own.process.terminate()
        second = await watch.read()
        assert second.status == health_pb2.HealthCheckResponse.NOT_SERVING
        request = worker.requests[0]
        await worker.answer(prediction(request), partition=request.reply_partition)
        assert list((await waiting).raw_output_contents) == [ROW]
    assert await asyncio.to_thread(own.process.wait, 30) == 0


async def test_a_port_that_is_taken_is_one_sentence(
    gateway: GatewayProcess, kafka_bootstrap: str, tmp_path: Path
) -> None:
    second = spawn(kafka_bootstrap, tmp_path, INFERBUS_GRPC_PORT=str(gateway.grpc_port))
    try:
        assert await asyncio.to_thread(second.process.wait, 30) == 2
    finally:
        second.kill()
    said = f"inferbus gateway: port {gateway.grpc_port} on 127.0.0.1 cannot be bound; "
    assert said in second.log.read_text()
