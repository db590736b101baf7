"""The SDK of KServe over gRPC."""

from __future__ import annotations

import asyncio
import sys

from arrays import ARRAYS, same
from kserve import InferenceGRPCClient, InferInput, InferRequest


def request(*names: str) -> InferRequest:
    inputs = []
    for name, array in ARRAYS.items():
        one = InferInput(f"in-{name}", list(array.shape), name)
        one.set_data_from_numpy(array, binary_data=name in names)
        inputs.append(one)
    return InferRequest(model_name="every-type", infer_inputs=inputs, request_id="mine")


async def main(address: str) -> None:
    client = InferenceGRPCClient(address, timeout=30)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("every-type")
    got = await client.infer(request(*ARRAYS))
    assert got.id == "mine"
    for output in got.outputs:
        name = output.name.removeprefix("out-")
        assert same(output.as_numpy(), name), name
    await client.close()
    sys.stdout.write("fine\n")


asyncio.run(main(sys.argv[1]))
