"""Clients that others wrote, unchanged, each in a process of its own, against a running stack."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from inferbus_dev.stack import Stack
from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.door import METHODS
from inferbus_gateway.gen import open_inference_pb2 as pb
from tests.support import clients, stacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="session"),
]


def fine(done: clients.Done) -> None:
    assert (done.code, done.out) == (0, "fine\n"), done.err[-3000:]


def http(stack: Stack) -> str:
    return stack.http.removeprefix("http://")


def key(stack: Stack) -> dict[str, str]:
    return {"INFERBUS_API_KEY": stack.api_key}


@pytest.mark.parametrize("program", ["triton_http.py", "triton_http_aio.py"])
async def test_tritonclient_over_http(stack: Stack, program: str) -> None:
    fine(await clients.run("triton", program, http(stack), env=key(stack)))


@pytest.mark.parametrize("program", ["triton_grpc.py", "triton_grpc_aio.py"])
async def test_tritonclient_over_grpc(stack: Stack, program: str) -> None:
    fine(await clients.run("triton", program, stack.grpc, env=key(stack)))


@pytest.mark.skipif(bool(clients.NO_KSERVE), reason=clients.NO_KSERVE)
@pytest.mark.parametrize("over", ["rest", "grpc"])
async def test_kserve(stack: Stack, over: str) -> None:
    address = http(stack) if over == "rest" else stack.grpc
    fine(await clients.run("kserve", f"kserve_{over}.py", address, env=key(stack)))


async def test_a_client_that_only_knows_reflection(stack: Stack) -> None:
    program = clients.PROGRAMS / "reflection.py"
    fine(await clients.call(sys.executable, program, stack.grpc))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_buf_curl_lists_and_calls_by_reflection(stack: Stack, version: str) -> None:
    """As grpcurl does; it asks one version of the service and no other."""
    row = {"name": "features", "datatype": "FP32", "shape": [1, 30]}
    raw = base64.b64encode(bytes(120)).decode()
    question = {"modelName": "breast-cancer", "inputs": [row], "rawInputContents": [raw]}

    async def curl(*more: str, path: str = "") -> clients.Done:
        return await clients.call(
            Path(sys.executable).parent / "buf",
            *("curl", "--protocol", "grpc", "--http2-prior-knowledge"),
            *("--reflect-protocol", f"grpc-{version}", *more, f"http://{stack.grpc}{path}"),
        )

    done = await curl("--list-services")
    assert done.code == 0, done.err
    assert set(done.out.split()) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    done = await curl("--list-methods")
    assert done.code == 0, done.err
    assert {f"{SERVICE}/{one}" for one in METHODS} < set(done.out.split())
    done = await curl("--data", json.dumps(question), path=f"/{SERVICE}/ModelInfer")
    assert done.code == 0, done.err
    assert json.loads(done.out)["modelName"] == "breast-cancer"


@pytest.mark.skipif(bool(clients.NO_PERF), reason=clients.NO_PERF)
@pytest.mark.parametrize("over", ["http", "grpc"])
@pytest.mark.parametrize(
    ("model", "more"),
    [("breast-cancer", ("-b", "2")), ("minilm", ("--shape", "text:2"))],
    ids=["breast-cancer", "minilm"],
)
async def test_perf_analyzer(stack: Stack, over: str, model: str, more: tuple[str, ...]) -> None:
    home = clients.environment("perf")
    done = await clients.call(
        home / "bin" / "perf_analyzer",
        *more,
        *("-m", model, "-i", over, "-u", http(stack) if over == "http" else stack.grpc),
        *("--concurrency-range", "4", "--string-data", "a cat sat on the mat"),
        *("--measurement-mode", "count_windows", "--measurement-request-count", "50"),
        *("--stability-percentage", "999", "--max-trials", "3"),
        *("-H", f"authorization:Bearer {stack.api_key}"),
        env=clients.programs_of(home),
    )
    assert done.code == 0, done.out + done.err
    said = re.search(r"Inference count: (\d+)", done.out)
    assert said is not None, done.out
    assert int(said[1]) >= 50
    assert re.search(r"Avg request latency: [1-9]\d* usec .*queue .*compute infer [1-9]", done.out)


@pytest.mark.skipif(bool(clients.NO_PERF), reason=clients.NO_PERF)
@pytest.mark.parametrize("over", ["http", "grpc"])
async def test_perf_analyzer_with_a_wrong_key(stack: Stack, over: str) -> None:
    home = clients.environment("perf")
    done = await clients.call(
        home / "bin" / "perf_analyzer",
        *("-m", "breast-cancer", "-i", over, "-u", http(stack) if over == "http" else stack.grpc),
        *("-H", "authorization:Bearer wrong"),
        env=clients.programs_of(home),
    )
    assert done.code != 0
    assert "the key or token is unknown" in done.out + done.err


async def test_what_the_openai_sdk_raises_by_key(stack: Stack) -> None:
    """Here and not in its own module: what is hostile comes between, and spends the bad keys."""
    infers = ("--scope", "infer:*", "--tenant", "spent", "--rate", "0.01", "--burst", "1")
    reads = await stacks.make_key(stack, "reads", "--scope", "models:read")
    one = await stacks.make_key(stack, "one", *infers)
    program = clients.PROGRAMS / "openai_keys.py"
    argv = (stack.http, stack.api_key, reads, one)
    fine(await clients.call(sys.executable, program, *argv))


async def test_our_numbers_are_those_of_tritonclient() -> None:
    """Every field and method of ours is one of its own, with the same number and type."""
    done = await clients.run("triton", "triton_numbers.py")
    assert done.code == 0, done.err
    theirs = json.loads(done.out)

    def compare(message: Any, known: dict[str, Any]) -> None:
        for field in message.fields:
            assert known.get(field.name) == [field.number, field.type], field.full_name
        for nested in message.nested_types:
            compare(nested, known[nested.name])

    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        compare(message, theirs["messages"][name])
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    for one in service.methods:
        assert theirs["methods"][one.name] == [
            one.input_type.name,
            one.output_type.name,
            one.client_streaming,
            one.server_streaming,
        ]
