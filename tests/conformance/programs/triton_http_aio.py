"""tritonclient's asyncio client over HTTP."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import tritonclient.http.aio as http
from bearer import Bearer
from keys import UNKNOWN, WRONG_HEAD
from tritonclient.utils import InferenceServerException


async def main(address: str) -> None:
    async with http.InferenceServerClient(address) as client:
        client.register_plugin(Bearer())
        assert await client.is_server_ready()
        assert await client.is_model_ready("breast-cancer")
        assert (await client.get_model_config("breast-cancer"))["max_batch_size"] > 0
        assert (await client.get_inference_statistics("breast-cancer"))["model_stats"]
        assert await client.get_model_repository_index()

        async def ask(number: int) -> int:
            rows = http.InferInput("features", [1, 30], "FP32")
            rows.set_data_from_numpy(
                np.full((1, 30), number, np.float32), binary_data=number % 2 == 0
            )
            got = await client.infer(
                "breast-cancer",
                [rows],
                request_id=str(number),
                response_compression_algorithm="gzip" if number % 3 else None,
            )
            assert got.as_numpy("probabilities").shape == (1, 2)
            return int(got.get_response()["id"])

        assert await asyncio.gather(*map(ask, range(40))) == list(range(40))
        client.unregister_plugin()
        said = ""
        try:
            await client.get_model_metadata("breast-cancer", headers=WRONG_HEAD)
        except InferenceServerException as error:
            said = str(error)
        assert said.startswith(f"[401] {UNKNOWN}"), said
    sys.stdout.write("fine\n")


asyncio.run(main(sys.argv[1]))
