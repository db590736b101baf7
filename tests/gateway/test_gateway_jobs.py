"""Jobs at a gateway process, on real Kafka and a real store; no worker but the test itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from inferbus_gateway.control.jobs.results import MAX_RETRIES
from inferbus_kit.objects import Objects, open_store
from inferbus_schemas import access, ids, jobs
from inferbus_schemas import messages as m
from tests.gateway.test_gateway_keys import put_key
from tests.support.gateway_side import GatewaySide
from tests.support.job_side import commands, ended, finish, job_id, kept, results
from tests.support.scripted_worker import echo, rows

JSON_LINES = {"content-type": "application/x-ndjson"}


@pytest.fixture
async def side(side: GatewaySide) -> GatewaySide:
    await side.worker(echo)
    return side


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects(open_store((tmp_path / "objects").as_uri()))


@pytest.fixture
async def http(side: GatewaySide, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    url = (tmp_path / "objects").as_uri()
    gateway = await side.gateway(INFERBUS_OBJECT_STORE_URL=url, INFERBUS_MAX_JOB_ROWS="3000")
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False) as client:
        yield client


def lines(n_rows: int, *, start: int = 0) -> bytes:
    return b"".join(b'{"x": [%d, 0, 0]}\n' % number for number in range(start, start + n_rows))


async def submit(
    http: httpx.AsyncClient, side: GatewaySide, body: bytes, **head: str
) -> httpx.Response:
    return await http.post(
        f"/v1/jobs?model={side.model}", content=body, headers={**JSON_LINES, **head}
    )


@pytest.mark.timeout(120)
async def test_a_job_from_upload_to_results_and_a_second_try(
    side: GatewaySide, store: Objects, http: httpx.AsyncClient
) -> None:
    body = lines(1000) + b"{bad\n" + lines(20, start=1001)
    answer = await submit(http, side, body, **{"idempotency-key": "one"})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["counts"]["rows"], job["counts"]["refused"]) == ("queued", 1021, 1)

    sent = await commands(side, job_id(answer))
    assert [one.chunk for one in sent] == [0, 1, 2, 3]
    assert {one.job.pool for one in sent} == {side.pool}
    assert (await http.get(f"/v1/jobs/{job['id']}/results")).status_code == 409
    for command in sent:
        await finish(side, store, command, fail=command.chunk >= 2)
    job = await ended(http, job["id"])
    assert (job["counts"]["ok"], job["counts"]["failed"], job["progress"]) == (512, 509, 1.0)

    first = [json.loads(line) for line in await results(http, job["id"])]
    assert [row["row"] for row in first] == list(range(1021))
    assert first[5]["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [5.0, 0.0, 0.0]}
    ]
    assert {row["status"] for row in first[512:]} == {"failed"}

    again = await http.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 202, again.text
    assert again.json()["parent"] == job["id"]
    assert again.json()["counts"]["rows"] == 508  # what could not be read never can
    for command in await commands(side, job_id(again)):
        await finish(side, store, command)
    await ended(http, again.json()["id"])
    both = [json.loads(line) for line in await results(http, again.json()["id"])]
    assert [row["row"] for row in both] == list(range(1021))
    assert [row["row"] for row in both if row["status"] == "failed"] == [1000]
    assert both[:512] == first[:512]

    listed = (await http.get("/v1/jobs?limit=1")).json()
    assert [one["id"] for one in listed["jobs"]] == [again.json()["id"]]
    listed = (await http.get(f"/v1/jobs?limit=1&before={listed['next']}")).json()
    assert [one["id"] for one in listed["jobs"]] == [job["id"]]


@pytest.mark.timeout(180)
async def test_submissions(side: GatewaySide, store: Objects, http: httpx.AsyncClient) -> None:
    """One gateway for all of it, since starting it is what costs."""
    await _one_key_is_one_job(side, http)
    await _a_job_whose_gateway_died_is_taken_over(side, store, http)
    await _an_unfinished_job_keeps_its_version_in_the_beats(side, store, http)
    await _cancel_leaves_a_mark_for_workers(side, store, http)
    await _retries_come_to_an_end(side, store, http)
    await _hostile_uploads(side, http)
    await _nobody_waits(side, store, http)


async def _retries_come_to_an_end(
    side: GatewaySide, store: Objects, http: httpx.AsyncClient
) -> None:
    parent = b""
    for at in range(MAX_RETRIES + 1):
        job = m.Job(id=ids.uuid7(1_700_000_000_000, at), tenant="local", parent=parent)
        job.model, job.version, job.pool = side.model, side.version, side.pool
        await store.put(jobs.job_path(job.id), job.SerializeToString())
        parent = job.id
    refused = await http.post(f"/v1/jobs/{ids.text(parent)}/retry")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert "send those that failed as a new job" in refused.text


async def _one_key_is_one_job(side: GatewaySide, http: httpx.AsyncClient) -> None:
    head = {"idempotency-key": "k"}
    answers = await asyncio.gather(*(submit(http, side, lines(600), **head) for _ in range(4)))
    assert sorted(one.status_code for one in answers) == [200, 200, 200, 202]
    assert len({one.json()["id"] for one in answers}) == 1
    other = await submit(http, side, lines(601), **head)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    where = f"/v1/jobs?model={side.model}&version={side.version}"
    other = await http.post(where, content=lines(600), headers={**JSON_LINES, **head})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    named = [
        await http.post(
            f"/v1/jobs?model={side.model}&client_job_id=k", content=lines(1), headers=JSON_LINES
        )
        for _ in range(2)
    ]
    assert [one.status_code for one in named] == [202, 200]
    assert named[0].json()["id"] != answers[0].json()["id"]
    # What the others uploaded is gone; the input of each job is left.
    assert await side.until(lambda: len(kept(side)) == 2)


async def _a_job_whose_gateway_died_is_taken_over(
    side: GatewaySide, store: Objects, http: httpx.AsyncClient
) -> None:
    job = m.Job(
        id=ids.uuid7(1, secrets.randbits(74)),
        tenant=access.LOCAL_TENANT,
        model=side.model,
        version=side.version,
        pool=side.pool,
        n_rows=1,
        n_chunks=1,
        input="uploads/gone",
        n_partitions=16,
    )
    # Accepted, and nobody on the bus knows of it: whoever asks finds it, and it goes on.
    await store.create(jobs.job_path(job.id), job.SerializeToString())
    found = (await http.get(f"/v1/jobs/{ids.text(job.id)}")).json()
    assert (found["state"], found["counts"]["rows"]) == ("queued", 1)
    async with asyncio.timeout(30):
        while not await commands(side, job.id):  # noqa: ASYNC110 -- a plain poll is clearest
            await asyncio.sleep(0.5)


async def _an_unfinished_job_keeps_its_version_in_the_beats(
    side: GatewaySide, store: Objects, http: httpx.AsyncClient
) -> None:
    answer = await submit(http, side, lines(1))
    want = (side.pool, side.model, side.version)

    def pinned() -> bool:
        return any(
            want == (one.pool, one.model, one.version)
            for member in side.fleet.gateways()
            for one in member.beat.gateway.job_versions
        )

    assert await side.until(pinned)
    (command,) = await commands(side, job_id(answer))
    await finish(side, store, command)


async def _cancel_leaves_a_mark_for_workers(
    side: GatewaySide, store: Objects, http: httpx.AsyncClient
) -> None:
    answer = await submit(http, side, lines(3))
    gone = await http.delete(f"/v1/jobs/{answer.json()['id']}")
    assert (gone.status_code, gone.json()["state"]) == (200, "cancelling")
    assert await store.exists(jobs.cancel_path(job_id(answer)))


async def _hostile_uploads(side: GatewaySide, http: httpx.AsyncClient) -> None:
    for body, want in (
        (b"", (400, "invalid_request")),
        (b"\n \r\n\n", (400, "invalid_request")),
        (lines(200_000), (413, "request_too_large")),
    ):
        answer = await http.post(f"/v1/jobs?model={side.model}", content=body, headers=JSON_LINES)
        assert (answer.status_code, answer.json()["code"]) == want
        assert answer.headers["content-type"] == "application/problem+json"
    for head, want in (
        ({"content-type": "text/csv"}, (415, "unsupported_media_type")),
        ({}, (415, "unsupported_media_type")),
        ({**JSON_LINES, "content-encoding": "gzip"}, (415, "unsupported_encoding")),
        ({**JSON_LINES, "idempotency-key": "k" * 300}, (400, "invalid_request")),
    ):
        answer = await http.post(f"/v1/jobs?model={side.model}", content=b"{}", headers=head)
        assert (answer.status_code, answer.json()["code"]) == want
    for where, want in (
        ("/v1/jobs", (400, "invalid_request")),
        ("/v1/jobs?model=no-such", (404, "unknown_model")),
        (f"/v1/jobs?model={side.model}&version=99", (404, "unknown_model")),
        ("/v1/jobs?model=..%2F..%2Fetc", (404, "unknown_model")),
        (f"/v1/jobs?model={side.model}&client_job_id={'x' * 300}", (400, "invalid_request")),
    ):
        answer = await http.post(where, content=b"{}", headers=JSON_LINES)
        assert (answer.status_code, answer.json()["code"]) == want, where
    for name in ("x", "..", "%2e%2e%2fjob", ids.text(ids.uuid7(1, 1)), "0" * 5000):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/results"), ("POST", "/retry")):
            answer = await http.request(method, f"/v1/jobs/{name}{path}")
            assert answer.status_code == 404, (method, name, path)
    before = kept(side)
    # A client that leaves in the middle leaves nothing behind, nor does what was refused.
    port = http.base_url.port
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/jobs?model=%s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/jsonl\r\n"
        b"content-length: 9000000\r\n\r\n" % side.model.encode() + lines(2000)
    )
    await writer.drain()
    assert await side.until(lambda: kept(side) > before)
    writer.close()
    assert await side.until(lambda: kept(side) == before)


@pytest.mark.timeout(120)
async def test_a_job_is_its_tenants_alone(side: GatewaySide, tmp_path: Path) -> None:
    keys = [access.make_key(os.urandom(access.KEY_ENTROPY_BYTES)) for _ in range(5)]
    scopes = (f"infer:{side.model}", "infer:*", "models:read", "infer:another")
    for key, tenant, scope in zip(keys, ("acme", "other", "acme", "acme"), scopes, strict=False):
        await put_key(side, key, scope, tenant=tenant)
    await put_key(side, keys[4], "infer:*", limits=m.Limits(requests_per_s=0.001, burst=1))
    url = (tmp_path / "objects").as_uri()
    gateway = await side.gateway(key=keys[0], INFERBUS_OBJECT_STORE_URL=url)
    heads = [{"authorization": f"Bearer {key}", **JSON_LINES} for key in keys]
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False) as client:
        where = f"/v1/jobs?model={side.model}"
        made = await client.post(where, content=lines(1), headers=heads[0])
        assert made.status_code == 202
        job = f"/v1/jobs/{made.json()['id']}"
        assert (await client.post(where, content=lines(1), headers=heads[2])).status_code == 403
        assert (await client.post(where, content=lines(1))).status_code == 401
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/results"), ("POST", "/retry")):
            answer = await client.request(method, f"{job}{path}", headers=heads[1])
            assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
        assert (await client.get("/v1/jobs", headers=heads[1])).json()["jobs"] == []
        seen = (await client.get("/v1/jobs", headers=heads[2])).json()["jobs"]
        assert [one["id"] for one in seen] == [made.json()["id"]]
        for head, status in ((heads[2], 403), (heads[3], 404)):
            assert (await client.delete(job, headers=head)).status_code == status
        assert (await client.get(job, headers=heads[3])).json()["state"] == "queued"
        for method, path in (("DELETE", ""), ("GET", "/results")):
            got = [await client.request(method, f"{job}{path}", headers=heads[4]) for _ in "ab"]
            assert (got[1].status_code, got[1].json()["code"]) == (429, "rate_limited")
        assert (await client.get("/v1/jobs", headers=heads[4])).status_code == 200
        form = {"content-type": "multipart/form-data; boundary=b"}
        for path, kind, fine in ((where, JSON_LINES, 202), ("/v1/files", form, 400)):
            asked = [{**head, **kind} for head in heads]
            async with contextlib.AsyncExitStack() as open_ones:
                answer = await client.post(path, content=lines(1), headers=asked[0])
                assert answer.status_code == fine
                async with asyncio.timeout(20):
                    while answer.status_code == fine:
                        await open_ones.enter_async_context(_half_sent(gateway.url, path, asked[0]))
                        answer = await client.post(path, content=lines(1), headers=asked[0])
                assert answer.headers["x-inferbus-error-code"] == "too_many_in_flight"
                answer = await client.post(path, content=lines(1), headers=asked[1])
                assert answer.status_code == fine, "no other tenant has to wait"
            async with asyncio.timeout(20):
                # Who left makes room.
                answer = await client.post(path, content=lines(1), headers=asked[0])
                while answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                    answer = await client.post(path, content=lines(1), headers=asked[0])
            assert answer.status_code == fine


@contextlib.asynccontextmanager
async def _half_sent(url: str, path: str, head: dict[str, str]) -> AsyncIterator[None]:
    """Hold an upload open that does not come to its end."""
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
    sent = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-length: 9000"]
    sent += [f"{name}: {value}" for name, value in head.items()]
    writer.write("\r\n".join([*sent, "", "-"]).encode())
    await writer.drain()
    try:
        yield
    finally:
        writer.close()


@pytest.mark.timeout(120)
async def test_a_gateway_without_a_store_takes_no_jobs(side: GatewaySide) -> None:
    gateway = await side.gateway()
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False) as client:
        answer = await submit(client, side, lines(1))
        assert (answer.status_code, answer.json()["code"]) == (501, "jobs_not_configured")


@pytest.mark.timeout(120)
async def test_a_tenant_has_so_many_jobs_and_rows_and_no_more(
    side: GatewaySide, store: Objects, tmp_path: Path
) -> None:
    key = access.make_key(os.urandom(access.KEY_ENTROPY_BYTES))
    await put_key(side, key, "infer:*", tenant=f"t{secrets.token_hex(4)}")
    gateway = await side.gateway(
        key=key,
        INFERBUS_OBJECT_STORE_URL=(tmp_path / "objects").as_uri(),
        INFERBUS_TENANT_MAX_JOBS="2",
        INFERBUS_TENANT_MAX_JOB_ROWS="10",
    )

    def code(answer: httpx.Response) -> tuple[int, str]:
        assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code, answer.json()["code"]

    async with httpx.AsyncClient(
        base_url=gateway.url,
        timeout=20,
        trust_env=False,
        headers={"authorization": f"Bearer {key}"},
    ) as client:
        many = await submit(client, side, lines(11))
        assert code(many) == (429, "too_many_job_rows")
        first = await submit(client, side, lines(6), **{"idempotency-key": f"k-{side.model}"})
        assert first.status_code == 202
        assert code(await submit(client, side, lines(5))) == (429, "too_many_job_rows")
        assert (await submit(client, side, lines(4))).status_code == 202
        assert code(await submit(client, side, lines(1))) == (429, "too_many_jobs")
        later = {"prefer": "respond-async"}
        single = await client.post(side.path, json=rows([1, 2, 3]), headers=later)
        assert single.headers["x-inferbus-error-code"] == "too_many_jobs"
        again = await submit(client, side, lines(6), **{"idempotency-key": f"k-{side.model}"})
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        for command in await commands(side, jobs.parse_id(first.json()["id"]) or b""):
            await finish(side, store, command, fail=True)
        await ended(client, first.json()["id"])
        retried = await client.post(f"/v1/jobs/{first.json()['id']}/retry")
        assert retried.status_code == 202, "what has ended counts no more"
        assert code(await submit(client, side, lines(1))) == (429, "too_many_jobs")


async def _nobody_waits(side: GatewaySide, store: Objects, http: httpx.AsyncClient) -> None:
    """A single request that prefers its answer later is a job of one row."""
    head = {"prefer": "respond-async, wait=1"}
    answer = await http.post(side.path, json=rows([1, 2, 3], id="mine"), headers=head)
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    where = answer.headers["location"]
    assert answer.json() == {"job": where}
    name = where.rpartition("/")[2]
    (command,) = await commands(side, jobs.parse_id(name) or b"")
    await finish(side, store, command)
    await ended(http, name)
    (line,) = await results(http, name)
    row = json.loads(line)
    assert (row["id"], row["status"], row["outputs"][0]["data"]) == ("mine", "ok", [1.0, 2.0, 3.0])
    keyed = head | {"idempotency-key": f"once-{side.model}"}
    twice = [await http.post(side.path, json=rows([4, 5, 6]), headers=keyed) for _ in range(2)]
    assert {(one.status_code, one.headers["location"]) for one in twice} == {
        (202, twice[0].headers["location"])
    }
    assert twice[0].headers["location"] != where
    other = await http.post(side.path, json=rows([7, 8, 9]), headers=keyed)
    assert other.headers["x-inferbus-error-code"] == "idempotency_key_reused"
    # What makes two requests two is all that was asked, not the tensors alone.
    pinned = side.path.replace("/infer", f"/versions/{side.version}/infer")
    for path, body in (
        (side.path, rows([4, 5, 6], id="mine")),
        (side.path, rows([4, 5, 6], outputs=[{"name": "y"}])),
        (pinned, rows([4, 5, 6])),
    ):
        other = await http.post(path, json=body, headers=keyed)
        assert other.headers["x-inferbus-error-code"] == "idempotency_key_reused"
    empty = await http.post(side.path, json=rows([4, 5, 6]), headers=head | {"idempotency-key": ""})
    assert empty.headers["x-inferbus-error-code"] == "invalid_request"
    bad = await http.post(side.path, json={"inputs": []}, headers=head)
    assert (bad.status_code, set(bad.json())) == (400, {"error"})
    plain = await http.post(side.path, json=rows([1, 2, 3]), headers={"prefer": "return=minimal"})
    assert plain.status_code == 200
