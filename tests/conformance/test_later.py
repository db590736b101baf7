"""Requests that nobody waits for, of models with outputs that have no JSON form: what is read."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from inferbus_dev.stack import Stack
from tests.support.job_side import ended
from tests.support.onnx_types import NAME, TYPES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="session"),
]

LATER = {"prefer": "respond-async"}
FORM = "application/vnd.apache.parquet"


@pytest_asyncio.fixture(loop_scope="session")
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    head = {"authorization": f"Bearer {stack.api_key}"}
    async with httpx.AsyncClient(
        base_url=stack.http, headers=head, timeout=40, trust_env=False
    ) as client:
        yield client


def halves(n_rows: int) -> np.ndarray[Any, Any]:
    """Return the least and the greatest that FP16 holds, negative, in each row."""
    return np.array([[2.0**-24, -65504.0]] * n_rows, np.float16)


def brains(n_rows: int) -> np.ndarray[Any, Any]:
    return np.array([[2.0**-133, -1e38]] * n_rows, ml_dtypes.bfloat16)


def body(
    n_rows: int, given: tuple[str, str, Any], *outputs: dict[str, Any]
) -> tuple[bytes, dict[str, str]]:
    """Return a request of which one input is binary, and its head."""
    name, datatype, values = given
    data = values.tobytes()
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": list(values.shape),
            "parameters": {"binary_data_size": len(data)},
        }
    ]
    if name == "in-FP16":
        blank = {"BOOL": False, "BYTES": "b"}
        inputs += [
            {
                "name": f"in-{kind}",
                "datatype": kind,
                "shape": [n_rows, 2],
                "data": [blank.get(kind, 3)] * 2 * n_rows,
            }
            for kind in TYPES
            if kind != "FP16"
        ]
    text = json.dumps({"id": "mine", "inputs": inputs, "outputs": outputs}).encode()
    return text + data, {"inference-header-content-length": str(len(text))}


def binary(name: str) -> dict[str, Any]:
    return {"name": name, "parameters": {"binary_data": True}}


async def done(http: httpx.AsyncClient, taken: httpx.Response) -> dict[str, Any]:
    """Return the job of a request that was taken, once it has ended."""
    assert taken.status_code == 202, taken.text
    return await ended(http, taken.headers["location"].rpartition("/")[2])


@pytest.mark.parametrize(
    ("model", "name", "output", "values", "kind"),
    [
        (NAME, "in-FP16", "out-FP16", halves, np.float16),
        ("bf16", "x", "y", brains, ml_dtypes.bfloat16),
    ],
)
async def test_halves_that_nobody_waits_for_are_read_as_parquet(  # noqa: PLR0917 -- a model's
    http: httpx.AsyncClient, model: str, name: str, output: str, values: Any, kind: Any
) -> None:
    path = f"/v2/models/{model}/infer"
    given = name, output.rpartition("-")[2] if model == NAME else "BF16", values(1)
    content, head = body(1, given, binary(output))
    at_once = await http.post(path, content=content, headers=head)
    assert at_once.status_code == 200, at_once.text
    at = int(at_once.headers["inference-header-content-length"])
    wanted = np.frombuffer(at_once.content[at:], kind).astype(np.float64).tolist()
    assert len(wanted) == 2
    job = await done(http, await http.post(path, content=content, headers=head | LATER))
    assert (job["state"], job["counts"]["ok"], job["counts"]["failed"]) == ("completed", 1, 0)
    results = f"/v1/jobs/{job['id']}/results"
    (line,) = (await http.get(results)).text.splitlines()
    told = json.loads(line)
    assert (told["id"], told["status"], told["error"]["code"]) == ("mine", "failed", "no_json_form")
    assert repr(output) in told["error"]["message"]
    assert "Parquet" in told["error"]["message"]
    assert "outputs" not in told
    answer = await http.get(results, headers={"accept": FORM})
    assert answer.headers["content-type"] == FORM
    (row,) = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    assert (row["row"], row["id"], row["status"]) == (0, "mine", "ok")
    assert (row["request_id"], row["error_code"]) == (told["request_id"], None)
    assert row[output] == wanted
    own = {"row", "request_id", "id", "status", "error_code", "error_message"}
    assert {key for key, value in row.items() if value is not None} <= own | {output}
    retried = await http.post(f"/v1/jobs/{job['id']}/retry")
    assert retried.status_code == 400, "it has not failed"


async def test_halves_beside_others_spoil_only_what_asks_for_them(http: httpx.AsyncClient) -> None:
    content, head = body(1, ("in-FP16", "FP16", halves(1)), {"name": "out-FP32"})
    asked = await http.post(f"/v2/models/{NAME}/infer", content=content, headers=head | LATER)
    job = await done(http, asked)
    (line,) = (await http.get(f"/v1/jobs/{job['id']}/results")).text.splitlines()
    told = json.loads(line)
    assert told["status"] == "ok", told
    assert [(one["name"], one["data"]) for one in told["outputs"]] == [("out-FP32", [3.0, 3.0])]


@pytest.mark.parametrize("output", [{"name": "out-FP16"}, binary("out-FP16")])
async def test_halves_that_could_be_read_in_no_form_are_refused(
    http: httpx.AsyncClient, output: dict[str, Any]
) -> None:
    """JSON lines have no halves, Parquet has no row of several, and neither is asked as JSON."""
    n_rows = 2 if "parameters" in output else 1
    content, head = body(n_rows, ("in-FP16", "FP16", halves(n_rows)), output)
    path = f"/v2/models/{NAME}/infer"
    refused = await http.post(path, content=content, headers=head | LATER)
    assert refused.status_code == 400, refused.text
    assert refused.headers["x-inferbus-error-code"] == "invalid_request"
    assert "'out-FP16'" in refused.json()["error"]
    if "parameters" in output:
        assert (await http.post(path, content=content, headers=head)).status_code == 200
