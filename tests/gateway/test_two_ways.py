"""A request that the listener hands over whole, and the same one by ASGI: one answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.gateway_side import GatewaySide
from tests.support.scripted_worker import echo, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ONE = json.dumps(rows([1.0, 2.5, -3.0], id="mine")).encode()
OWN = {"x-request-id", "x-inferbus-receipt", "x-inferbus-timing", "retry-after"}
"""Headers that differ between any two answers."""


async def _both(
    gateway: GatewayProcess, path: str, body: bytes, headers: dict[str, str]
) -> list[httpx.Response]:
    """Send a body with its length stated, then the same one in chunks."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        return [
            await http.post(path, content=body, headers=headers),
            await http.post(path, content=chunks(), headers=headers),
        ]


async def test_both_ways_answer_alike(side: GatewaySide) -> None:
    await side.worker(echo)
    gateway = await side.gateway()
    cases: list[tuple[str, bytes, dict[str, str], int]] = [
        (side.path, ONE, {}, 200),
        (side.path.replace("/infer", "/versions/1/infer"), ONE, {}, 200),
        (side.path, gzip.compress(ONE), {"content-encoding": "gzip"}, 200),
        (side.path, b"not gzip", {"content-encoding": "gzip"}, 400),
        (side.path, ONE, {"content-encoding": "br"}, 415),
        (side.path, b"{", {}, 400),
        (side.path, json.dumps(rows([1.0])).encode(), {}, 400),
        (side.path, ONE, {"x-inferbus-timeout-ms": "0"}, 400),
        (side.path, ONE, {"x-inferbus-timeout-ms": "soon"}, 400),
        (side.path, ONE, {"inference-header-content-length": "9999"}, 400),
        (side.path, ONE, {"authorization": "Bearer mlk_none_such"}, 401),
        (side.path, ONE, {"host": "evil.example"}, 401),
        ("/v2/models/no-such-model/infer", ONE, {}, 404),
        (side.path.replace("/infer", "/versions/9/infer"), ONE, {}, 404),
    ]
    for path, body, headers, status in cases:
        direct, asgi = await _both(gateway, path, body, headers)
        said = (path, headers, direct.text)
        assert direct.status_code == asgi.status_code == status, said
        assert direct.content == asgi.content, said
        assert direct.reason_phrase == asgi.reason_phrase
        shown = [
            {key: value for key, value in answer.headers.items() if key not in OWN}
            for answer in (direct, asgi)
        ]
        assert shown[0] == shown[1], said
        if status == httpx.codes.OK:
            ids = [one.headers["x-request-id"] for one in (direct, asgi)]
            await side.until(lambda: all(side.records(one) for one in ids))  # noqa: B023 -- awaited
            (first,), (second,) = [side.records(one) for one in ids]
            assert first.outputs == second.outputs
            assert first.tenant == second.tenant
