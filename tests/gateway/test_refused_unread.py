"""Who is at a limit is refused before its body is read; what is refused leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest

from inferbus_gateway import app
from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_schemas import access
from inferbus_schemas import messages as m
from tests.gateway.test_gateway_keys import put_key
from tests.support.gateway_process import GatewayProcess
from tests.support.gateway_side import GatewaySide
from tests.support.scripted_worker import prediction, rows

pytestmark = pytest.mark.timeout(90)

ONE = json.dumps(rows([1.0, 2.5, -3.0])).encode()
INVALID = b"{"
HUGE = b"[" * (3 << 20)
PATHS = (
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v2/models/{}/generate",
    "/v2/models/{}/infer",
    "/v2/models/{}/versions/1/infer",
)


def new_key() -> str:
    return access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))


class Client:
    """Asks one gateway under one key."""

    def __init__(self, side: GatewaySide, gateway: GatewayProcess, key: str) -> None:
        self.side, self.gateway, self.key = side, gateway, key

    async def post(self, path: str, body: bytes, *, chunked: bool = False) -> httpx.Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield body

        head = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
            url = self.gateway.url + path.format(self.side.model)
            return await http.post(url, content=pieces() if chunked else body, headers=head)

    async def rpc(self, asked: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
        """Return the status of a call and the code beside it."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.gateway.grpc_port}") as channel:
            ask = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            head = (("authorization", f"Bearer {self.key}"),)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(asked, metadata=head, timeout=20)
        said = dict(refused.value.trailing_metadata() or ())
        return refused.value.code(), str(said.get("x-inferbus-error-code"))


@pytest.mark.slow
async def test_who_is_over_its_rate_gets_429_whatever_it_sent(side: GatewaySide) -> None:
    key, free = new_key(), new_key()
    await put_key(side, key, f"infer:{side.model}", limits=m.Limits(requests_per_s=0.001, burst=1))
    await put_key(side, free, f"infer:{side.model}")
    worker = await side.worker(lambda request: [prediction(request)])
    gateway = await side.gateway(key=free)
    client = Client(side, gateway, key)
    # What cannot be read counts as well: it is what costs us.
    assert (await client.post(PATHS[3], INVALID)).status_code == 400
    for path in PATHS:
        for body, chunked in ((INVALID, False), (INVALID, True), (HUGE, True), (ONE, False)):
            got = await client.post(path, body, chunked=chunked)
            said = (path, chunked, got.text)
            assert got.status_code == 429, said
            assert got.headers["x-inferbus-error-code"] == "rate_limited", said
            assert int(got.headers["retry-after"]) >= 1
            if path.startswith("/v1/"):
                assert got.json()["error"]["code"] == "rate_limited"
    code, name = await client.rpc(pb.ModelInferRequest(model_name=side.model))
    assert (code, name) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited")
    assert not worker.requests
    other = Client(side, gateway, free)
    assert (await other.post(PATHS[3], INVALID)).status_code == 400
    assert (await other.post(PATHS[3], ONE)).status_code == 200


@pytest.mark.slow
async def test_what_is_refused_leaves_nothing_behind(side: GatewaySide) -> None:
    key = new_key()
    await put_key(side, key, f"infer:{side.model}")
    worker = await side.worker(lambda _request: [])
    gateway = await side.gateway(key=key, INFERBUS_TENANT_MAX_PENDING="2")
    client = Client(side, gateway, key)
    unknown = "/v2/models/no-such/infer"
    for _ in range(3):
        got = [
            await client.post(PATHS[3], INVALID),
            await client.post(PATHS[3], json.dumps(rows([1.0])).encode()),
            await client.post(PATHS[3], HUGE + HUGE, chunked=True),
            await client.post(unknown, ONE),
            await client.post(PATHS[0], ONE),
            await client.post(PATHS[2], ONE),
        ]
        assert [one.status_code for one in got] == [400, 400, 413, 404, 400, 400]
        assert (await client.rpc(pb.ModelInferRequest(model_name=side.model)))[0] == (
            grpc.StatusCode.INVALID_ARGUMENT
        )
    waiting = [asyncio.create_task(client.post(PATHS[3], ONE)) for _ in range(2)]
    await side.until(lambda: len(worker.requests) == 2)
    for path in PATHS:
        got_busy = await client.post(path, INVALID)
        assert got_busy.headers["x-inferbus-error-code"] == "too_many_in_flight", path
    for request in worker.requests:
        await worker.answer(prediction(request), partition=request.reply_partition)
    assert [one.status_code for one in await asyncio.gather(*waiting)] == [200, 200]
    worker.script = lambda request: [prediction(request)]
    assert (await client.post(PATHS[3], ONE)).status_code == 200


@pytest.mark.slow
async def test_a_full_gateway_refuses_before_it_reads(side: GatewaySide) -> None:
    key = new_key()
    await put_key(side, key, f"infer:{side.model}")
    worker = await side.worker(lambda _request: [])
    gateway = await side.gateway(key=key, INFERBUS_MAX_PENDING="1")
    client = Client(side, gateway, key)
    waiting = asyncio.create_task(client.post(PATHS[3], ONE))
    (sent,) = await side.until(lambda: worker.requests)
    stranger = Client(side, gateway, new_key())
    for who in (client, stranger):
        for path in PATHS[3:]:
            for body, chunked in ((INVALID, False), (HUGE, True)):
                got = await who.post(path, body, chunked=chunked)
                assert got.status_code == 503, (path, chunked, got.text)
                assert got.headers["x-inferbus-error-code"] == "overloaded"
                assert "retry-after" in got.headers
    await worker.answer(prediction(sent), partition=sent.reply_partition)
    assert (await waiting).status_code == 200
    assert (await client.post(PATHS[3], INVALID)).status_code == 400


def test_the_side_door_knows_plain_short_targets_alone() -> None:
    asked: list[tuple[str, str]] = []
    infer: Any = SimpleNamespace(
        direct=lambda model, version, _exchange: asked.append((model, version))
    )
    known = app.side_door(infer)
    for target, names in (
        (b"/v2/models/m/infer", ("m", "")),
        (b"/v2/models/m-1.x/versions/3/infer", ("m-1.x", "3")),
        (b"/v2/models/" + b"m" * 143 + b"/infer", ("m" * 143, "")),
    ):
        handler = known(target)
        assert handler is not None, target
        exchange: Any = None
        handler(exchange)
        assert asked.pop() == names
        assert known(target) is handler, "it is remembered"
    for target in (
        b"/v2/models/" + b"m" * 144 + b"/infer",
        b"/v2/models/m/infer?x=1",
        b"/v2/models/m%2e/infer",
        b"/v2/models/m/versions/1/infer/",
        b"/v2/models/" + b"\xff" + b"/infer",
        b"/v2/models/m",
        b"",
        b"x" * (1 << 20),
    ):
        assert known(target) is None, target[:80]
