"""The SDK of KServe over gRPC."""

from __future__ import annotations

import asyncio
import sys

import grpc
from arrays import ARRAYS, same
from keys import HEAD, UNKNOWN, WRONG_HEAD
from kserve import InferenceGRPCClient, InferInput, InferRequest


def request(model: str, *, raw: bool) -> InferRequest:
    inputs = []
    for name, array in ARRAYS.items():
        if not raw and name == "FP16":
            continue
        one = InferInput(f"in-{name}", list(array.shape), name)
        one.set_data_from_numpy(array, binary_data=raw)
        inputs.append(one)
    return InferRequest(model_name=model, infer_inputs=inputs, request_id="mine")


async def main(address: str) -> None:
    client = InferenceGRPCClient(address, timeout=30)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("every-type", headers=tuple(HEAD.items()))
    for model, raw in (("every-type", True), ("listed-types", False)):
        got = await client.infer(request(model, raw=raw), headers=tuple(HEAD.items()))
        assert got.id == "mine"
        assert len(got.outputs) == len(ARRAYS) - (not raw)
        for output in got.outputs:
            name = output.name.removeprefix("out-")
            assert same(output.as_numpy(), name), name
    refused = None
    try:
        await client.infer(request("every-type", raw=True), headers=tuple(WRONG_HEAD.items()))
    except grpc.RpcError as error:
        refused = error
    assert refused is not None
    assert refused.code() == grpc.StatusCode.UNAUTHENTICATED
    assert UNKNOWN in refused.details()
    await client.close()
    sys.stdout.write("fine\n")


asyncio.run(main(sys.argv[1]))
