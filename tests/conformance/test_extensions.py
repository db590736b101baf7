"""The extensions that a gateway advertises, each used; and what it does not offer, refused."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from inferbus_dev.stack import Stack
from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.gen import open_inference_pb2 as pb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="session"),
]

MODEL = "/v2/models/breast-cancer"
ROW = bytes(120)


@pytest_asyncio.fixture(loop_scope="session")
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    head = {"authorization": f"Bearer {stack.api_key}"}
    async with httpx.AsyncClient(
        base_url=stack.http, headers=head, timeout=40, trust_env=False
    ) as client:
        yield client


def asked(parameters: dict[str, Any] | None = None, **output: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "features", "shape": [1, 30], "datatype": "FP32", "data": [0] * 30}],
        "outputs": [{"name": "probabilities", "parameters": output}],
        "parameters": parameters or {},
    }


async def binary_tensor_data(http: httpx.AsyncClient) -> None:
    body = asked(binary_data=True)
    del body["inputs"][0]["data"]
    body["inputs"][0]["parameters"] = {"binary_data_size": len(ROW)}
    head = json.dumps(body).encode()
    size = {"inference-header-content-length": str(len(head))}
    answer = await http.post(f"{MODEL}/infer", content=head + ROW, headers=size)
    assert answer.status_code == 200, answer.text
    at = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:at])["outputs"]
    assert output["parameters"] == {"binary_data_size": 8}
    assert sum(struct.unpack("<2f", answer.content[at:])) == pytest.approx(1.0, abs=1e-5)


async def classification(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{MODEL}/infer", json=asked(classification=1))
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 1])
    assert re.fullmatch(r"[01]\.\d+:[01](:\w+)?", output["data"][0])


async def model_configuration(http: httpx.AsyncClient) -> None:
    said = (await http.get(f"{MODEL}/config")).json()
    assert said["name"] == "breast-cancer"
    assert said["max_batch_size"] > 0
    assert [one["dims"] for one in said["input"]] == [[30]]


async def model_repository(http: httpx.AsyncClient) -> None:
    found = (await http.post("/v2/repository/index", json={"ready": True})).json()
    assert ("breast-cancer", "READY") in {(one["name"], one["state"]) for one in found}
    loaded = await http.post("/v2/repository/models/breast-cancer/load", json={})
    assert loaded.status_code == 200, loaded.text
    unknown = await http.post("/v2/repository/models/nobody/unload", json={})
    assert unknown.status_code != 200


async def statistics(http: httpx.AsyncClient) -> None:
    async def counted() -> int:
        (one,) = (await http.get(f"{MODEL}/stats")).json()["model_stats"]
        return int(one["inference_count"])

    before = await counted()
    assert (await http.post(f"{MODEL}/infer", json=asked())).status_code == 200
    assert await counted() == before + 1


WORK: list[Callable[[httpx.AsyncClient], Awaitable[None]]] = [
    binary_tensor_data,
    classification,
    model_configuration,
    model_repository,
    statistics,
]


async def test_what_is_advertised_is_what_works(http: httpx.AsyncClient) -> None:
    said = (await http.get("/v2")).json()
    assert said["extensions"] == [one.__name__ for one in WORK]
    for uses in WORK:
        await uses(http)


@pytest.mark.parametrize(
    "given", [{"sequence_id": 7}, {"sequence_id": "a"}, {"sequence_start": True}]
)
async def test_a_request_of_a_sequence_is_refused(
    stack: Stack, http: httpx.AsyncClient, given: dict[str, Any]
) -> None:
    """Answered alone it would be wrong without a sign of it."""
    answer = await http.post(f"{MODEL}/infer", json=asked(given))
    assert answer.status_code == 400
    assert "sequences are not offered" in answer.json()["error"]
    question = pb.ModelInferRequest(model_name="breast-cancer", raw_input_contents=[ROW])
    question.inputs.add(name="features", datatype="FP32", shape=[1, 30])
    kinds = {int: "int64_param", str: "string_param", bool: "bool_param"}
    for name, value in given.items():
        setattr(question.parameters[name], kinds[type(value)], value)
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(question, timeout=10)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "sequences are not offered" in str(caught.value.details())
        question.ClearField("parameters")
        assert (await ask(question, timeout=10)).model_name == "breast-cancer"
