"""Requests with an `Idempotency-Key` on real servers: each runs once, whoever asks or dies."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest

from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.control import idempotency, trail
from inferbus_gateway.control.idempotency import Keys, Stored
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot import keyed
from inferbus_schemas import access, ids
from inferbus_schemas import messages as m
from tests.gateway.test_gateway_keys import put_key
from tests.support.gateway_process import GatewayProcess, spawn
from tests.support.gateway_side import GatewaySide
from tests.support.scripted_worker import echo, prediction, rows, silence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ONE = json.dumps(rows([1.0, 2.5, -3.0], id="mine")).encode()
TWO = json.dumps(rows([9.0, 9.0, 9.0], id="mine")).encode()
MARK = keyed.MARK


@pytest.fixture(scope="module")
def gateways(
    kafka_bootstrap: str, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two for the tests that do not stop one: each deploys a model of its own."""
    folder = tmp_path_factory.mktemp("gateways")
    env = {"INFERBUS_VALKEY_URL": valkey_url, "INFERBUS_TENANT_MAX_PENDING": "3"}
    pair = spawn(kafka_bootstrap, folder, **env), spawn(kafka_bootstrap, folder, **env)
    try:
        yield pair
    finally:
        for one in pair:
            one.kill()


@pytest.fixture
async def keys(valkey_url: str) -> AsyncIterator[Keys]:
    made = Keys(valkey_url)
    try:
        yield made
    finally:
        await made.stop()


def new_key() -> str:
    return f"key-{secrets.token_hex(8)}"


async def ask(
    side: GatewaySide,
    gateway: GatewayProcess,
    key: str,
    body: bytes = ONE,
    **head: str,
) -> httpx.Response:
    headers = {"idempotency-key": key, **{name.replace("_", "-"): v for name, v in head.items()}}
    async with httpx.AsyncClient(trust_env=False, timeout=40) as http:
        return await http.post(f"{gateway.url}{side.path}", content=body, headers=headers)


def same(first: httpx.Response, again: httpx.Response) -> None:
    """Check that an answer is another one's, and says so."""
    assert first.status_code == again.status_code, again.text
    assert first.content == again.content
    for name in ("x-request-id", "x-inferbus-receipt", "x-inferbus-model-version"):
        assert first.headers[name] == again.headers[name]
    assert again.headers[MARK] == "replayed"
    # Nothing was timed for it.
    assert "x-inferbus-timing" not in again.headers


async def ended(side: GatewaySide, got: httpx.Response) -> m.Prediction:
    """Return the only record of a request."""
    found = await side.until(lambda: side.records(got.headers["x-request-id"]))
    (only,) = found
    said: m.Prediction = only
    return said


async def test_a_key_is_answered_once_and_replayed_anywhere(
    side: GatewaySide, gateways: tuple[GatewayProcess, GatewayProcess]
) -> None:
    worker = await side.worker(echo)
    for gateway in gateways:
        await side.serves(gateway)
    key = new_key()
    first = await ask(side, gateways[0], key)
    assert (first.status_code, MARK in first.headers) == (200, False), first.text
    for gateway in (*gateways, gateways[0]):
        same(first, await ask(side, gateway, key))
    assert len(worker.requests) == 1
    await ended(side, first)
    # Compressed or in chunks it is the same body, and so the same request.
    packed = await ask(side, gateways[1], key, accept_encoding="gzip")
    assert packed.content == first.content
    other = await ask(side, gateways[1], key, TWO)
    assert (other.status_code, other.headers["x-inferbus-error-code"]) == (
        422,
        "idempotency_key_reused",
    )
    assert (await ask(side, gateways[0], new_key(), TWO)).status_code == 200
    assert len(worker.requests) == 2


async def test_what_is_sent_while_the_first_runs_waits_for_its_answer(
    side: GatewaySide, gateways: tuple[GatewayProcess, GatewayProcess]
) -> None:
    worker = await side.worker(silence)
    for gateway in gateways:
        await side.serves(gateway)
    key = new_key()
    asking = [asyncio.create_task(ask(side, one, key)) for one in (*gateways, *gateways)]
    (sent,) = await side.until(lambda: worker.requests)
    impatient = await ask(side, gateways[1], key, x_inferbus_timeout_ms="300")
    assert impatient.headers["x-inferbus-error-code"] == "outcome_unknown"
    other = await ask(side, gateways[0], key, TWO)
    assert other.status_code == 422
    assert not any(task.done() for task in asking)
    await worker.answer(prediction(sent), partition=sent.reply_partition)
    got = await asyncio.gather(*asking)
    (first,) = [one for one in got if MARK not in one.headers]
    assert first.status_code == 200
    for again in got:
        if again is not first:
            same(first, again)
    assert len(worker.requests) == 1


async def test_a_failure_is_an_answer_and_a_refusal_is_none(
    side: GatewaySide, gateways: tuple[GatewayProcess, GatewayProcess], keys: Keys
) -> None:
    def fails(request: m.Request) -> list[m.Prediction]:
        return [prediction(request, m.OUTCOME_FAILED, error_message="told so")]

    worker = await side.worker(fails)
    for gateway in gateways:
        await side.serves(gateway)
    key = new_key()
    first = await ask(side, gateways[0], key)
    assert first.status_code == 500
    worker.script = silence
    same(first, await ask(side, gateways[1], key))
    # As many wait as may: what is refused now was never there.
    waiting = [asyncio.create_task(ask(side, gateways[0], new_key())) for _ in range(3)]
    await side.until(lambda: len(worker.requests) == 4)
    key = new_key()
    refused = await ask(side, gateways[0], key)
    assert (refused.status_code, refused.headers["x-inferbus-error-code"]) == (
        429,
        "too_many_in_flight",
    )
    assert await keys.get(name_of(key)) is None
    for bad in (b"{", json.dumps(rows([1.0])).encode()):
        assert (await ask(side, gateways[1], key, bad)).status_code == 400
    worker.script = echo
    got = await ask(side, gateways[1], key)
    assert (got.status_code, MARK in got.headers) == (200, False)
    for request in worker.requests[1:4]:
        await worker.answer(prediction(request), partition=request.reply_partition)
    assert {one.status_code for one in await asyncio.gather(*waiting)} == {200}


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
async def test_what_is_no_key_is_refused(
    side: GatewaySide, gateways: tuple[GatewayProcess, GatewayProcess], key: str
) -> None:
    await side.worker(echo)
    await side.serves(gateways[0])
    got = await ask(side, gateways[0], key)
    assert (got.status_code, got.headers["x-inferbus-error-code"]) == (400, "invalid_request")


async def test_tenants_have_keys_of_their_own(side: GatewaySide, valkey_url: str) -> None:
    acme, globex = (access.make_key(os.urandom(access.KEY_ENTROPY_BYTES)) for _ in range(2))
    await put_key(side, acme, f"infer:{side.model}")
    await put_key(side, globex, f"infer:{side.model}", tenant="globex")
    worker = await side.worker(echo)
    gateway = await side.gateway(key=acme, INFERBUS_VALKEY_URL=valkey_url)
    key = new_key()
    got = [
        await ask(side, gateway, key, body, authorization=f"Bearer {who}")
        for who, body in ((acme, ONE), (globex, TWO), (acme, ONE), (globex, TWO))
    ]
    assert {one.status_code for one in got} == {200}
    assert [MARK in one.headers for one in got] == [False, False, True, True]
    assert [one.tenant for one in worker.requests] == ["acme", "globex"]


async def test_without_valkey_requests_go_on_and_say_so(side: GatewaySide) -> None:
    worker = await side.worker(echo)
    # Nobody listens there.
    gateway = await side.gateway(INFERBUS_VALKEY_URL="redis://127.0.0.1:9/0")
    key = new_key()
    got = [await ask(side, gateway, key) for _ in range(3)]
    assert [(one.status_code, one.headers[MARK]) for one in got] == [(200, "degraded")] * 3
    assert len(worker.requests) == 3
    await gateway_metadata(side, gateway, new_key(), "degraded")


async def rpc(side: GatewaySide, gateway: GatewayProcess, key: str, first: float = 1.0) -> Any:
    """Ask over gRPC; return answer and trailing metadata."""
    asked = pb.ModelInferRequest(model_name=side.model, id="mine")
    tensor = asked.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    tensor.contents.fp32_contents.extend([first, 2.0, 3.0])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )(asked, metadata=(("idempotency-key", key),), timeout=20)
        answer = await call
        return answer, dict(await call.trailing_metadata())


async def gateway_metadata(
    side: GatewaySide, gateway: GatewayProcess, key: str, mark: str | None
) -> Any:
    """Ask over gRPC and check what the metadata say."""
    answer, said = await rpc(side, gateway, key)
    assert said.get(MARK) == mark
    return answer, said


async def test_a_key_over_grpc(
    side: GatewaySide, gateways: tuple[GatewayProcess, GatewayProcess]
) -> None:
    worker = await side.worker(echo)
    for gateway in gateways:
        await side.serves(gateway)
    key = new_key()
    first, said = await gateway_metadata(side, gateways[0], key, None)
    again, repeated = await gateway_metadata(side, gateways[1], key, "replayed")
    assert first == again
    assert said["x-request-id"] == repeated["x-request-id"]
    assert said["x-inferbus-receipt"] == repeated["x-inferbus-receipt"]
    assert len(worker.requests) == 1
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rpc(side, gateways[1], key, 7.0)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    over_http = await ask(side, gateways[0], key)
    assert over_http.status_code == 422, "another protocol is another request"
    asked = pb.ModelInferRequest(model_name=side.model)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateways[0].grpc_port}") as channel:
        stream = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(iter([asked]), metadata=(("idempotency-key", key),), timeout=20)
        (answer,) = [one async for one in stream]
    assert "a stream takes no idempotency-key" in answer.error_message


async def test_a_gateway_that_dies_after_the_hand_over_leaves_one_row(
    side: GatewaySide, valkey_url: str
) -> None:
    worker = await side.worker(silence)
    first, second = [await side.gateway(INFERBUS_VALKEY_URL=valkey_url) for _ in range(2)]
    answered, lost = new_key(), new_key()
    asking = [asyncio.create_task(ask(side, first, key)) for key in (answered, lost)]
    await side.until(lambda: len(worker.requests) == 2)
    first.kill()
    broken = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(one, httpx.TransportError) for one in broken)
    by_id = {one.id: one for one in worker.requests}
    # One was on its way to be answered when the gateway died, the other one is lost.
    stays = worker.requests[0]
    await worker.answer(prediction(stays), partition=stays.reply_partition)
    worker.script = echo
    got = await asyncio.gather(*(ask(side, second, key) for key in (answered, lost)))
    assert [(one.status_code, one.headers[MARK]) for one in got] == [(200, "replayed")] * 2
    assert {one.headers["x-request-id"] for one in got} == {ids.text(one) for one in by_id}
    assert len(worker.requests) == 3, "only the one that was lost went out again"
    again, before = worker.requests[2], by_id[worker.requests[2].id]
    assert again.id != stays.id
    assert (again.version, again.reply_partition, again.tensors) == (
        before.version,
        before.reply_partition,
        before.tensors,
    )
    for one in got:
        await ended(side, one)
    # And what is stored now is the answer for good.
    for key, one in zip((answered, lost), got, strict=True):
        same(one, await ask(side, second, key))
    assert len(worker.requests) == 3


def name_of(key: str) -> keyed.Name:
    return keyed.Name(access.LOCAL_TENANT, keyed.key_sha256(key.encode()), bytes(32))


async def put(side: GatewaySide, keys: Keys, under: str, age_ms: int, **fields: Any) -> Stored:
    """Put a key as a gateway did that is gone; return what stands there."""
    name = name_of(under)
    request_id = ids.uuid7(int(time.time() * 1000) - age_ms, secrets.randbits(74))
    base: dict[str, Any] = {
        "key": idempotency.part_of(name),
        "body": "",
        "id": request_id.hex(),
        "partition": 0,
        "version": side.version,
        "pool": side.pool,
        "gateway": "gone",
        "life": 1,
        "since": 0,
        "claimed_ms": int(time.time() * 1000) - age_ms,
    }
    said = Stored(**(base | fields))
    assert await keys.claim(name, said) is None
    return said


async def test_an_id_that_is_too_old_is_replaced_and_what_is_gone_is_a_409(
    side: GatewaySide, gateways: tuple[GatewayProcess, GatewayProcess], keys: Keys
) -> None:
    worker = await side.worker(echo)
    await side.serves(gateways[0])
    body = keyed.body_sha256(b"http", side.model.encode(), b"", b"None", ONE).hex()
    key = new_key()
    old = await put(side, keys, key, trail.SETTLED_MS + 1000, body=body)
    got = await ask(side, gateways[0], key)
    assert (got.status_code, MARK in got.headers) == (200, False), got.text
    assert got.headers["x-request-id"] != ids.text(bytes.fromhex(old.id))
    now = await keys.get(name_of(key))
    assert now is not None
    assert ids.text(bytes.fromhex(now.id)) == got.headers["x-request-id"]
    same(got, await ask(side, gateways[0], key))
    key = new_key()
    young = await put(side, keys, key, 1000, body=body)
    got = await ask(side, gateways[0], key)
    assert got.headers["x-request-id"] == ids.text(bytes.fromhex(young.id))
    assert worker.requests[-1].reply_partition == young.partition
    key = new_key()
    await put(side, keys, key, 1000, body=body, offset=1 << 40)
    got = await ask(side, gateways[0], key)
    assert (got.status_code, got.headers["x-inferbus-error-code"]) == (409, "result_not_retained")
    assert len(worker.requests) == 2


async def test_a_key_that_nobody_understands_protects_nothing_and_breaks_nothing(
    side: GatewaySide,
    gateways: tuple[GatewayProcess, GatewayProcess],
    keys: Keys,
) -> None:
    await side.worker(echo)
    await side.serves(gateways[0])
    key = new_key()
    # What stands under one key is the other's: an answer that went astray on its way here.
    await put(side, keys, key, 1000, key="another")
    got = await ask(side, gateways[0], key)
    assert (got.status_code, got.headers[MARK]) == (200, "degraded")
