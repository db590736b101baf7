"""The health service of gRPC, for clients that send anything.

In: what this gateway says of itself. Out: `Check` and `Watch`; a question that cannot be read is
refused in words, where grpcio's own would end in UNKNOWN with the insides of an error.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from inferbus_gateway.api.rpc_room import Room
from inferbus_gateway.hot.rpc_messages import Unreadable, reader

NAME = health.SERVICE_NAME


def add(server: grpc.aio.Server, servicer: health.aio.HealthServicer, room: Room) -> None:
    """Serve what `servicer` is told; who watches it has a place of `room`."""

    async def check(asked: Any, context: Any) -> health_pb2.HealthCheckResponse:
        await _demand_readable(asked, context)
        answer: health_pb2.HealthCheckResponse = await servicer.Check(asked, context)
        return answer

    async def watch(asked: Any, context: Any) -> None:
        await _demand_readable(asked, context)
        async with room.held(context):
            await servicer.Watch(asked, context)

    how: Any = {
        "request_deserializer": reader(health_pb2.HealthCheckRequest),
        "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
    }
    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(check, **how),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **how),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


async def _demand_readable(asked: Any, context: Any) -> None:
    if isinstance(asked, Unreadable):
        status = grpc.StatusCode.INVALID_ARGUMENT
        await context.abort(status, "the message is not a HealthCheckRequest")
