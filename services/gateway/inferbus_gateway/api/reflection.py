"""Server reflection, for clients that know no protocol: v1, and v1alpha for older ones.

In: the names of services. Out: both reflection services on a server. They differ in their names
alone, and grpcio ships v1alpha only, so one servicer answers for both and the description of v1 is
made from that of v1alpha.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from inferbus_gateway.api.rpc_room import Room

V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace(".v1alpha.", ".v1.")
_METHOD = "ServerReflectionInfo"


def add(server: grpc.aio.Server, names: Iterable[str], room: Room) -> None:
    """Let clients find the services of these names, and reflection; each has a place of `room`."""
    _describe_v1()
    # Its stub calls the method a coroutine; it is a generator.
    servicer: Any = reflection.aio.ReflectionServicer((*names, V1ALPHA, V1))

    async def answered(
        asked: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: Any
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async with (
            room.held(context),
            contextlib.aclosing(servicer.ServerReflectionInfo(asked, context)) as answers,
        ):
            async for one in answers:
                yield one

    handler = grpc.stream_stream_rpc_method_handler(
        answered,
        request_deserializer=_read,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (V1ALPHA, V1):
        generic = grpc.method_handlers_generic_handler(name, {_METHOD: handler})
        server.add_generic_rpc_handlers((generic,))


def _read(raw: bytes) -> reflection_pb2.ServerReflectionRequest:
    """Return the question; one that cannot be read is the empty one, which is refused in words."""
    try:
        return reflection_pb2.ServerReflectionRequest.FromString(raw)
    except DecodeError:
        return reflection_pb2.ServerReflectionRequest()


def _describe_v1() -> None:
    """Add the file of v1 to those that clients may ask for."""
    old = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(old)
    text = text_format.MessageToString(old).replace("v1alpha", "v1")
    new = text_format.Parse(text, FileDescriptorProto())
    descriptor_pool.Default().AddSerializedFile(new.SerializeToString())
