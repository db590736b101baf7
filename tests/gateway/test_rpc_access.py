"""Every method of the gRPC service by every scope, on a listener without a bus."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from types import FrameType, SimpleNamespace
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from inferbus_gateway import door, errors
from inferbus_gateway.api.rpc import SERVICE, RpcServer
from inferbus_gateway.api.views import Views
from inferbus_gateway.control.repository import ModelRepository
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.rpc_infer import RpcInfer
from inferbus_gateway.hot.rpc_unread import Unread
from inferbus_gateway.hot.shares import Shares
from inferbus_kit.health import Health
from inferbus_kit.metrics import gateway_metrics
from inferbus_schemas import access
from inferbus_schemas.access import Verdict
from tests.gateway.fleet_records import Fleet
from tests.gateway.key_records import bearer, record
from tests.gateway.no_bus import requests_of, routes_of
from tests.support.hostile_rpc import of_its_sending

SCOPES = [*access.ALL_SCOPES, "infer:digits", "infer:other"]
(METHODS,) = (one.methods_by_name for one in pb.DESCRIPTOR.services_by_name.values())


class Listener:
    """The gRPC listener of a gateway; version 1 of `digits` is deployed and nobody holds it."""

    def __init__(self) -> None:
        self.keys = access.Keyring()
        routes = routes_of(Fleet())
        parts: Any = SimpleNamespace(partition=0)
        metrics = gateway_metrics(CollectorRegistry())
        requests = requests_of(parts, metrics)
        known = Access(self.keys, local=False)
        self.refused: list[str] = []
        self.health = Health()
        self.failed: asyncio.Queue[str] = asyncio.Queue()
        self.unread = Unread(8 << 20)
        self.server = RpcServer(
            "127.0.0.1",
            0,
            infer=RpcInfer(
                access=known,
                routes=routes,
                requests=requests,
                metrics=metrics,
                streams=Shares("streams", 8, 2),
                unread=self.unread,
            ),
            access=known,
            views=Views(routes, requests.statistics),
            repository=ModelRepository(routes, "http://127.0.0.1:9"),
            health=self.health,
            new_id=requests.new_id,
            max_body_bytes=1 << 20,
            max_connections=16,
            max_reading_bytes=8 << 20,
            drain_s=1.0,
            fail=self.failed.put_nowait,
            count=self.refused.append,
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator[Listener]:
        """Serve until left."""
        made = cls()
        await made.server.start()
        try:
            yield made
        finally:
            await made.server.stop()

    async def ask(self, name: str, model: str, presented: bytes | None) -> str:
        """Return the status of a call."""
        for _ in range(20):
            if (got := await self._ask(name, model, presented)) is not None:
                return got
        raise AssertionError("the client spoke of nothing but its own sending")

    async def _ask(self, name: str, model: str, presented: bytes | None) -> str | None:
        """Return the status of a call, or None where the client speaks of its own sending."""
        method = METHODS[name]
        fields = {field.name for field in method.input_type.fields}
        kind = getattr(pb, method.input_type.name)
        asked = kind(**{key: model for key in ("name", "model_name") if key in fields})
        head = () if presented is None else (("authorization", presented.decode()),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}") as channel:
            try:
                if method.client_streaming:
                    call = channel.stream_stream(
                        f"/{SERVICE}/{name}",
                        request_serializer=pb.ModelInferRequest.SerializeToString,
                        response_deserializer=pb.ModelStreamInferResponse.FromString,
                    )(iter([asked]), metadata=head, timeout=10)
                    (said,) = [one async for one in call]
                    code = said.infer_response.parameters["x-inferbus-error-code"].string_param
                    kinds = [getattr(errors, one) for one in errors.__all__ if one[0].isupper()]
                    by_code = {getattr(kind, "code", ""): kind for kind in kinds}
                    return str(by_code[code].grpc_status)
                raw = await channel.unary_unary(
                    f"/{SERVICE}/{name}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=lambda raw: raw,
                )(asked, metadata=head, timeout=10)
                if name == "ModelReady":  # It says so of what is hidden, and of what is not there.
                    return "OK" if pb.ModelReadyResponse.FromString(raw).ready else "NOT_FOUND"
            except grpc.aio.AioRpcError as error:
                return None if of_its_sending(error) else str(error.code().name)
        return "OK"


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener.running() as made:
        yield made


def _held() -> int:
    """Count the frames that still hold a message."""
    return sum(
        isinstance(value, pb.ModelInferRequest | pb.ModelReadyRequest)
        for frame in gc.get_objects()
        if isinstance(frame, FrameType)
        for value in frame.f_locals.values()
    )


async def test_a_refused_message_is_not_kept_until_cycles_are_collected(listener: Listener) -> None:
    listener.keys.apply(record(1, "infer:*", "models:read"))
    gc.collect()
    gc.disable()
    try:
        for name in ("ModelInfer", "ModelStreamInfer", "ModelReady"):
            for model in ("nobody", "digits"):
                await listener.ask(name, model, bearer(1))
        assert _held() == 0
    finally:
        gc.enable()


async def test_health_refuses_what_it_cannot_read(listener: Listener) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}") as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        for call in (check(b"\xff", timeout=10), watch(b"\xff", timeout=10).read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details() == "the message is not a HealthCheckRequest"


def _tear_at_the_next_call(patch: pytest.MonkeyPatch) -> None:
    """Break the loop that takes calls where it begins one, as a fault of grpcio's own would."""
    loop = asyncio.get_running_loop()
    make = loop.create_task

    def create_task(work: Any, **how: Any) -> Any:
        if how.get("name") != "rpc_task":
            return make(work, **how)
        work.close()
        raise MemoryError

    patch.setattr(loop, "create_task", create_task)


@pytest.mark.parametrize("torn", [False, True], ids=["stopped", "torn"])
async def test_a_listener_that_ends_by_itself_fails_the_gateway(
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
    torn: bool,  # noqa: FBT001
) -> None:
    """Also while a client still hangs on it; a stop in order fails nothing."""
    listener.health.ready("start")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}") as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        watching = watch(b"", timeout=10)
        assert await watching.read()
        assert not listener.health.reasons()
        if torn:
            _tear_at_the_next_call(monkeypatch)
            watch(b"", timeout=10)
        else:
            await listener.server._server.stop(None)
        async with asyncio.timeout(10):
            assert await listener.failed.get() == "task rpc failed"
        assert listener.health.reasons() == {"grpc": "the gRPC listener ended by itself"}
    await listener.server.stop()
    assert listener.failed.empty()


def test_every_method_has_a_policy() -> None:
    assert set(door.METHODS) == set(METHODS)
    assert set(door.METHODS.values()) <= access.POLICIES


@pytest.mark.parametrize("model", ["digits", "foreign"])
@pytest.mark.parametrize("name", sorted(door.METHODS))
async def test_every_method_by_every_scope(listener: Listener, name: str, model: str) -> None:
    policy = door.METHODS[name]
    fields = {field.name for field in METHODS[name].input_type.fields}
    named = model if fields & {"name", "model_name"} else ""
    for number, scope in enumerate(SCOPES, 1):
        listener.keys.apply(record(number, scope))
        got = await listener.ask(name, model, bearer(number))
        verdict = access.judge(access.principal("acme", "x", [scope]), policy, named)
        assert (got == "PERMISSION_DENIED") == (verdict is Verdict.FORBIDDEN), (scope, got)
        if verdict is Verdict.HIDDEN:
            assert got == "NOT_FOUND"
        assert got not in {"UNAUTHENTICATED", "INTERNAL", "UNKNOWN", "UNIMPLEMENTED"}
    for presented in (None, b"Bearer x", bearer(1) + b"x", bearer(999)):
        got = await listener.ask(name, model, presented)
        assert (got == "OK") if policy == access.PUBLIC else (got == "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "messages",
    [[], [b"\xff" * 4], [bytes(8 << 20)]],
    ids=["none yet", "unreadable", "too large"],
)
@pytest.mark.parametrize("name", ["ModelInfer", "ModelStreamInfer", "ModelReady"])
async def test_a_key_is_looked_at_before_a_message(
    listener: Listener, name: str, messages: list[bytes]
) -> None:
    """Whatever comes, and where nothing has come yet; the code says who would not be let in."""
    listener.keys.apply(record(1, "infer:digits"))
    listener.keys.apply(record(2, "deploy"))
    done = asyncio.Event()

    async def sent() -> AsyncIterator[bytes]:
        for message in messages:
            yield message
        await done.wait()

    async def code(presented: bytes | None) -> str:
        head = () if presented is None else (("authorization", presented.decode()),)
        while True:
            call = ask(sent(), metadata=head, timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in call:
                    pass
            if not of_its_sending(caught.value):
                break
        beside = dict(caught.value.trailing_metadata())
        assert "x-request-id" in beside, repr(caught.value)
        assert beside["x-inferbus-error-code"] == listener.refused[-1]
        return str(caught.value.code().name)

    large = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}", large) as channel:
        # The wire knows no kinds of calls: a client of streams may leave its message unsent.
        ask: Any = channel.stream_stream(f"/{SERVICE}/{name}")
        for presented in (None, b"Bearer x", bearer(1) + b"x", bearer(9)):
            assert await code(presented) == "UNAUTHENTICATED"
        if name != "ModelReady":
            assert await code(bearer(2)) == "PERMISSION_DENIED"
        done.set()


@pytest.mark.parametrize("path", [f"/{SERVICE}/LogSettings", "/nobody.Serves/This", "/"])
async def test_a_method_that_is_not_there_is_refused_in_our_words(
    listener: Listener, path: str
) -> None:
    """No message is awaited, and no key is asked for, as of a route that is not there."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}") as channel:
        call: Any = channel.stream_stream(path)(timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    beside = dict(caught.value.trailing_metadata())
    assert beside["x-inferbus-error-code"] == listener.refused[-1] == "not_found"
    assert "x-request-id" in beside


async def test_a_registry_that_is_away_is_said(listener: Listener) -> None:
    listener.keys.apply(record(1, "deploy"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}") as channel:
        load = channel.unary_unary(
            f"/{SERVICE}/RepositoryModelLoad",
            request_serializer=pb.RepositoryModelLoadRequest.SerializeToString,
            response_deserializer=pb.RepositoryModelLoadResponse.FromString,
        )
        asked = pb.RepositoryModelLoadRequest(model_name="digits")
        head = (("authorization", bearer(1).decode()),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(asked, metadata=head)
        beside = {key: str(value) for key, value in caught.value.trailing_metadata()}
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "the registry does not answer" in str(caught.value.details())
        assert beside["x-inferbus-error-code"] == "registry_unavailable"
        assert int(beside["grpc-retry-pushback-ms"]) >= 1000
        asked.parameters["config"].string_param = "{}"
        with pytest.raises(grpc.aio.AioRpcError, match="failed to load 'digits'") as caught:
            await load(asked, metadata=head)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("peer", "inside"),
    [
        ("ipv4:127.0.0.1:50051", True),
        ("ipv6:%5B::1%5D:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv4:10.0.0.9:127", False),
        ("unix:/run/x", False),
        ("", False),
    ],
)
def test_nobody_needs_a_key_here_alone(peer: str, inside: bool) -> None:  # noqa: FBT001
    call: Any = SimpleNamespace(peer=lambda: peer, invocation_metadata=lambda: None)
    known = Access(access.Keyring(), local=True)
    if inside:
        assert known.check_call(call, access.INFER, "digits") is access.ANONYMOUS
        return
    with pytest.raises(errors.UnauthorizedError):
        known.check_call(call, access.INFER, "digits")
