"""A running gateway, asked by a client that others wrote and by clients that mean harm.

tritonclient runs in a process of its own: its generated modules and its transport stay out of ours.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from inferbus_schemas import messages as m
from tests.support import docs_page
from tests.support.gateway_process import GatewayProcess
from tests.support.gateway_side import GatewaySide
from tests.support.scripted_worker import echo, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ONE = rows([1.0, 2.5, -3.0])
LEAK = re.compile(
    r"Traceback|\.py\b|File \"|site-packages|0x[0-9a-f]{6,}|127\.0\.0\.1:\d+|/(usr|home|tmp)/"
)

SYNC = """
import sys
import numpy as np
import tritonclient.http as http

url, model = sys.argv[1:]
client = http.InferenceServerClient(url)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
assert client.is_model_ready(model, "1")
meta = client.get_model_metadata(model)
assert meta["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], meta
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
data = np.array([[1, 2.5, -3], [4, 5, 6]], np.float32)
for sent in (True, False):
    given = http.InferInput("x", [2, 3], "FP32")
    given.set_data_from_numpy(data, binary_data=sent)
    for wanted in (None, [http.InferRequestedOutput("y", binary_data=True)],
                   [http.InferRequestedOutput("y", binary_data=False)]):
        for packed in (None, "gzip", "deflate"):
            got = client.infer(model, [given], outputs=wanted, request_id="r1",
                               request_compression_algorithm=packed, timeout=5_000_000)
            assert np.array_equal(got.as_numpy("y"), data), got.get_response()
            assert got.get_response()["id"] == "r1"
try:
    client.infer("nobody", [given])
except http.InferenceServerException as error:
    assert "Request for unknown model" in error.message(), error
else:
    raise AssertionError("an unknown model was answered")
bad = http.InferInput("x", [2, 3], "FP64")
bad.set_data_from_numpy(data.astype(np.float64))
try:
    client.infer(model, [bad])
except http.InferenceServerException as error:
    assert "FP32" in error.message() and error.status() == "400", error
else:
    raise AssertionError("another datatype was answered")
futures = [client.async_infer(model, [given]) for _ in range(20)]
assert all(np.array_equal(one.get_result().as_numpy("y"), data) for one in futures)
print("fine")
"""

AIO = """
import asyncio, sys
import numpy as np
import tritonclient.http.aio as http

async def main(url, model):
    async with http.InferenceServerClient(url) as client:
        assert await client.is_server_ready() and await client.is_model_ready(model)

        async def ask(number):
            data = np.full((1, 3), number, np.float32)
            given = http.InferInput("x", [1, 3], "FP32")
            given.set_data_from_numpy(data, binary_data=number % 2 == 0)
            got = await client.infer(model, [given])
            assert np.array_equal(got.as_numpy("y"), data), number

        await asyncio.gather(*map(ask, range(50)))
    print("fine")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def side(side: GatewaySide, gateway: GatewayProcess) -> GatewaySide:
    await side.worker(echo)
    await side.serves(gateway)
    return side


@pytest.mark.parametrize("program", [SYNC, AIO], ids=["sync", "aio"])
async def test_tritonclient(side: GatewaySide, gateway: GatewayProcess, program: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, f"127.0.0.1:{gateway.port}", side.model],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "fine\n"


def body(**changes: object) -> bytes:
    one = ONE["inputs"][0] | changes
    return json.dumps({"inputs": [one]}).encode()


def hostile() -> dict[str, tuple[bytes, dict[str, str], set[int]]]:
    """Return bodies, headers and the statuses they may get; its bombs take seconds to make."""
    return {
        "empty": (b"", {}, {400}),
        "not json": (b"hello", {}, {400}),
        "json of another kind": (b"[]", {}, {400}),
        "deep": (b"[" * 100_000, {}, {400}),
        "deep data": (
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":' + b"[" * 100_000,
            {},
            {400},
        ),
        "huge int": (body(data=[10**400, 1, 1]), {}, {400}),
        "1e308 as FP32": (body(data=[1e308, 1, 1]), {}, {400}),
        "NaN": (body(data=[float("nan"), 1, 1]), {}, {400}),
        "lone surrogate": (b'{"id":"\\ud800","inputs":[]}', {}, {400}),
        "double key": (b'{"inputs":[],"inputs":[]}', {}, {400}),
        "shape overflow": (body(shape=[2**62, 2**62]), {}, {400}),
        "negative shape": (body(shape=[-1, 3]), {}, {400}),
        "2^31 rows": (body(shape=[2**31, 3]), {}, {413}),
        "too few elements": (body(data=[1.0]), {}, {400}),
        "other name": (body(name="${jndi:ldap://x}"), {}, {400}),
        "other datatype": (body(datatype="\u202eFP32"), {}, {400}),
        "json length past the body": (body(), {"Inference-Header-Content-Length": "99999"}, {400}),
        "json length no number": (body(), {"Inference-Header-Content-Length": "1e3"}, {400}),
        "raw of odd length": (b"abc", {"Inference-Header-Content-Length": "0"}, {400}),
        "5 MiB": (b" " * (5 << 20), {}, {413}),
        "gzip bomb": (gzip.compress(bytes(200 << 20)), {"Content-Encoding": "gzip"}, {413}),
        "deflate bomb": (zlib.compress(bytes(200 << 20)), {"Content-Encoding": "deflate"}, {413}),
        "gzip cut off": (gzip.compress(body())[:-9], {"Content-Encoding": "gzip"}, {400}),
        "not gzip": (body(), {"Content-Encoding": "gzip"}, {400}),
        "unknown encoding": (body(), {"Content-Encoding": "br"}, {415}),
    }


PATHS = {
    "/v2/models/nobody/infer": {404},
    "/v2/models/..%2f..%2fetc/infer": {404},
    "/v2/models/%2e%2e/infer": {404},
    "/v2/models/a%0d%0aset-cookie:x/infer": {400, 404},
    "/v2/models/" + "a" * 300 + "/infer": {404},
    "/v2/models/%e2%80%ae/infer": {404},
    "/v2/models/%ff%fe/infer": {400, 404},
    "/v2/models/%00/infer": {400, 404},
    "/v2/models//infer": {404},
    "/v2/nothing": {404},
    "/nothing": {404},
}


async def test_bodies_that_lie_are_refused_and_cost_little(
    side: GatewaySide, gateway: GatewayProcess
) -> None:
    async with httpx.AsyncClient(timeout=20) as http:
        assert (await http.post(gateway.url + side.path, json=ONE)).status_code == 200
        before = _peak_mib(gateway)
        for name, (content, headers, statuses) in hostile().items():
            got = await http.post(gateway.url + side.path, content=content, headers=headers)
            _check_refusal(name, got, statuses)
        # The peak: what a bomb takes is given back before anyone could look.
        assert _peak_mib(gateway) - before < 50
        assert (await http.post(gateway.url + side.path, json=ONE)).status_code == 200
    # Nothing of it reached the bus.
    assert {said.outcome for _, said in side.predictions} <= {m.OUTCOME_OK}


async def test_paths_that_lie_are_refused(side: GatewaySide, gateway: GatewayProcess) -> None:
    async with httpx.AsyncClient(timeout=20) as http:
        for path, statuses in PATHS.items():
            _check_refusal(path, await http.post(gateway.url + path, json=ONE), statuses)
        for method in ("GET", "PUT", "DELETE"):
            got = await http.request(method, gateway.url + side.path)
            _check_refusal(method, got, {405})
        got = await http.post(f"{gateway.url}/v2/models/nobody/infer", json=ONE)
        assert "Request for unknown model" in got.json()["error"]


async def test_every_line_of_the_log_is_json_whatever_was_sent(
    side: GatewaySide, gateway: GatewayProcess
) -> None:
    hostile = "a\x1b[31m${jndi:x}\u202e"
    async with httpx.AsyncClient(timeout=20) as http:
        await http.post(
            gateway.url + side.path, json=ONE | {"id": hostile}, headers={"User-Agent": "x\ty"}
        )
        await http.post(f"{gateway.url}/v2/models/{quote(hostile)}/infer", json=ONE)
    for line in gateway.log.read_text().splitlines():
        assert isinstance(json.loads(line), dict), line


async def test_the_openapi_document_describes_infer(
    side: GatewaySide, gateway: GatewayProcess
) -> None:
    async with httpx.AsyncClient(timeout=20) as http:
        document = (await http.get(f"{gateway.url}/openapi.json")).json()
    await asyncio.to_thread(docs_page.check, gateway.url)
    plain, versioned = "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"
    for path in (plain, versioned, "/v2", "/v2/models/{model}/ready", "/readyz"):
        assert path in document["paths"], path
    assert side.path.startswith("/v2/models/")


def _check_refusal(name: str, got: httpx.Response, statuses: set[int]) -> None:
    assert got.status_code in statuses, (name, got.status_code, got.text[:300])
    said = got.json()
    assert list(said) == ["error"], (name, said)
    assert said["error"], name
    assert re.fullmatch(r"[a-z_]+", got.headers["x-inferbus-error-code"]), name
    assert not LEAK.search(got.text), (name, got.text[:300])


def _peak_mib(gateway: GatewayProcess) -> float:
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024
