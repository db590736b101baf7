"""The door of the gRPC listener: a caller is looked at before its message is received.

In: the name and the metadata of a call, of which no message was read. Out: the call goes on to its
method, or is refused unread. What only the message tells, its model, and what only an open call
tells, its peer, are looked at where it is answered. A call of no method is refused here too.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc

from inferbus_gateway import errors
from inferbus_gateway.hot.access import Access, presented
from inferbus_gateway.hot.rpc_messages import bare, refusal_metadata, status
from inferbus_kit.errors import InferbusError
from inferbus_schemas import access, ids

AT_SIGHT = {access.INFER: access.INFER_SOME, access.MODELS_READ: access.AUTHENTICATED}
"""What a policy demands as long as the model is not known, where that is less."""

Details = grpc.HandlerCallDetails
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RpcDoor(grpc.aio.ServerInterceptor):
    """Stands before the methods of one service.

    Invariants: no message is received of a call whose caller may not call its method, whatever the
    message says; a call that presents nothing goes on where that may do, and its method decides.
    """

    def __init__(
        self,
        service: str,
        methods: Mapping[str, str],
        access_: Access,
        *,
        new_id: Callable[[], bytes],
        count: Callable[[str], object],
    ) -> None:
        self._access = access_
        self._new_id = new_id
        self._count = count
        demanded = {
            f"/{service}/{name}": AT_SIGHT.get(policy, policy)
            for name, policy in methods.items()
            if policy != access.PUBLIC
        }
        refusals = {
            policy: self._refusal(functools.partial(self._denied, policy))
            for policy in demanded.values()
        }
        self._doors = {name: (policy, refusals[policy]) for name, policy in demanded.items()}
        self._unknown = self._refusal(lambda _context: errors.NotFoundError("no such method"))

    async def intercept_service(
        self,
        continuation: Callable[[Details], Awaitable[Handler | None]],
        handler_call_details: Details,
    ) -> Handler | None:
        """Let one call in or have it refused."""
        found = self._doors.get(handler_call_details.method)
        if found is not None:
            policy, refusal = found
            if not self._access.admits(presented(handler_call_details.invocation_metadata), policy):
                return refusal
        return await continuation(handler_call_details) or self._unknown

    def _refusal(self, why: Callable[[Context], InferbusError]) -> Handler:
        """Return what ends a call of any kind: a handler of streams is run before any message."""

        async def refuse(_unread: AsyncIterator[bytes], context: Context) -> None:
            error = why(context)
            self._count(error.code)
            beside = refusal_metadata(error, ids.text(self._new_id()))
            await context.abort(status(error), str(error), beside)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _denied(self, policy: str, context: Context) -> InferbusError:
        try:
            self._access.check_call(context, policy)
        except InferbusError as error:
            return bare(error)
        return errors.UnauthorizedError("the key was not known when the call came; send it again")
