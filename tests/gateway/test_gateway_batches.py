"""Files and batches at gateway processes, on real Kafka and a real store: takeovers, attacks."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferbus_kit.objects import Objects, open_store
from inferbus_schemas import access, batches, ids, jobs, topics
from inferbus_schemas import messages as m
from tests.support.gateway_side import GatewaySide, deployed
from tests.support.job_side import commands
from tests.support.scripted_worker import echo, prediction, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

EMBEDDINGS = "/v1/embeddings"
COUNTS = {"task": "text-embedding"}
"""A model whose tokens are counted."""
FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.fixture
async def side(side: GatewaySide) -> GatewaySide:
    await side.worker(echo)
    return side


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects(open_store((tmp_path / "objects").as_uri()))


async def gateway(side: GatewaySide, tmp_path: Path, **env: str) -> httpx.AsyncClient:
    url = (tmp_path / "objects").as_uri()
    made = await side.gateway(INFERBUS_OBJECT_STORE_URL=url, **env)
    return httpx.AsyncClient(base_url=made.url, timeout=20, trust_env=False)


def line(side: GatewaySide, name: str) -> bytes:
    body = {"model": side.model, "input": "x"}
    said = {"custom_id": name, "method": "POST", "url": EMBEDDINGS, "body": body}
    return json.dumps(said).encode() + b"\n"


async def orphan(side: GatewaySide, store: Objects, age_ms: int, left_ms: int) -> m.Batch:
    """Leave a batch as a gateway does that dies at once after it took it."""
    now_ms = int(time.time() * 1000)
    raw = line(side, "a") + line(side, "b")
    file = m.File(
        id=ids.uuid7(now_ms, secrets.randbits(74)),
        tenant=access.LOCAL_TENANT,
        purpose="batch",
        n_bytes=len(raw),
        n_pieces=1,
        expires_ms=now_ms + 600_000,
    )
    batch = m.Batch(
        id=ids.uuid7(now_ms - age_ms, secrets.randbits(74)),
        tenant=access.LOCAL_TENANT,
        endpoint=EMBEDDINGS,
        input_file=file.id,
        model=side.model,
        expires_ms=now_ms + left_ms,
        outputs_kept_ms=600_000,
    )
    await store.put(batches.piece_path(file.id, 0), raw)
    await store.put(batches.file_path(file.id), file.SerializeToString())
    await store.put(batches.batch_path(batch.id), batch.SerializeToString())
    for key, said in (
        (batches.file_key(file.id), m.JobStatus(file=file)),
        (batches.batch_key(batch.id), m.JobStatus(batch=batch)),
    ):
        await side.write(topics.JOB_STATUS, 0, key, said.SerializeToString())
    return batch


async def finish(side: GatewaySide, store: Objects, job: bytes, outcome: m.Outcome) -> None:
    """Do what a worker does with the one chunk of a job."""
    async with asyncio.timeout(30):
        while not (found := await commands(side, job)):  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.1)
    given = await store.get(jobs.input_path(found[0].job.input, 0))
    results = m.ChunkResults()
    for row in m.Chunk.FromString(given or b"").rows:
        request = m.Request(id=jobs.row_id(job, row.number), tenant=access.LOCAL_TENANT)
        results.rows.add(number=row.number, prediction=prediction(request, outcome))
    await store.create(jobs.results_path(job, 0), results.SerializeToString())
    n_rows, cancelled = len(results.rows), outcome == m.OUTCOME_CANCELLED
    done = m.ChunkStatus(job=job, chunk=0, state=m.CHUNK_STATE_DONE, n_tokens=2500)
    done.n_cancelled, done.n_failed = (n_rows, 0) if cancelled else (0, n_rows)
    said = m.JobStatus(chunk=done).SerializeToString()
    await side.write(topics.JOB_STATUS, 0, jobs.chunk_key(job, 0), said)


async def ended(http: httpx.AsyncClient, batch: m.Batch) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while True:
            answer = await http.get(f"/v1/batches/{batches.batch_name(batch.id)}")
            found: dict[str, Any] = answer.json()
            if found.get("status") in {"completed", "failed", "cancelled", "expired"}:
                return found
            await asyncio.sleep(0.05)


async def test_any_gateway_takes_over_and_all_tell_the_same(
    side: GatewaySide, store: Objects, tmp_path: Path
) -> None:
    """Both gateways find each step due at the same time, and do it."""
    tokens = {"INFERBUS_TENANT_TOKENS_PER_MIN": "1000"}
    one, other = await asyncio.gather(
        gateway(side, tmp_path, **tokens), gateway(side, tmp_path, **tokens)
    )
    async with one, other, deployed(side.bootstrap, tmp_path, manifest=COUNTS) as texts:
        await texts.worker(echo)
        before = await texts.until_async(
            lambda: handed_in(one, texts, "k"),
            lambda got: all("location" in answer.headers for answer in got),
        )
        batch = await orphan(side, store, age_ms=20_000, left_ms=600_000)
        late = await orphan(side, store, age_ms=20_000, left_ms=-1)
        gone = await orphan(side, store, age_ms=20_000, left_ms=600_000)
        await store.delete_folder(batches.file_folder(gone.input_file))
        await side.until_async(
            lambda: store.exists(jobs.cancel_path(late.id)), good=lambda there: there
        )
        await finish(side, store, batch.id, m.OUTCOME_INVALID_INPUT)
        await finish(side, store, late.id, m.OUTCOME_CANCELLED)
        for http in (one, other):
            said = await ended(http, batch)
            assert (said["status"], said["output_file_id"]) == ("completed", None)
            assert said["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
            rows = await contents(http, said["error_file_id"])
            assert [row["custom_id"] for row in rows] == ["a", "b"]
            assert {row["response"]["body"]["error"]["code"] for row in rows} == {"wrong_task"}
            said = await ended(http, late)
            assert (said["status"], said["cancelling_at"]) == ("expired", None)
            rows = await contents(http, said["error_file_id"])
            assert {row["error"]["code"] for row in rows} == {"batch_expired"}
            said = await ended(http, gone)
            assert said["status"] == "failed"
            assert said["errors"]["data"][0]["code"] == "invalid_input_file"
            # What the lines have used is a debt at every gateway, of batches and not of requests.
            file = batches.file_name(batch.input_file)
            asked = {"input_file_id": file, "endpoint": EMBEDDINGS, "completion_window": "24h"}
            refused = await http.post("/v1/batches", json=asked)
            assert refused.status_code == 429, refused.text
            assert refused.json()["error"]["code"] == "rate_limited"
            assert int(refused.headers["retry-after"]) > 60
            # What was taken before may be asked for all the same.
            again = await handed_in(http, texts, "k")
            assert [got.status_code for got in again] == [200, 202]
            where = [got.headers["location"] for got in before]
            assert [got.headers["location"] for got in again] == where
            new = await handed_in(http, texts, "another")
            assert {got.headers["x-inferbus-error-code"] for got in new} == {"rate_limited"}
        uploads = tmp_path / "objects" / "uploads"
        kept = {path.parent for path in uploads.rglob("*") if path.is_file()}
        assert len(kept) == 4, "what the second gateway read is gone"


async def handed_in(
    http: httpx.AsyncClient, side: GatewaySide, key: str
) -> tuple[httpx.Response, httpx.Response]:
    """Hand in a job and a request that nobody waits for."""
    head = {"idempotency-key": f"{key}-{side.model}"}
    where, form = f"/v1/jobs?model={side.model}", {"content-type": "application/jsonl"}
    job = await http.post(where, content=b'{"x": [1, 2, 3]}\n', headers=head | form)
    later = {"prefer": "respond-async"}
    return job, await http.post(side.path, json=rows([1, 2, 3]), headers=head | later)


async def contents(http: httpx.AsyncClient, name: str) -> list[dict[str, Any]]:
    answer = await http.get(f"/v1/files/{name}/content")
    assert answer.status_code == 200, answer.text
    return [json.loads(one) for one in answer.text.splitlines()]


async def test_hostile_uploads_leave_nothing(side: GatewaySide, tmp_path: Path) -> None:
    async with await gateway(side, tmp_path, INFERBUS_MAX_FILE_BYTES="100000") as http:
        head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
        purpose = b"\r\n--b\r\ncontent-disposition: form-data; name=purpose\r\n\r\n%s\r\n--b--\r\n"
        good = head + b"{}" + purpose % b"batch"
        for body, headers, want in (
            (b"", FORM, (400, "invalid_parameter")),
            (good[:-20], FORM, (400, "invalid_parameter")),
            (head + b"{}" + purpose % b"vision", FORM, (400, "invalid_parameter")),
            (head + bytes(200_000) + purpose % b"batch", FORM, (413, "request_too_large")),
            (good, {"content-type": "text/plain"}, (415, "unsupported_media_type")),
            (good, {**FORM, "content-encoding": "gzip"}, (415, "unsupported_encoding")),
            (good, {**FORM, "idempotency-key": "k"}, (400, "invalid_parameter")),
        ):
            answer = await http.post("/v1/files", content=body, headers=headers)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == want, (body[:80], error)
        assert (await http.post("/v1/files", content=good, headers=FORM)).status_code == 200
        folder = tmp_path / "objects" / "files"
        kept = [path for path in folder.rglob("*") if path.is_file()]
        assert len(kept) == 2, "a piece and what it belongs to"
        for name in ("x", "..", "%2e%2e%2ffile", f"file-{'0' * 32}", "0" * 5000):
            for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
                answer = await http.request(method, f"/v1/files/{name}{path}")
                assert answer.status_code == 404, (method, name, path)
        for body in (b"", b"[]", b"{", b'{"endpoint": []}', b"[" * 70_000, b'{"a": 1}'):
            answer = await http.post("/v1/batches", content=body)
            assert answer.status_code in {400, 413}, body[:80]
            assert answer.json()["error"]["code"]
        keyed = await http.post("/v1/batches", content=b"{}", headers={"idempotency-key": "k"})
        assert keyed.json()["error"]["param"] == "Idempotency-Key"
        assert (await http.post("/v1/batches/x/cancel")).status_code == 404
        assert (await http.get("/v1/batches?after=x")).json()["error"]["param"] == "after"
        assert (await http.get("/v1/files?limit=0")).json()["error"]["param"] == "limit"


async def test_a_gateway_without_a_store_keeps_no_files(side: GatewaySide) -> None:
    made = await side.gateway()
    async with httpx.AsyncClient(base_url=made.url, timeout=20, trust_env=False) as http:
        for path in ("/v1/files", "/openai/v1/batches"):
            answer = await http.get(path)
            assert answer.status_code == 501
            assert answer.json()["error"]["code"] == "jobs_not_configured"
