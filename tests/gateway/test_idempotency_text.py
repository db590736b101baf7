"""`Idempotency-Key` on the routes of text: what is asked twice is generated once."""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferbus_gateway import errors
from inferbus_gateway.hot.keyed import DEGRADED, MARK
from inferbus_schemas import generation, tensors
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from tests.gateway.test_once import Asked, bus_on, new_name, until
from tests.support.gateway_process import GatewayProcess, spawn
from tests.support.gateway_side import deployed
from tests.support.scripted_worker import prediction, silence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

Spec = manifests.TensorSpec
WRITES: dict[str, Any] = {
    "signature": manifests.Signature(
        inputs=(Spec(generation.PROMPT, "BYTES", (1,)),),
        outputs=(Spec(generation.TEXT, "BYTES", (-1,)),),
    ),
    "manifest": {
        "task": generation.TASK,
        "engine": "llamacpp",
        "files": [{"path": "model.gguf", "sha256": "0" * 64, "size_bytes": 1}],
        "task_settings": {"generation": {"context_tokens": 2048}},
    },
}
EMBEDS: dict[str, Any] = {
    "signature": manifests.Signature(
        inputs=(Spec("text", "BYTES", (-1,)),), outputs=(Spec("embedding", "FP32", (-1, 2)),)
    ),
    "manifest": {"task": "text-embedding", "batching": {"max_rows": 3}},
}


@pytest.fixture(scope="module")
def gateway(
    kafka_bootstrap: str, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One for all of the file, which remembers keys."""
    folder = tmp_path_factory.mktemp("gateway")
    made = spawn(kafka_bootstrap, folder, INFERBUS_VALKEY_URL=valkey_url)
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture
async def http(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=40) as made:
        yield made


def generated(request: m.Request) -> m.Prediction:
    """Return a text that nobody would write twice."""
    text = secrets.token_hex(8).encode()
    out = [m.Tensor(name=generation.TEXT, datatype="BYTES", shape=[1])]
    out[0].data = tensors.join_bytes([text])
    choice = m.Choice(finish_reason="stop")
    said = prediction(request, generated=m.Generated(choices=[choice], completion_tokens=3))
    said.outputs = m.TensorSet(tensors=out).SerializeToString()
    said.output_sha256 = tensors.output_sha256(out)
    return said


def same(first: httpx.Response, again: httpx.Response) -> None:
    """Check that an answer is another one's, and says so."""
    assert (first.status_code, MARK in first.headers) == (200, False), first.text
    assert again.content == first.content
    names = ("x-request-id", "x-inferbus-receipt", "x-inferbus-model-version")
    assert all(first.headers[name] == again.headers[name] for name in names)
    assert again.headers[MARK] == "replayed"


def key() -> dict[str, str]:
    return {"idempotency-key": f"key-{secrets.token_hex(8)}"}


def bodies(model: str) -> dict[str, dict[str, Any]]:
    """Return a body for each route that generates."""
    asked = {"model": model, "max_tokens": 5}
    return {
        "/v1/chat/completions": {**asked, "messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {**asked, "prompt": "x"},
        "/v1/responses": {"model": model, "input": "x"},
        f"/v2/models/{model}/generate": {generation.PROMPT: "x"},
    }


async def test_what_is_generated_once_is_answered_again(
    kafka_bootstrap: str, gateway: GatewayProcess, tmp_path: Path, http: httpx.AsyncClient
) -> None:
    async with deployed(kafka_bootstrap, tmp_path, **WRITES) as side:
        worker = await side.worker(lambda request: [generated(request)])
        await side.serves(gateway)
        for path, body in bodies(side.model).items():
            head, raw = key(), json.dumps(body).encode()
            first = await http.post(path, content=raw, headers=head)
            same(first, await http.post(path, content=raw, headers=head))
            other = await http.post(path, content=raw + b" ", headers=head)
            assert other.status_code == 422
            assert other.headers["x-inferbus-error-code"] == "idempotency_key_reused"
            await _refuses_streams(http, path, body, head)
            if path.startswith("/v1"):
                same(first, await http.post(f"/openai{path}", content=raw, headers=head))
        assert len(worker.requests) == len(bodies(side.model))
        plain = await http.post(path, content=raw)
        assert (plain.status_code, MARK in plain.headers) == (200, False)
        assert plain.json()["text_output"] != first.json()["text_output"]
        bad = await http.post(path, content=raw, headers={"idempotency-key": "a b"})
        assert (bad.status_code, bad.headers["x-inferbus-error-code"]) == (400, "invalid_request")
        several = {"model": side.model, "prompt": ["x", "y"], "max_tokens": 5}
        head = key()
        first, again = [
            await http.post("/v1/completions", json=several, headers=head) for _ in range(2)
        ]
        same(first, again)
        (sent,) = m.TensorSet.FromString(worker.requests[-1].tensors).tensors
        assert tensors.split_bytes(sent.data) == [b"x", b"y"]
        unread = await http.post(path, content=b"{}", headers=key())
        assert (unread.status_code, MARK in unread.headers) == (400, False)


async def _refuses_streams(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], head: dict[str, str]
) -> None:
    if path.startswith("/v1"):
        got = await http.post(path, json={**body, "stream": True}, headers=head)
        assert got.json()["error"]["param"] == "stream"
        message = got.json()["error"]["message"]
    else:
        got = await http.post(f"{path}_stream", json=body, headers=head)
        message = got.json()["error"]
    assert got.status_code == 400
    assert "not streamed" in message


async def test_two_at_once_and_a_client_that_leaves(
    kafka_bootstrap: str, gateway: GatewayProcess, tmp_path: Path, http: httpx.AsyncClient
) -> None:
    async with deployed(kafka_bootstrap, tmp_path, **WRITES) as side:
        worker = await side.worker(silence)
        await side.serves(gateway)
        path, body = next(iter(bodies(side.model).items()))
        head = key()
        leaves, stays, waits = (
            asyncio.create_task(http.post(path, json=body, headers=head)) for _ in range(3)
        )
        (sent,) = await side.until(lambda: worker.requests)
        leaves.cancel()
        unsure = await http.post(path, json=body, headers=head | {"x-inferbus-timeout-ms": "300"})
        assert unsure.headers["x-inferbus-error-code"] == "outcome_unknown"
        assert unsure.headers["x-should-retry"] == "true", "with its key it is safe"
        await worker.answer(generated(sent), partition=sent.reply_partition)
        got = sorted(await asyncio.gather(stays, waits), key=lambda one: MARK in one.headers)
        assert got[0].content == got[1].content
        same_as_before = await http.post(path, json=body, headers=head)
        assert same_as_before.content == got[0].content
        assert len(worker.requests) == 1


async def test_vectors_of_one_record(
    kafka_bootstrap: str, gateway: GatewayProcess, tmp_path: Path, http: httpx.AsyncClient
) -> None:
    def embeds(request: m.Request) -> list[m.Prediction]:
        (texts,) = m.TensorSet.FromString(request.tensors).tensors
        n_rows = texts.shape[0]
        out = [m.Tensor(name="embedding", datatype="FP32", shape=[n_rows, 2])]
        # As a model that never says the same.
        out[0].data = struct.pack(
            f"<{2 * n_rows}f", *(1 + secrets.randbelow(1 << 20) for _ in range(2 * n_rows))
        )
        said = prediction(request)
        said.outputs = m.TensorSet(tensors=out).SerializeToString()
        return [said]

    async with deployed(kafka_bootstrap, tmp_path, **EMBEDS) as side:
        worker = await side.worker(embeds)
        await side.serves(gateway)
        for path, asked in (
            ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
            ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
            ("/v1/score", {"text_1": "a", "text_2": ["b", "c"]}),
        ):
            body, head = {"model": side.model, **asked}, key()
            first = await http.post(path, json=body, headers=head)
            same(first, await http.post(path, json=body, headers=head))
        assert len(worker.requests) == 3
        many = {"model": side.model, "input": ["a"] * 4}
        got = await http.post("/v1/embeddings", json=many, headers=key())
        assert (got.status_code, "at most 3 texts" in got.json()["error"]["message"]) == (400, True)
        assert (await http.post("/v1/embeddings", json=many)).status_code == 200


async def test_who_waits_for_one_that_no_key_protects_learns_so() -> None:
    async with bus_on("127.0.0.1:9", "redis://127.0.0.1:9/0") as bus:
        first, joined = Asked(new_name()), Asked(new_name(), timeout_s=0.1)
        joined.name = first.name
        bus.once(first)
        await until(lambda: first.opened)
        bus.once(joined)
        assert isinstance(await joined.end, errors.OutcomeUnknownError)
        assert joined.mark == DEGRADED
        first.answer(m.Prediction())
        await first.end
