"""The health service of gRPC, for clients that send anything.

In: what this gateway says of itself. Out: `Check` and `Watch`; a question that cannot be read is
refused in words, where grpcio's own would end in UNKNOWN with the insides of an error.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from inferbus_gateway.api.rpc_arrivals import Arrivals
from inferbus_gateway.api.rpc_room import Ends, Room
from inferbus_gateway.hot.access import address_of
from inferbus_gateway.hot.rpc_messages import Unreadable, reader
from inferbus_kit.errors import InferbusError

NAME = health.SERVICE_NAME


def add(
    server: grpc.aio.Server,
    servicer: health.aio.HealthServicer,
    room: Room,
    arrivals: Arrivals,
    ends: Ends,
) -> None:
    """Serve what `servicer` is told.

    A question has one of the places of `arrivals` while it comes, who watches one of `room`. Where
    no place is free, it is not waited for and taken for the one about the whole server: nobody who
    keeps places may keep others from hearing that it serves.
    """

    async def question(context: Any) -> Any:
        address = address_of(context.peer())
        if arrivals.full(address):
            return health_pb2.HealthCheckRequest()
        try:
            asked = await arrivals.message(context.read, address)
        except InferbusError as error:
            await ends(context, error)
        if isinstance(asked, Unreadable):
            status = grpc.StatusCode.INVALID_ARGUMENT
            await context.abort(status, "the message is not a HealthCheckRequest")
        return asked

    async def check(_messages: Any, context: Any) -> health_pb2.HealthCheckResponse:
        asked = await question(context)
        answer: health_pb2.HealthCheckResponse = await servicer.Check(asked, context)
        return answer

    async def watch(_messages: Any, context: Any) -> None:
        asked = await question(context)
        async with room.held(context):
            await servicer.Watch(asked, context)

    how: Any = {
        "request_deserializer": reader(health_pb2.HealthCheckRequest),
        "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
    }
    handlers = {
        "Check": grpc.stream_unary_rpc_method_handler(check, **how),
        "Watch": grpc.stream_stream_rpc_method_handler(watch, **how),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
