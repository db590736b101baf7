"""The hot route without a bus: what a refusal leaves behind, and a list that enters whole."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from inferbus_gateway import errors
from inferbus_gateway.hot import embeddings
from inferbus_gateway.hot.access import Access
from inferbus_gateway.hot.incoming import Bodies, Head
from inferbus_gateway.hot.infer import Infer
from inferbus_gateway.hot.limits import Limits
from inferbus_gateway.hot.pending import Entry, Pending
from inferbus_gateway.hot.requests import Requests, Waiter
from inferbus_kit.metrics import gateway_metrics
from inferbus_schemas import access
from inferbus_schemas import manifest as manifests
from inferbus_schemas import messages as m
from inferbus_schemas.access import Keyring
from tests.gateway.no_bus import requests_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Exchange:
    """A request as the listener hands it over; keeps what it is answered."""

    def __init__(self, timeout_ms: int) -> None:
        self.headers = [
            (b"host", b"localhost"),
            (b"x-inferbus-timeout-ms", str(timeout_ms).encode()),
        ]
        self.peer = "127.0.0.1"
        self.body = b'{"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}]}'
        self.status = 0

    def respond(self, status: int, _headers: Any, _body: bytes, *, close: bool) -> None:
        assert not close
        self.status = status


def test_a_refused_timeout_opens_no_span() -> None:
    opened: list[str] = []

    def open_span(name: str, **_more: Any) -> Any:
        opened.append(name)
        return SimpleNamespace(traceparent="")

    tracing: Any = SimpleNamespace(on=True, sampled=lambda _parent: True, open=open_span)
    spec = manifests.TensorSpec("x", "INT8", (-1,))
    signature = manifests.Signature(inputs=(spec,), outputs=(spec,))
    target = SimpleNamespace(
        model="m",
        version=1,
        pool="default",
        manifest=SimpleNamespace(signature=signature),
        counts_tokens=False,
        generates=False,
    )
    parts: Any = SimpleNamespace(
        partition=0, resolve=lambda _model, _version: target, place=lambda _entry: True
    )
    pending = Pending()
    metrics = gateway_metrics(CollectorRegistry())
    requests = requests_of(parts, metrics, pending=pending, tracing=tracing)
    infer = Infer(
        routes=parts,
        requests=requests,
        metrics=metrics,
        bodies=Bodies(1 << 20, 1 << 24),
        access=Access(Keyring(), local=True),
    )

    def ask(timeout_ms: int) -> int:
        exchange: Any = Exchange(timeout_ms)
        infer.direct("m", "", exchange)
        return int(exchange.status)

    assert ask(0) == 400
    assert not opened
    assert len(pending) == 0
    assert ask(1000) == 0, "it waits for its record"
    assert len(opened) == len(pending) == 1


def _charging() -> tuple[Requests, Limits, access.Principal]:
    """Return requests without a bus, and a caller with 60 tokens a minute."""
    parts: Any = SimpleNamespace(partition=0, place=lambda _entry: True, on=False)
    limits = Limits()
    requests = requests_of(parts, gateway_metrics(CollectorRegistry()), limits=limits)
    bounds = m.Limits(tokens_per_min=60)
    return requests, limits, access.principal("acme", "key:1", ["infer:*"], limits=bounds)


def _open_one(requests: Requests, caller: access.Principal, asked: m.Generation | None) -> Any:
    target: Any = SimpleNamespace(
        model="m", version=1, pool="default", counts_tokens=asked is not None
    )
    return requests.open(
        requests.new_id(),
        target,
        b"",
        caller=caller,
        n_rows=1,
        outputs=(),
        client_request_id="",
        timeout_s=1.0,
        waiter=Waiter(lambda _entry: None, time.monotonic()),
        generation=asked,
    )


def _failed(entry: Entry) -> None:
    said = m.Prediction(id=entry.id, outcome=m.OUTCOME_FAILED)
    entry.waiter.resolve(entry, said, 7, 0.0)


@pytest.mark.parametrize(
    "end",
    [_failed, lambda entry: entry.waiter.give_up(entry)],
    ids=["failed", "unknown"],
)
def test_a_stream_that_breaks_is_charged_what_was_delivered(end: Callable[[Entry], None]) -> None:
    requests, limits, ada = _charging()
    entry = _open_one(requests, ada, m.Generation(max_tokens=5, stream=True))
    end(entry)
    with suppress(errors.OutcomeUnknownError):
        requests.settle(entry, 100)
    with pytest.raises(errors.RateLimitedError):
        limits.check_tokens(ada, time.monotonic())


def test_a_generation_is_charged_to_its_caller_once_it_ended() -> None:
    requests, _limits, ada = _charging()
    entry = _open_one(requests, ada, m.Generation(max_tokens=5))
    used = m.Generated(prompt_tokens=70, completion_tokens=30)
    said = m.Prediction(id=entry.id, outcome=m.OUTCOME_OK, generated=used)
    entry.waiter.resolve(entry, said, 7, 0.0)
    requests.settle(entry)
    with pytest.raises(errors.RateLimitedError):
        _open_one(requests, ada, m.Generation(max_tokens=5))
    assert _open_one(requests, ada, None) is not None, "what generates nothing needs no tokens"


async def test_a_list_is_sent_whole_or_not_at_all() -> None:
    requests, *_ = _charging()
    bounds = m.Limits(requests_per_s=0.001, burst=4)
    ada = access.principal("acme", "key:2", ["infer:*"], limits=bounds)
    target: Any = SimpleNamespace(
        model="m",
        version=1,
        pool="default",
        counts_tokens=True,
        manifest=SimpleNamespace(
            batching=SimpleNamespace(max_rows=2),
            signature=SimpleNamespace(inputs=(SimpleNamespace(name="text"),)),
        ),
    )

    async def ask(n_texts: int) -> None:
        requests.enter(ada)
        told = {"caller": ada, "target": target, "head": Head()}
        await embeddings.run(requests, requests.new_id(), texts=[b"a"] * n_texts, **told)

    with pytest.raises(errors.InvalidRequestError, match=r"9 texts are 5 .* at most 8 texts"):
        await ask(9)
    with pytest.raises(errors.RateLimitedError):
        await ask(7)
    assert len(requests._pending) == 0
    # Both refusals have spent the one that each began with, and left the other two.
    asking = asyncio.create_task(ask(4))
    await asyncio.sleep(0)
    assert len(requests._pending) == 2
    asking.cancel()
    await asyncio.wait({asking})
