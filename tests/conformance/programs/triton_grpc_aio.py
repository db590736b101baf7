"""tritonclient's asyncio client over gRPC, streams included."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc
from bearer import Bearer
from grpc import RpcError, StatusCode
from keys import UNKNOWN, WRONG_HEAD
from tritonclient.utils import InferenceServerException


def rows(number: int) -> Any:
    made = grpc.InferInput("features", [1, 30], "FP32")
    made.set_data_from_numpy(np.full((1, 30), number, np.float32))
    return made


async def questions(n_questions: int) -> AsyncIterator[dict[str, Any]]:
    for number in range(n_questions):
        yield {
            "model_name": "breast-cancer",
            "inputs": [rows(number)],
            "request_id": str(number),
        }


async def main(address: str) -> None:
    async with grpc.InferenceServerClient(address) as client:
        client.register_plugin(Bearer())
        assert await client.is_server_ready()
        assert await client.is_model_ready("breast-cancer")
        assert (await client.get_model_config("breast-cancer")).config.max_batch_size > 0

        async def ask(number: int) -> int:
            got = await client.infer("breast-cancer", [rows(number)], request_id=str(number))
            assert got.as_numpy("probabilities").shape == (1, 2)
            return int(got.get_response().id)

        assert await asyncio.gather(*map(ask, range(40))) == list(range(40))
        number = 0
        async for result, error in client.stream_infer(questions(100)):
            assert error is None, error
            assert result.get_response().id == str(number)
            number += 1
        assert number == 100
        client.unregister_plugin()
        said = ""
        try:
            await client.infer("breast-cancer", [rows(0)], headers=WRONG_HEAD)
        except InferenceServerException as error:
            said = str(error)
        assert said.startswith(f"[StatusCode.UNAUTHENTICATED] {UNKNOWN}"), said
        # Where the answer comes while the client still sends, grpc.aio may report its own sending.
        refused = None
        while refused is None or "SendMessageOperation" in str(refused.debug_error_string()):
            try:
                async for _ in client.stream_infer(questions(1), headers=WRONG_HEAD):
                    pass
            except RpcError as error:
                refused = error
            assert refused is not None
        assert refused.code() == StatusCode.UNAUTHENTICATED
        assert UNKNOWN in refused.details()
    sys.stdout.write("fine\n")


asyncio.run(main(sys.argv[1]))
