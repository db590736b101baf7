"""Where each process listens: the first of a role on fixed ports, all others on free ones.

In: the first of the fixed ports, or that all are free ones. Out: a process's ports; one sentence
where a fixed one cannot be had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from inferbus_dev import ports

if TYPE_CHECKING:
    from collections.abc import Collection

    from inferbus_dev.services import Role

DEFAULT_PORT_BASE = 8080
# From the base: 0 HTTP, 1 gRPC, 2 metrics of the first gateway, 3 control plane.
FIXED_PORTS = 4
HTTP, GRPC, METRICS, REGISTRY = range(FIXED_PORTS)


class Listens(NamedTuple):
    """The ports of one process; None where it does not listen so."""

    metrics: int
    http: int | None
    grpc: int | None


class Seating:
    """The ports of one stack.

    Invariant: no port is given out twice, nor a fixed one as a free one; `taken` has them all.
    """

    def __init__(self, base: int | None) -> None:
        """Begin at a port, or with None, take free ones for every process."""
        self._base = base
        self.taken: set[int] = set()

    def check(self, roles: Collection[str]) -> None:
        """Demand the fixed ports of these roles.

        Raises:
            LauncherError: one cannot be had; the sentence says which, and what to do.
        """
        if self._base is None:
            return
        # None of them is a free one for another listener.
        self.taken.update(ports.demand_range(self._base, FIXED_PORTS))
        if "gateway" in roles:
            ports.demand_free(self._base + HTTP, "the gateway (HTTP)")
            ports.demand_free(self._base + GRPC, "the gateway (gRPC)")
            ports.demand_free(self._base + METRICS, "the gateway (metrics)")
        if "registry" in roles:
            ports.demand_free(self._base + REGISTRY, "the registry")

    def of(self, role: Role, index: int) -> Listens:
        """Choose the ports of a role's process."""
        base = self._base if index == 0 else None

        def port(offset: int | None) -> int:
            if base is None or offset is None:
                return ports.free_port(taken=self.taken)
            return base + offset

        is_gateway = role.name == "gateway"
        return Listens(
            metrics=port(METRICS if is_gateway else None),
            http=port(HTTP if is_gateway else REGISTRY) if role.serves_http else None,
            grpc=port(GRPC) if role.serves_grpc else None,
        )
