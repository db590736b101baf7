"""What stands before the bus in a gateway, without one: for tests of doors and refusals.

In: stand-ins for what speaks to Kafka. Out: routes of one model, and requests with plain bounds.
"""

from __future__ import annotations

from typing import Any

from inferbus_gateway.hot.limits import Limits
from inferbus_gateway.hot.pending import Pending
from inferbus_gateway.hot.pins import Pins
from inferbus_gateway.hot.placement import Placement
from inferbus_gateway.hot.requests import Requests
from inferbus_gateway.hot.route import Routes
from inferbus_kit.metrics import GatewayMetrics
from tests.gateway.fleet_records import Fleet, deployment, version


def routes_of(fleet: Fleet) -> Routes:
    """Return routes on which version 1 of `digits` is deployed and nobody holds it."""
    routes = Routes(Pins(), fleet.seen, Placement(fleet.seen, 1))
    routes.apply_version(version("digits", 1))
    routes.apply_deployment(deployment("digits", 1, {"champion": (1, 1)}, (1,)))
    return routes


def requests_of(
    parts: Any,
    metrics: GatewayMetrics,
    *,
    pending: Pending | None = None,
    limits: Limits | None = None,
    tracing: Any = None,
) -> Requests:
    """Return requests that `parts` place and answer, and trace unless `tracing` does."""
    return Requests(
        pending=Pending() if pending is None else pending,
        publisher=parts,
        replies=parts,
        metrics=metrics,
        tracing=tracing or parts,
        max_tensor_bytes=1 << 20,
        max_rows=4096,
        limits=limits or Limits(),
        max_tenant_pending=1000,
    )
