"""Reflection under both of its names, on a server of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from inferbus_gateway.api import reflection
from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.api.rpc_room import Ends, Room
from inferbus_gateway.hot.shares import Shares

Ask = Any


@pytest.fixture(params=[reflection.V1, reflection.V1ALPHA])
async def ask(request: pytest.FixtureRequest) -> AsyncIterator[Ask]:
    server = grpc.aio.server()
    room = Room(Shares("calls", 8, 8), Ends(lambda: bytes(16), str))
    reflection.add(server, (SERVICE,), room)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.stream_stream(
            f"/{request.param}/ServerReflectionInfo",
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )

        async def answers(*questions: bytes) -> list[pb.ServerReflectionResponse]:
            return [one async for one in method(iter(questions), timeout=20)]

        yield answers
    await server.stop(0)


async def test_every_service_can_be_listed_and_described(ask: Ask) -> None:
    wanted = {SERVICE, reflection.V1, reflection.V1ALPHA}
    (said,) = await ask(pb.ServerReflectionRequest(list_services="*").SerializeToString())
    assert {one.name for one in said.list_services_response.service} == wanted
    for name in wanted:
        question = pb.ServerReflectionRequest(file_containing_symbol=name)
        (said,) = await ask(question.SerializeToString())
        (raw,) = said.file_descriptor_response.file_descriptor_proto
        file = FileDescriptorProto.FromString(raw)
        assert name in {f"{file.package}.{one.name}" for one in file.service}
        used = [method.input_type for one in file.service for method in one.method]
        assert all(one.startswith(f".{file.package}.") for one in used)


async def test_what_cannot_be_read_is_refused_and_the_stream_goes_on(ask: Ask) -> None:
    good = pb.ServerReflectionRequest(list_services="").SerializeToString()
    bad, said = await ask(b"\xff\xff", good)
    assert bad.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert said.list_services_response.service
