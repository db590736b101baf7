"""Ports: one that cannot be had is named, free ones differ."""

from __future__ import annotations

import errno
import re
import secrets
import socket
import subprocess
import sys

import pytest

from inferbus_dev import ports
from inferbus_dev.errors import LauncherError


def test_a_taken_port_is_named_with_the_flag() -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(LauncherError, match=rf"Port {port} .*the gateway.* --port-base"):
            ports.demand_free(port, "the gateway (HTTP)")
    ports.demand_free(port, "the gateway (HTTP)")


@pytest.mark.parametrize("base", [-1, 0, 65_533, 65_535, 70_000])
def test_a_base_without_ports_above_it_is_one_sentence(base: int) -> None:
    with pytest.raises(LauncherError, match=rf"--port-base {base} .* from 1 to 65532 "):
        ports.demand_range(base, 4)
    assert ports.demand_range(65_532, 4)[-1] == 65_535


def test_a_port_for_others_is_not_said_to_be_taken() -> None:
    said = ports.why_refused(80, "the gateway (HTTP)", PermissionError(errno.EACCES, "denied"))
    assert said.startswith("Port 80 on 127.0.0.1, where the gateway (HTTP) should listen, is one")
    assert "taken" not in said


@pytest.mark.parametrize("port", [80, 8_080, 64_999, 65_535])
def test_the_example_is_a_base_that_can_be_had(port: int) -> None:
    said = ports.why_refused(port, "the registry", OSError(errno.EADDRINUSE, "in use"))
    example = re.search(r"--port-base (\d+)'", said)
    assert example is not None
    assert port not in ports.demand_range(int(example[1]), 4)


def test_free_ports_are_handed_out_once() -> None:
    taken: set[int] = set()
    found = [ports.free_port(taken=taken) for _ in range(50)]
    assert len(set(found)) == 50
    assert taken == set(found)


def test_a_free_port_is_no_other_launchers_though_nothing_listens_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = secrets.choice(range(10_000, ports.FREE_RANGE.start - 6))
    few = range(start, start + 6)
    choose = f"""
from inferbus_dev import ports
ports.FREE_RANGE = range({few.start}, {few.stop})
print(*(ports.free_port() for _ in range(3)), flush=True)
input()
"""
    monkeypatch.setattr(ports, "FREE_RANGE", few)
    with subprocess.Popen(
        [sys.executable, "-c", choose], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = {int(port) for port in other.stdout.readline().split()}
        mine = {ports.free_port() for _ in range(3)}
        other.communicate("")
    assert len(theirs) == 3
    assert len(mine) == 3
    assert not mine & theirs
    monkeypatch.setattr(ports, "FREE_RANGE", sorted(theirs))
    assert ports.free_port() in theirs
