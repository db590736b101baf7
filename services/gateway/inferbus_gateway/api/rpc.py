"""The gRPC listener: the protocol's service, health and reflection on one port.

In: calls of gRPC clients. Out: answers; every error is one of the gateway's own, with its gRPC
status, its message and, in trailing metadata, its code and the request id. Size, time and number of
what clients send are bounded before any of this runs, by the transport and by `rpc_arrivals`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2
from pydantic import BaseModel

from inferbus_gateway.api import reflection, rpc_health
from inferbus_gateway.api.rpc_arrivals import Arrivals
from inferbus_gateway.api.rpc_door import AT_SIGHT, RpcDoor
from inferbus_gateway.api.rpc_room import Context, Ends, Room
from inferbus_gateway.api.views import Views
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.door import METHODS
from inferbus_gateway.errors import UnknownModelError
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.rpc_infer import RpcInfer
from inferbus_gateway.hot.rpc_messages import bare, readable, reader, refusal_metadata, status
from inferbus_gateway.hot.shares import Shares
from inferbus_kit.errors import InferbusError, StartupError
from inferbus_kit.health import Health
from inferbus_kit.lifecycle import Fail, cancel, watched
from inferbus_schemas import ids
from inferbus_schemas.access import PUBLIC

_log = structlog.get_logger("rpc")

SERVICE = "inference.GRPCInferenceService"
_HEAD_BYTES = 32 << 10
_ROOM_BYTES = 64 << 10
"""What a message may hold beside tensors of the greatest size: names, shapes, parameters."""
_STREAMS = 1024
_PATIENCE_S = 30.0
"""How long one message may take to come, once it has a place."""
_SMALL = 16
_PATIENCE_OF_SMALL_S = 5.0
"""How many questions without tensors may be on their way, of each kind, and for how long."""
_DESCRIBING = 64
"""How many calls may ask for descriptions; each holds a message at most."""
_LOOK_S = 0.25
_BROKEN = "something went wrong here; the request id names it in our log"
_ENDED = "the gRPC listener ended by itself"

Answerer = Callable[[Any, str], Awaitable[Message]]
"""Takes a question and what its caller presented."""
M = TypeVar("M", bound=Message)


class RpcServer:
    """The gRPC listener.

    Invariants: `port` is the bound port from construction on; health follows this gateway's
    readiness within `_LOOK_S`; `stop` takes no new calls, lets running ones end within `drain_s`,
    then cancels what is left. A listener that ends otherwise makes the gateway not ready and is
    told to `fail`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        infer: RpcInfer,
        access: Access,
        views: Views,
        repository: ModelRepository,
        health: Health,
        new_id: Callable[[], bytes],
        max_body_bytes: int,
        max_connections: int,
        max_reading_bytes: int,
        drain_s: float,
        fail: Fail,
        count: Callable[[str], object] = str,
    ) -> None:
        self._fail = fail
        self._count = count
        self._health = health
        self._drain_s = drain_s
        self._new_id = new_id
        self._access = access
        self._unread = infer.unread
        self._reports = grpc_health.aio.HealthServicer()
        self._look: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=(RpcDoor(SERVICE, METHODS, access, new_id=new_id, count=count),),
            options=_options(max_body_bytes, max_connections),
            maximum_concurrent_rpcs=max_connections,
        )
        logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_us_something)
        n = max_reading_bytes // (max_body_bytes + _ROOM_BYTES)
        tensors = Arrivals(n, n // 4, _PATIENCE_S)
        self._small = Arrivals(_SMALL, _SMALL // 4, _PATIENCE_OF_SMALL_S)
        self._ends = ends = Ends(new_id, count)
        service = _Service(views, repository, health)
        self._server.add_generic_rpc_handlers((self._handler(service, infer, tensors),))
        watching = Shares("calls that watch", max_connections // 8, max_connections // 64)
        rpc_health.add(
            self._server,
            self._reports,
            Room(watching, ends),
            Arrivals(_SMALL, _SMALL // 4, _PATIENCE_OF_SMALL_S),
            ends,
        )
        n = min(_DESCRIBING, max_connections // 8)
        describing = Shares("calls that describe", n, n // 4)
        reflection.add(self._server, (SERVICE, rpc_health.NAME), Room(describing, ends))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartupError(
                f"port {port} on {host} cannot be bound; end what uses it or choose another port"
            ) from error

    async def start(self) -> None:
        await self.report()
        await self._server.start()
        self._look = watched(asyncio.create_task(self._watch(), name="rpc"), self._fail)

    async def stop(self) -> None:
        await cancel(self._look)
        await self._reports.enter_graceful_shutdown()
        await self._server.stop(self._drain_s)

    async def _watch(self) -> None:
        fault: Exception | None = None
        try:
            while await self._server.wait_for_termination(_LOOK_S):  # true: the time ran out
                await self.report()
        except Exception as error:  # noqa: BLE001 -- whatever it is, nobody takes calls any more
            fault = error
        self._health.not_ready("grpc", _ENDED)
        raise InferbusError(_ENDED) from fault

    async def report(self) -> None:
        """Tell those who watch health now and not only at the next look."""
        said = health_pb2.HealthCheckResponse
        fit = said.NOT_SERVING if self._health.reasons() else said.SERVING
        for name in ("", SERVICE):
            await self._reports.set(name, fit)

    def _handler(
        self, service: _Service, infer: RpcInfer, tensors: Arrivals
    ) -> grpc.GenericRpcHandler:
        handlers = {
            name: self._single(
                METHODS[name], kind, self._guarded(METHODS[name], answer), self._small
            )
            for name, kind, answer in service.methods()
        }
        name = "ModelInfer"
        handlers[name] = self._single(METHODS[name], pb.ModelInferRequest, infer.unary, tensors)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            infer.stream,
            request_deserializer=reader(pb.ModelInferRequest),
            response_serializer=_serialised,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _single(
        self,
        policy: str,
        kind: type[Message],
        method: Callable[[Any, Context], Awaitable[Message]],
        arrivals: Arrivals,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what serves a method of one message, which is not received before it has a place.

        To gRPC it is one of streams: only they are run before their message is here. Where anybody
        may ask, nothing is asked, and nothing read.
        """
        at_sight = AT_SIGHT.get(policy, policy)

        async def call(_messages: AsyncIterator[Any], context: Context) -> Message:
            if policy == PUBLIC:
                return await method(kind(), context)
            try:
                tenant = self._access.check_call(context, at_sight).tenant
                arriving = arrivals.message(context.read, tenant)
                # No message stays under a name here: what `abort` raises holds this frame for long.
                answer = await method(await arriving, context)
                n_bytes = answer.ByteSize()
                if (refused := self._unread.refusal(tenant, n_bytes)) is None:
                    give: Any = lambda _context: self._unread.give(tenant, n_bytes)  # noqa: E731 -- its type is the stubs' own class
                    context.add_done_callback(give)
                    return answer
                del answer
            except InferbusError as error:
                refused = error
            return await self._ends(context, refused)

        return grpc.stream_unary_rpc_method_handler(
            call, request_deserializer=reader(kind), response_serializer=_serialised
        )

    def _guarded(self, policy: str, answer: Answerer) -> Callable[[Any, Any], Awaitable[Message]]:
        """Return `answer` as a method for callers that may, whose errors are in our own words."""

        async def method(asked: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            request_id = ids.text(self._new_id())
            said = await self._said(policy, answer, asked, context, request_id)
            if not isinstance(said, InferbusError):
                context.set_trailing_metadata((("x-request-id", request_id),))
                return said
            # What `abort` raises holds this frame until the collector comes; not its megabytes too.
            del asked
            await context.abort(status(said), str(said), refusal_metadata(said, request_id))
            raise AssertionError  # `abort` raises

        return method

    async def _said(
        self,
        policy: str,
        answer: Answerer,
        asked: Any,
        context: grpc.aio.ServicerContext[Any, Any],
        request_id: str,
    ) -> Message | InferbusError:
        try:
            question = readable(asked)
            if policy != PUBLIC:
                self._access.check_call(context, policy, _model(question))
            return await answer(question, _presented(context))
        except UnknownModelError as error:
            if isinstance(asked, pb.ModelReadyRequest):  # As Triton says it.
                return pb.ModelReadyResponse(ready=False)
            self._count(error.code)
            return bare(error)
        except InferbusError as error:
            self._count(error.code)
            return bare(error)
        except Exception:  # noqa: BLE001 -- each call is answered in our own words
            _log.exception("rpc_failed", request_id=request_id)
            return InferbusError(_BROKEN)


def _model(asked: Any) -> str:
    """Return the model that a question names, under either of the two names for it."""
    return getattr(asked, "name", "") or getattr(asked, "model_name", "")


def _presented(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            return value
    return ""


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()


def _options(max_body_bytes: int, max_connections: int) -> list[tuple[str, int]]:
    """Return what one client may cost; the names are those of gRPC's core."""
    return [
        ("grpc.max_receive_message_length", max_body_bytes + _ROOM_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", _HEAD_BYTES),
        ("grpc.absolute_max_metadata_size", _HEAD_BYTES),
        ("grpc.max_concurrent_streams", _STREAMS),
        # It would grow the window of each call, which nobody reads yet, to megabytes.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.max_connection_idle_ms", 900_000),
        # A port that is taken must be an error, not a second listener.
        ("grpc.so_reuseport", 0),
    ]


class _Service:
    """The methods that answer without the bus."""

    def __init__(self, views: Views, repository: ModelRepository, health: Health) -> None:
        self._views = views
        self._repository = repository
        self._health = health

    def methods(self) -> list[tuple[str, type[Message], Answerer]]:
        """Return name, question and answer of each method."""
        return [
            ("ServerLive", pb.ServerLiveRequest, self._live),
            ("ServerReady", pb.ServerReadyRequest, self._ready),
            ("ModelReady", pb.ModelReadyRequest, self._model_ready),
            ("ServerMetadata", pb.ServerMetadataRequest, self._server),
            ("ModelMetadata", pb.ModelMetadataRequest, self._model),
            ("ModelConfig", pb.ModelConfigRequest, self._config),
            ("ModelStatistics", pb.ModelStatisticsRequest, self._statistics),
            ("RepositoryIndex", pb.RepositoryIndexRequest, self._index),
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest, self._load),
            ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self._unload),
        ]

    async def _live(self, _asked: pb.ServerLiveRequest, _presented: str) -> Message:
        return pb.ServerLiveResponse(live=not self._health.silent_loops())

    async def _ready(self, _asked: pb.ServerReadyRequest, _presented: str) -> Message:
        return pb.ServerReadyResponse(ready=not self._health.reasons())

    async def _model_ready(self, asked: pb.ModelReadyRequest, _presented: str) -> Message:
        return pb.ModelReadyResponse(ready=self._views.ready(asked.name, asked.version)[1])

    async def _server(self, _asked: pb.ServerMetadataRequest, _presented: str) -> Message:
        return _message(self._views.server(), pb.ServerMetadataResponse)

    async def _model(self, asked: pb.ModelMetadataRequest, _presented: str) -> Message:
        found = self._views.model(asked.name, asked.version)
        return _message(found, pb.ModelMetadataResponse)

    async def _config(self, asked: pb.ModelConfigRequest, _presented: str) -> Message:
        found = self._views.config(asked.name, asked.version)
        return pb.ModelConfigResponse(config=_message(found, pb.ModelConfig))

    async def _statistics(self, asked: pb.ModelStatisticsRequest, _presented: str) -> Message:
        found = self._views.statistics(asked.name, asked.version)
        return _message(found, pb.ModelStatisticsResponse)

    async def _index(self, asked: pb.RepositoryIndexRequest, _presented: str) -> Message:
        kind = pb.RepositoryIndexResponse.ModelIndex
        found = self._views.index(only_ready=asked.ready)
        return pb.RepositoryIndexResponse(models=[_message(one, kind) for one in found])

    async def _load(self, asked: pb.RepositoryModelLoadRequest, presented: str) -> Message:
        await self._repository.load(asked.model_name, presented, frozenset(asked.parameters))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, asked: pb.RepositoryModelUnloadRequest, presented: str) -> Message:
        await self._repository.unload(asked.model_name, presented)
        return pb.RepositoryModelUnloadResponse()


def _tells_us_something(record: logging.LogRecord) -> bool:
    """Leave out what anybody may have gRPC's core say, with three stacks for one small frame."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, UnicodeDecodeError)


def _message(found: BaseModel, kind: type[M]) -> M:
    """Return a view as the message that has the same fields."""
    return kind(**found.model_dump(exclude_none=True))
