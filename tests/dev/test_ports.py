"""Ports: a taken one is named, free ones differ."""

from __future__ import annotations

import socket

import pytest

from inferbus_dev import ports
from inferbus_dev.errors import LauncherError


def test_a_taken_port_is_named_with_the_flag() -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(LauncherError, match=rf"Port {port} .*the gateway.* --port-base"):
            ports.demand_free(port, "the gateway (HTTP)")
    ports.demand_free(port, "the gateway (HTTP)")


def test_free_ports_are_handed_out_once() -> None:
    taken: set[int] = set()
    found = [ports.free_port(taken=taken) for _ in range(50)]
    assert len(set(found)) == 50
    assert taken == set(found)
