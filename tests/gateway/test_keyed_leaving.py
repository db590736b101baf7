"""A client with an `Idempotency-Key` that leaves: each protocol tells, and waits no longer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from inferbus_gateway.gen import open_inference_pb2 as pb
from inferbus_gateway.hot.incoming import Bodies, Head
from inferbus_gateway.hot.infer import Infer
from inferbus_gateway.hot.keyed_text import Asked, KeyedTexts, Sent
from inferbus_gateway.hot.rpc_infer import RpcInfer
from inferbus_gateway.hot.rpc_unread import Unread
from inferbus_gateway.hot.shares import Shares
from inferbus_kit.metrics import gateway_metrics
from inferbus_schemas import access

if TYPE_CHECKING:
    from inferbus_gateway.hot.keyed import Keyed

HEADERS = [(b"host", b"localhost"), (b"idempotency-key", b"k")]
ADA = access.principal("acme", "key:1", ["infer:*"])
nobody: Any = None


def parts(taken: list[Keyed]) -> dict[str, Any]:
    """Return a gateway's parts that let everybody in and answer nobody."""
    allows: Any = SimpleNamespace(
        admit=lambda: None,
        enter=lambda _caller: None,
        new_id=lambda: bytes(16),
        check=lambda *_said, **_more: ADA,
        check_call=lambda *_said: ADA,
    )
    return {
        "access": allows,
        "requests": allows,
        "routes": nobody,
        "metrics": gateway_metrics(CollectorRegistry()),
        "once": taken.append,
    }


def client(*messages: dict[str, Any]) -> Any:
    """Return the `receive` of a client that sends this and then stays until `leaves` is set."""
    left, leaves = list(messages), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        await leaves.wait()
        return {"type": "http.disconnect"}

    return receive, leaves


async def unanswered(message: Any) -> None:
    raise AssertionError(message)


async def taken_one(taken: list[Keyed]) -> Keyed:
    """Wait for the request that was taken, and for whatever it has begun."""
    while not taken:  # noqa: ASYNC110 -- a plain poll is clearest
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    return taken[0]


async def test_by_asgi() -> None:
    taken: list[Keyed] = []
    infer = Infer(bodies=Bodies(1 << 20, 1 << 20), **parts(taken))
    receive, leaves = client({"type": "http.request", "body": b"{}"})
    scope: Any = {"headers": HEADERS, "client": ("127.0.0.1", 1)}
    answering = asyncio.create_task(infer(scope, receive, unanswered, "m", ""))
    one = await taken_one(taken)
    assert not one.gone
    leaves.set()
    await answering
    assert one.gone


async def test_past_asgi() -> None:
    taken: list[Keyed] = []
    infer = Infer(bodies=Bodies(1 << 20, 1 << 20), **parts(taken))
    exchange: Any = SimpleNamespace(
        headers=HEADERS, peer="127.0.0.1", body=b"{}", disconnected=False
    )
    infer.direct("m", "", exchange)
    one = await taken_one(taken)
    assert not one.gone
    exchange.disconnected = True
    assert one.gone


async def test_routes_of_text() -> None:
    taken: list[Keyed] = []
    texts = KeyedTexts(nobody, nobody, taken.append)
    asked = Asked(b"", "acme", "m", "", Sent(Head(idempotency_key=b"k"), "/v1/completions", b"{}"))
    receive, leaves = client()
    answering = asyncio.create_task(texts.answer(asked, nobody, nobody, receive))
    one = await taken_one(taken)
    assert not one.gone
    leaves.set()
    assert await answering is None
    assert one.gone


async def test_grpc() -> None:
    taken: list[Keyed] = []
    infer = RpcInfer(streams=Shares("streams", 1, 1), unread=Unread(1), **parts(taken))
    call: Any = SimpleNamespace(
        invocation_metadata=lambda: [("idempotency-key", "k")], time_remaining=lambda: None
    )
    answering = asyncio.create_task(infer.unary(pb.ModelInferRequest(model_name="m"), call))
    one = await taken_one(taken)
    assert not one.gone
    answering.cancel()
    await asyncio.wait({answering})
    assert one.gone
