"""Forms of a job's input and of its results beside JSON lines, at a gateway process."""

from __future__ import annotations

import io
import json
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inferbus_kit.objects import Objects, open_store
from tests.support.gateway_side import GatewaySide
from tests.support.https_origin import HttpsOrigin
from tests.support.job_side import commands, ended, finish, job_id, kept, results
from tests.support.scripted_worker import echo


@pytest.fixture
async def side(side: GatewaySide) -> GatewaySide:
    await side.worker(echo)
    return side


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects(open_store((tmp_path / "objects").as_uri()))


@pytest.mark.timeout(120)
async def test_parquet_and_uris(side: GatewaySide, store: Objects, tmp_path: Path) -> None:
    """One gateway for both, since starting it is what costs."""
    origin = HttpsOrigin(tmp_path)
    await origin.start()
    gateway = await side.gateway(
        INFERBUS_OBJECT_STORE_URL=(tmp_path / "objects").as_uri(),
        INFERBUS_JOB_URI_SOURCES=f"{origin.url}, s3://rows",
        INFERBUS_JOB_URI_NETWORKS="127.0.0.0/8,::1/128",
        SSL_CERT_FILE=str(origin.authority),
    )
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False) as http:
        await _parquet_in_and_out(side, store, http)
        await _named_inputs(side, store, http, origin)
    await origin.stop()


async def _named_inputs(
    side: GatewaySide, store: Objects, http: httpx.AsyncClient, origin: HttpsOrigin
) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"x": [[1.0, 2, 3]] * 3}), out)
    origin.answers = {
        "/rows.jsonl": (200, {}, b'{"x": [1, 2, 3]}\n' * 300),
        "/rows.parquet?v=1": (200, {}, out.getvalue()),
        "/rows": (200, {}, out.getvalue()),
    }
    for named, n_rows in (
        ({"uri": f"{origin.url}/rows.jsonl"}, 300),
        ({"uri": f"{origin.url}/rows.parquet?v=1"}, 3),
        ({"uri": f"{origin.url}/rows", "format": "parquet"}, 3),
    ):
        wish = {"model": side.model, "client_job_id": named["uri"], "input": named}
        answers = [await http.post("/v1/jobs", json=wish) for _ in range(2)]
        assert [one.status_code for one in answers] == [202, 200], answers[0].text
        assert answers[0].json()["counts"]["rows"] == n_rows
        assert answers[0].json()["id"] == answers[1].json()["id"]
        for command in await commands(side, job_id(answers[0])):
            await finish(side, store, command)
        lines = await results(http, (await ended(http, answers[0].json()["id"]))["id"])
        assert {json.loads(line)["outputs"][0]["data"][2] for line in lines} == {3.0}
    before = kept(side)
    for uri, want in (
        (f"{origin.url}/none", "uri_unreadable"),
        ("https://localhost/rows.jsonl", "uri_refused"),
        ("http://169.254.169.254/latest", "uri_refused"),
        (f"https://me@localhost:{origin.port}/rows.jsonl", "uri_refused"),
        ("file:///etc/passwd", "uri_refused"),
    ):
        refused = await http.post("/v1/jobs", json={"model": side.model, "input": {"uri": uri}})
        assert (refused.status_code, refused.json()["code"]) == (422, want), uri
    ask = {"model": side.model, "input": {"uri": origin.url}}
    for wrong in (
        {},
        {**ask, "input": origin.url},
        {**ask, "input": {"uri": 5}},
        {**ask, "more": 1},
        {**ask, "client_job_id": "x" * 300},
        {**ask, "input": {"uri": "x" * 20_000}},
    ):
        refused = await http.post("/v1/jobs", json=wrong)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request"), wrong
    unknown = await http.post("/v1/jobs", json={**ask, "model": "no-such"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")
    assert await side.until(lambda: kept(side) == before)


async def _parquet_in_and_out(side: GatewaySide, store: Objects, http: httpx.AsyncClient) -> None:
    head = {"content-type": "application/vnd.apache.parquet", "idempotency-key": "columns"}
    where = f"/v1/jobs?model={side.model}"
    out = io.BytesIO()
    pq.write_table(pa.table({"x": [[number, 0, 0] for number in range(600)]}), out)
    answers = [await http.post(where, content=out.getvalue(), headers=head) for _ in range(2)]
    assert [one.status_code for one in answers] == [202, 200], answers[0].text
    for command in await commands(side, job_id(answers[0])):
        await finish(side, store, command)
    job = await ended(http, answers[0].json()["id"])
    assert job["counts"]["ok"] == 600
    path = f"/v1/jobs/{job['id']}/results"
    asked = [
        await http.get(path, headers={"accept": "application/vnd.apache.parquet"}),
        await http.get(f"{path}?format=parquet"),
    ]
    assert asked[0].content == asked[1].content
    assert asked[0].headers["content-type"] == "application/vnd.apache.parquet"
    found = pq.read_table(io.BytesIO(asked[0].content)).to_pylist()
    assert [(row["row"], row["status"], row["y"]) for row in found] == [
        (number, "ok", [float(number), 0.0, 0.0]) for number in range(600)
    ]
    as_lines = [json.loads(line) for line in await results(http, job["id"])]
    assert [row["request_id"] for row in found] == [row["request_id"] for row in as_lines]
    assert (await http.get(f"{path}?format=csv")).status_code == 400
    del head["idempotency-key"]
    before = kept(side)
    for body, want in ((b"", 400), (b"PAR1" * 9, 400), (out.getvalue()[:-9], 400)):
        refused = await http.post(where, content=body, headers=head)
        assert (refused.status_code, refused.json()["code"]) == (want, "invalid_request")
    assert await side.until(lambda: kept(side) == before)
