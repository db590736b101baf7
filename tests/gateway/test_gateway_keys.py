"""A gateway that asks for keys, on a real bus: keys come and go by the topic alone."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx

from inferbus_dev import valkey
from inferbus_dev.ports import free_port
from inferbus_dev.supervisor import Supervisor
from inferbus_schemas import access, topics
from inferbus_schemas import messages as m
from tests.support.gateway_process import GatewayProcess
from tests.support.gateway_side import GatewaySide
from tests.support.provider import provider
from tests.support.scripted_worker import prediction, rows

if TYPE_CHECKING:
    from pathlib import Path


async def put_key(side: GatewaySide, key: str, *scopes: str, **fields: Any) -> None:
    """Write a key's record as the registry does."""
    base: dict[str, Any] = {
        "id": access.key_id(key),
        "sha256": access.key_sha256(key),
        "tenant": "acme",
        "scopes": scopes,
        "generation": int(time.time() * 1e6),
    }
    said = m.AccessKey(**{**base, **fields})
    await side.write(topics.KEYS, 0, said.id, said.SerializeToString())


async def ask(
    side: GatewaySide, gateway: GatewayProcess, key: str | None, **head: str
) -> httpx.Response:
    headers = dict(head) if key is None else {"authorization": f"Bearer {key}", **head}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        return await http.post(f"{gateway.url}{side.path}", json=rows([1, 2, 3]), headers=headers)


async def test_a_key_opens_names_the_tenant_and_is_revoked(side: GatewaySide) -> None:
    key = access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))
    await put_key(side, key, f"infer:{side.model}")
    worker = await side.worker(lambda request: [prediction(request)])
    gateway = await side.gateway(key=key)
    assert (await ask(side, gateway, None)).status_code == 401
    assert (await ask(side, gateway, access.make_key(secrets.token_bytes(40)))).status_code == 401

    got = await ask(side, gateway, key)
    assert got.status_code == 200, got.text
    assert worker.requests[-1].tenant == "acme"
    records = await side.until(lambda: side.records(got.headers["x-request-id"]))
    assert [one.tenant for one in records] == ["acme"]

    await put_key(side, key, "models:read")
    await side.until_async(lambda: ask(side, gateway, key), lambda got: got.status_code == 403)
    await put_key(side, key, "infer:another-model")
    await side.until_async(lambda: ask(side, gateway, key), lambda got: got.status_code == 404)
    await put_key(side, key, f"infer:{side.model}")
    await side.until_async(lambda: ask(side, gateway, key), lambda got: got.status_code == 200)
    await put_key(side, key, f"infer:{side.model}", revoked=True)
    await side.until_async(lambda: ask(side, gateway, key), lambda got: got.status_code == 401)

    # One whose record is deleted is gone as well.
    other = access.make_key(secrets.token_bytes(40))
    await put_key(side, other, f"infer:{side.model}")
    await side.until_async(lambda: ask(side, gateway, other), lambda got: got.status_code == 200)
    await side.write(topics.KEYS, 0, str(access.key_id(other)), None)
    await side.until_async(lambda: ask(side, gateway, other), lambda got: got.status_code == 401)


async def test_on_this_machine_alone_and_under_its_name_nobody_needs_a_key(
    side: GatewaySide,
) -> None:
    worker = await side.worker(lambda request: [prediction(request)])
    gateway = await side.gateway()
    assert (await ask(side, gateway, None)).status_code == 200
    assert worker.requests[-1].tenant == "local"
    rebound = await ask(side, gateway, None, host="evil.example")
    assert rebound.status_code == 401
    assert rebound.headers["www-authenticate"] == "Bearer"
    assert (await ask(side, gateway, "mlk_wrong")).status_code == 401


async def test_a_token_of_a_provider_names_the_tenant(side: GatewaySide) -> None:
    worker = await side.worker(lambda request: [prediction(request)])
    with provider() as idp:
        kid = idp.add()
        token = idp.token(kid, scope=f"infer:{side.model}")
        gateway = await side.gateway(key=token, **idp.environment)
        got = await ask(side, gateway, token)
        assert got.status_code == 200, got.text
        assert worker.requests[-1].tenant == "acme"
        for bad in (
            idp.token(kid, aud="another"),
            idp.token(kid, tenant=None),
            idp.token(idp.add(published=False)),
        ):
            assert (await ask(side, gateway, bad)).status_code == 401
        assert (await ask(side, gateway, idp.token(kid, scope="openid"))).status_code == 403


async def test_a_limit_is_a_429_that_says_when_to_come_back(
    side: GatewaySide, valkey_url: str
) -> None:
    key, free = (access.make_key(os.urandom(access.KEY_ENTROPY_BYTES)) for _ in range(2))
    await put_key(side, key, f"infer:{side.model}", limits=m.Limits(requests_per_s=0.5, burst=3))
    await put_key(side, free, f"infer:{side.model}")
    worker = await side.worker(lambda request: [prediction(request)])
    gateway = await side.gateway(key=free, INFERBUS_VALKEY_URL=valkey_url)
    got = [await ask(side, gateway, key) for _ in range(12)]
    assert [one.status_code for one in got[:3]] == [200, 200, 200]
    refused = [one for one in got if one.status_code == 429]
    assert len(refused) >= 12 - 3 - 5
    assert {one.headers["x-inferbus-error-code"] for one in refused} == {"rate_limited"}
    assert all(1 <= int(one.headers["retry-after"]) <= 5 for one in refused)
    assert (await ask(side, gateway, free)).status_code == 200, "others are not held up"
    assert len(worker.requests) <= 3 + 5 + 1 + 1


async def test_a_tenant_has_so_many_unanswered_requests_and_no_more(side: GatewaySide) -> None:
    key, other = (access.make_key(os.urandom(access.KEY_ENTROPY_BYTES)) for _ in range(2))
    await put_key(side, key, f"infer:{side.model}")
    await put_key(side, other, f"infer:{side.model}", tenant="globex")
    silent = True

    def script(request: m.Request) -> list[m.Prediction]:
        return [] if silent and request.tenant == "acme" else [prediction(request)]

    worker = await side.worker(script)
    gateway = await side.gateway(key=key, INFERBUS_TENANT_MAX_PENDING="2")
    head = {"x-inferbus-timeout-ms": "4000"}
    waiting = [asyncio.create_task(ask(side, gateway, key, **head)) for _ in range(2)]
    await side.until(lambda: len(worker.requests) == 2)
    got = await ask(side, gateway, key)
    assert (got.status_code, got.headers["x-inferbus-error-code"]) == (429, "too_many_in_flight")
    assert "retry-after" in got.headers
    assert (await ask(side, gateway, other)).status_code == 200
    for request in worker.requests[:2]:
        await worker.answer(prediction(request), partition=request.reply_partition)
    assert [one.status_code for one in await asyncio.gather(*waiting)] == [200, 200]
    silent = False
    assert (await ask(side, gateway, key)).status_code == 200


async def shared(gateway: GatewayProcess) -> float:
    """Return whether the gateway counts with others now, as its metric says."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics")).text
    (line,) = [one for one in text.splitlines() if one.startswith("inferbus_limits_shared ")]
    return float(line.split()[1])


async def test_a_valkey_that_stands_still_or_dies_fails_no_request(
    side: GatewaySide, tmp_path: Path
) -> None:
    key = access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))
    bounds = m.Limits(requests_per_s=9000, burst=9000)
    await put_key(side, key, f"infer:{side.model}", limits=bounds)
    await side.worker(lambda request: [prediction(request)])
    server = valkey.prepare(tmp_path / "valkey", tmp_path / "valkey.log", free_port())
    supervisor = Supervisor()
    spec = valkey.child(server, lambda: os.environ)
    await supervisor.start(spec)
    try:
        gateway = await side.gateway(key=key, INFERBUS_VALKEY_URL=server.url)

        async def ten_answers() -> None:
            got = await asyncio.gather(*(ask(side, gateway, key) for _ in range(10)))
            assert {one.status_code for one in got} == {200}

        async def is_shared(said: float) -> None:
            async with asyncio.timeout(20):
                while await shared(gateway) != said:
                    await ten_answers()

        await is_shared(1)
        supervisor.signal("valkey-0", signal.SIGSTOP)
        await is_shared(0)
        supervisor.signal("valkey-0", signal.SIGCONT)
        await is_shared(1)
        await supervisor.stop(["valkey-0"])
        await is_shared(0)
        await ten_answers()
        await supervisor.start(spec)
        await is_shared(1)
    finally:
        await supervisor.stop(["valkey-0"])
