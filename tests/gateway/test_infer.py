"""The hot route without a bus: what a refusal leaves behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from inferbus_gateway import errors
from inferbus_gateway.hot.incoming import Bodies, Head
from inferbus_gateway.hot.infer import Infer
from inferbus_gateway.hot.pending import Pending
from inferbus_kit.metrics import gateway_metrics


async def test_a_refused_timeout_opens_no_span() -> None:
    opened: list[str] = []

    def open_span(name: str, **_more: Any) -> Any:
        opened.append(name)
        return SimpleNamespace(traceparent="")

    tracing: Any = SimpleNamespace(on=True, sampled=lambda _parent: True, open=open_span)
    parts: Any = SimpleNamespace(partition=0)
    pending = Pending()
    infer = Infer(
        instance="gateway-0",
        routes=parts,
        pending=pending,
        publisher=parts,
        replies=parts,
        metrics=gateway_metrics(CollectorRegistry()),
        tracing=tracing,
        bodies=Bodies(1 << 20, 1 << 24),
    )
    target: Any = SimpleNamespace(model="m", version=1, pool="default")
    parsed: Any = SimpleNamespace(
        tensors=b"", client_request_id="", outputs=[], timeout_us=None, n_rows=1
    )

    def enter(timeout_ms: int) -> None:
        infer._entry(bytes(16), target, parsed, Head(timeout_ms=timeout_ms), 0.0)

    with pytest.raises(errors.InvalidRequestError):
        enter(0)
    assert not opened
    assert len(pending) == 0
    enter(1000)
    assert len(opened) == len(pending) == 1
