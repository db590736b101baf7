"""The SDK of KServe over REST."""

from __future__ import annotations

import asyncio
import sys

import httpx
import numpy as np
from arrays import ARRAYS, same
from keys import HEAD, UNKNOWN, WRONG_HEAD
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(*, binary: bool) -> InferRequest:
    inputs = []
    for name, array in ARRAYS.items():
        one = InferInput(f"in-{name}", list(array.shape), name)
        one.set_data_from_numpy(array, binary_data=binary or name == "FP16")
        inputs.append(one)
    return InferRequest(
        model_name="every-type",
        infer_inputs=inputs,
        request_id="mine",
        parameters={"binary_data_output": True},
    )


async def main(address: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30, retries=0))
    url = f"http://{address}"
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "every-type", headers=HEAD)
    assert not await client.is_model_ready(url, "every-type", headers=WRONG_HEAD)
    for binary in (True, False):
        given = request(binary=binary)
        # It adds to the headers that it is given.
        got = await client.infer(url, given, model_name="every-type", headers=dict(HEAD))
        assert got.id == "mine"
        for output in got.outputs:
            name = output.name.removeprefix("out-")
            assert same(output.as_numpy(), name), name
    rows = InferInput("features", [1, 30], "FP32")
    rows.set_data_from_numpy(np.ones((1, 30), np.float32), binary_data=False)
    plain = InferRequest(model_name="breast-cancer", infer_inputs=[rows])
    got = await client.infer(url, plain, model_name="breast-cancer", headers=dict(HEAD))
    assert {one.name for one in got.outputs} == {"label", "probabilities"}
    refused = None
    try:
        await client.infer(url, plain, model_name="breast-cancer", headers=dict(WRONG_HEAD))
    except httpx.HTTPStatusError as error:
        refused = error
    assert refused is not None
    assert refused.response.status_code == 401
    assert UNKNOWN in str(refused)
    await client.close()
    sys.stdout.write("fine\n")


asyncio.run(main(sys.argv[1]))
