"""A gateway that asks for keys, on a real bus: keys come and go by the topic alone."""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from inferbus_schemas import access, topics
from inferbus_schemas import messages as m
from tests.support.gateway_side import GatewayProcess, GatewaySide, prediction, rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def side(kafka_bootstrap: str, tmp_path: Path) -> AsyncIterator[GatewaySide]:
    made = GatewaySide(kafka_bootstrap, tmp_path)
    await made.start()
    yield made
    await made.stop()


async def put_key(side: GatewaySide, key: str, *scopes: str, **fields: object) -> None:
    """Write a key's record as the registry does."""
    said = m.AccessKey(
        id=access.key_id(key),
        sha256=access.key_sha256(key),
        tenant="acme",
        scopes=scopes,
        generation=int(time.time() * 1e6),
        **fields,  # type: ignore[arg-type]
    )
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
    revoked_s = time.monotonic()
    await side.until_async(lambda: ask(side, gateway, key), lambda got: got.status_code == 401)
    assert time.monotonic() - revoked_s < 5, "refused within seconds, everywhere"


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
