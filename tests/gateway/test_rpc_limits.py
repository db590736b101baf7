"""What one client of the gRPC listener may cost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from inferbus_gateway.api.rpc import SERVICE
from inferbus_gateway.door import METHODS as POLICIES
from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot.pending import Entry
from inferbus_gateway.hot.rpc_infer import Question, RpcInfer
from inferbus_gateway.hot.rpc_messages import Ended
from inferbus_gateway.hot.rpc_unread import Unread
from inferbus_schemas import access
from tests.gateway.key_records import bearer, record
from tests.gateway.test_rpc_access import METHODS, Listener
from tests.support import http2

OWN = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with Listener.running() as made:
        yield made


async def live(channel: grpc.aio.Channel, **more: Any) -> bool:
    ask = channel.unary_unary(
        f"/{SERVICE}/ServerLive",
        request_serializer=pb.ServerLiveRequest.SerializeToString,
        response_deserializer=pb.ServerLiveResponse.FromString,
    )
    answer: pb.ServerLiveResponse = await ask(pb.ServerLiveRequest(), timeout=5, **more)
    return answer.live


async def refused(work: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return caught.value.code()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET /v2 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
    ],
    ids=["http1", "tls", "broken"],
)
async def test_what_is_not_grpc_ends_its_connection(listener: Listener, noise: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.server.port)
    writer.write(noise)
    async with asyncio.timeout(10):
        while await reader.read(1 << 16):
            pass
    writer.close()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}") as channel:
        assert await live(channel)


async def test_a_name_that_is_no_text_ends_its_call_and_not_the_listener(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """No client library sends it; see docs/decisions/0017."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.server.port)
    head = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.head_of_call(b"/\xff\xfe/x"))
    writer.write(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + head)
    said = b""
    async with asyncio.timeout(10):
        while b"grpc-status" not in said:
            said += await reader.read(1 << 16) or pytest.fail("no status")
    writer.close()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}", OWN) as channel:
        assert await live(channel)
    assert caplog.records == []


@pytest.mark.parametrize(
    "name", sorted(name for name in METHODS if POLICIES[name] != access.PUBLIC)
)
async def test_a_message_that_is_none_is_refused_and_ends_its_call(
    listener: Listener, name: str
) -> None:
    listener.keys.apply(record(1, *access.ALL_SCOPES))
    head = (("authorization", bearer(1).decode()),)
    raw: Any = {"request_serializer": bytes, "response_deserializer": bytes}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}", OWN) as channel:
        if name == "ModelStreamInfer":
            ask = channel.stream_stream(f"/{SERVICE}/{name}", **raw)
            said = [one async for one in ask(iter([b"\xff" * 4] * 2), metadata=head, timeout=10)]
            for one in said:
                answer = pb.ModelStreamInferResponse.FromString(one)
                assert "the message is not of the kind" in answer.error_message
            assert len(said) == 2
            return
        call = channel.unary_unary(f"/{SERVICE}/{name}", **raw)
        code = await refused(call(b"\xff" * 4, metadata=head, timeout=10))
        assert code == grpc.StatusCode.INVALID_ARGUMENT


async def test_large_heads_and_messages_are_refused(listener: Listener) -> None:
    listener.keys.apply(record(1, access.INFER_ALL))
    known = (("authorization", bearer(1).decode()),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}", OWN) as channel:
        head = (("x-long", "a" * (64 << 10)),)
        assert await refused(live(channel, metadata=head)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        for compression in (None, grpc.Compression.Gzip):
            large = pb.ModelInferRequest(raw_input_contents=[bytes(32 << 20)])
            call = ask(large, metadata=known, compression=compression, timeout=20)
            code = await refused(call)
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await live(channel)


async def test_connections_past_the_limit_are_refused_and_older_ones_go_on(
    listener: Listener,
) -> None:
    address = f"127.0.0.1:{listener.server.port}"
    channels = [grpc.aio.insecure_channel(address, OWN) for _ in range(20)]
    try:
        answers = [await _or_none(live(channel)) for channel in channels]
        assert answers == [True] * 16 + [None] * 4
        assert await live(channels[0])
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _or_none(work: Any) -> bool | None:
    answer = (await asyncio.gather(work, return_exceptions=True))[0]
    return None if isinstance(answer, grpc.aio.AioRpcError) else bool(answer)


async def test_open_calls_that_ask_nothing_fill_only_their_share(listener: Listener) -> None:
    """One that watches, one that describes, two that infer are the most here; see `Listener`."""
    listener.keys.apply(record(1, access.INFER_ALL))
    known = (("authorization", bearer(1).decode()),)
    raw: Any = {"request_serializer": bytes, "response_deserializer": bytes}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.server.port}", OWN) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", **raw)
        describe = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", **raw
        )
        infer = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", **raw)
        watching = watch(b"")
        assert await watching.read()
        described = describe()
        await described.write(b"\x3a\x00")
        assert await described.read()
        streams = [infer(metadata=known), infer(metadata=known)]
        await asyncio.gather(*(one.write(b"\xff") for one in streams))
        assert all(await asyncio.gather(*(one.read() for one in streams)))
        for call in (watch(b""), describe(), infer(metadata=known)):
            assert await refused(call.read()) == grpc.StatusCode.RESOURCE_EXHAUSTED
            codes = [value for key, value in await call.trailing_metadata() if "code" in key]
            assert codes in (["too_many_in_flight"], [b"too_many_in_flight"])
        assert listener.refused.count("too_many_in_flight") >= 2
        assert await live(channel)
        watching.cancel()
        for one in (described, *streams):
            one.cancel()
        async with asyncio.timeout(10):
            while True:
                again = describe(iter([b"\x3a\x00"]))
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert await again.read()
                    break


def _large() -> pb.ModelInferResponse:
    answer = pb.ModelInferResponse(id="mine", raw_output_contents=[bytes(1 << 20)])
    answer.parameters["x-request-id"].string_param = "019ac"
    return answer


async def test_answers_that_nobody_reads_are_so_many_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unary(_infer: RpcInfer, _asked: Any, _context: Any) -> pb.ModelInferResponse:
        return _large()

    monkeypatch.setattr(RpcInfer, "unary", unary)
    asked = pb.ModelInferRequest(model_name="digits").SerializeToString()
    async with Listener.running() as listener:
        listener.keys.apply(record(1, access.INFER_ALL))
        listener.keys.apply(record(2, access.INFER_ALL, tenant="other"))
        async with http2.Http2.connected(listener.server.port) as client:
            for _number in range(6):
                client.call(f"/{SERVICE}/ModelInfer", authorization=bearer(1).decode())
            await client.push(b"\0" + len(asked).to_bytes(4, "big") + asked, for_s=1.0)
            # Half of 8 MiB is one tenant's, and each answer is a little over 1 MiB.
            assert len(client.ended) == 3
            assert 3 << 20 < listener.unread.n_bytes < 4 << 20
            assert listener.refused == ["too_many_in_flight"] * 3
            head = (("authorization", bearer(2).decode()),)
            async with grpc.aio.insecure_channel(
                f"127.0.0.1:{listener.server.port}", OWN
            ) as channel:
                ask: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
                for _number in range(10):
                    assert len(await ask(asked, metadata=head, timeout=10)) > 1 << 20
        async with asyncio.timeout(10):
            while listener.unread.n_bytes:  # noqa: ASYNC110 -- nothing tells of it
                await asyncio.sleep(0.01)


def _at_once(
    infer: RpcInfer, _asked: Any, _call: Any, _remaining_s: Any, *, alone: bool = False
) -> asyncio.Future[Ended]:
    """Stand for a model that answers at once, with a mebibyte."""
    assert not alone
    future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
    infer._tell(
        cast("Question", None), future, "acme", cast("Entry", SimpleNamespace(id=bytes(16)))
    )
    return future


def _ended(*_: Any) -> Ended:
    return Ended(_large(), None, (("x-request-id", "019ac"),))


@pytest.fixture
def answering(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """A listener whose streams get a large answer to each request, at once."""
    monkeypatch.setattr(RpcInfer, "_ask", _at_once)
    monkeypatch.setattr(RpcInfer, "ended", _ended)
    listener.keys.apply(record(1, access.INFER_ALL))
    return listener


async def test_an_answer_of_a_stream_that_cannot_be_sent_is_its_error(
    answering: Listener,
) -> None:
    head = (("authorization", bearer(1).decode()),)
    asked = pb.ModelInferRequest(id="mine", model_name="digits").SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{answering.server.port}", OWN) as channel:
        ask: Any = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        sent = [one async for one in ask(iter([asked] * 2), metadata=head, timeout=10)]
        assert [one.infer_response.raw_output_contents for one in sent] == [[bytes(1 << 20)]] * 2
        assert answering.unread.n_bytes == 0
        assert answering.unread.refusal("acme", 4 << 20) is None
        sent = [one async for one in ask(iter([asked] * 2), metadata=head, timeout=10)]
    assert len(sent) == 2
    for one in sent:
        assert one.error_message.startswith("too many bytes of answers to you are unread")
        said = one.infer_response
        assert (said.id, len(said.parameters["x-request-id"].string_param)) == ("mine", 36)
        code = said.parameters["x-inferbus-error-code"].string_param
        assert (code, list(said.raw_output_contents)) == ("too_many_in_flight", [])


async def test_answers_of_streams_are_held_from_when_they_are_there(
    answering: Listener,
) -> None:
    """Behind the one that its client does not read stand those of all that it asked before."""
    asked = pb.ModelInferRequest(model_name="digits").SerializeToString()
    message = b"\0" + len(asked).to_bytes(4, "big") + asked
    async with http2.Http2.connected(answering.server.port) as client:
        for _ in range(2):
            client.call(f"/{SERVICE}/ModelStreamInfer", authorization=bearer(1).decode())
        await client.push(message * 40, for_s=1.0)
        # Half of 8 MiB is one tenant's, and each answer is a little over 1 MiB.
        assert 3 << 20 < answering.unread.n_bytes < 4 << 20
    async with asyncio.timeout(10):
        while answering.unread.n_bytes:  # noqa: ASYNC110 -- nothing tells of it
            await asyncio.sleep(0.01)


def test_tenants_share_what_may_be_unread() -> None:
    unread = Unread(1 << 20)
    half = 512 << 10
    assert unread.refusal("a", 64 << 10) is None
    assert unread.n_bytes == 0, "what is small is not counted"
    assert unread.refusal("a", half) is None
    assert getattr(unread.refusal("a", (64 << 10) + 1), "code", "") == "too_many_in_flight"
    assert unread.refusal("b", half) is None
    assert getattr(unread.refusal("c", (64 << 10) + 1), "code", "") == "overloaded"
    unread.give("a", half)
    assert unread.refusal("c", half) is None
    unread.give("b", half)
    unread.give("c", half)
    assert unread.n_bytes == 0
