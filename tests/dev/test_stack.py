"""The stack's handling of services: ports, environment, order, kills.

What the services do is tested where they are; here small stand-ins record what they were told.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from inferbus_dev import loopback, ports
from inferbus_dev.errors import LauncherError
from inferbus_dev.services import ROLES
from inferbus_dev.stack import Stack
from tests.dev import processes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
SERVICES = frozenset(ROLES)
STAND_IN = """
import http.server, json, os, pathlib, signal, sys, time
private = pathlib.Path(os.environ["INFERBUS_STATE_DIR"])
private.mkdir(parents=True, exist_ok=True)
told = {name: value for name, value in os.environ.items() if name.startswith("INFERBUS_")}
(private / "told.json").write_text(json.dumps(told))
if "migrate" in sys.argv[1:]:
    assert len(sys.argv) == 2 or told["INFERBUS_ADMIN_KEY"].startswith("mlk_")
    print(told.get("INFERBUS_TEST_SAY", "migrated"))
    sys.exit(int(told.get("INFERBUS_TEST_CODE", "0")))
def stop(*_):
    (private / "stopped").write_text(str(time.monotonic()))
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(told["INFERBUS_METRICS_PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Put stand-ins in the place of the services."""
    for role in ROLES:
        package = tmp_path / "stand-ins" / f"inferbus_{role}"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN)
    return {"PYTHONPATH": str(tmp_path / "stand-ins"), "INFERBUS_TEST": "1"}


@pytest.fixture
def stack(
    tmp_path: Path, environment: dict[str, str], kafka_bootstrap: str, postgres_url: str
) -> Stack:
    """A stack of services on the session's servers."""
    return Stack(
        tmp_path / ".inferbus",
        only=SERVICES,
        free_ports=True,
        n_workers=2,
        env=environment,
        kafka_bootstrap=kafka_bootstrap,
        postgres_url=postgres_url,
    )


def _told(tmp_path: Path, name: str) -> dict[str, str]:
    read: dict[str, str] = json.loads(
        (tmp_path / ".inferbus" / "run" / name / "told.json").read_text()
    )
    return read


def _stopped_at(tmp_path: Path, name: str) -> float:
    return float((tmp_path / ".inferbus" / "run" / name / "stopped").read_text())


def _recorded(tmp_path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((tmp_path / ".inferbus" / "stack.json").read_text())
    return read


async def test_services_are_told_where_everything_is(
    stack: Stack, tmp_path: Path, kafka_bootstrap: str, postgres_url: str
) -> None:
    await stack.start()
    try:
        names = {"registry-0", "gateway-0", "worker-0", "worker-1", "logger-0"}
        assert set(stack.supervisor.members) == names
        for name in names:
            told = _told(tmp_path, name)
            assert told["INFERBUS_KAFKA_BOOTSTRAP"] == kafka_bootstrap
            assert told["INFERBUS_POSTGRES_URL"] == postgres_url
            assert told["INFERBUS_OBJECT_STORE_URL"] == (tmp_path / ".inferbus/objects").as_uri()
            assert told["INFERBUS_REGISTRY_URL"] == stack.registry
            assert told["INFERBUS_INSTANCE"].startswith(f"{name}-")
            assert told["INFERBUS_HTTP_HOST"] == "127.0.0.1"
            assert stack.metrics[name].endswith(f":{told['INFERBUS_METRICS_PORT']}")
            assert told["INFERBUS_TEST"] == "1"
            assert told["INFERBUS_AUTH"] == "local"
            assert "INFERBUS_ADMIN_KEY" not in told
        assert (
            stack.http == f"http://127.0.0.1:{_told(tmp_path, 'gateway-0')['INFERBUS_HTTP_PORT']}"
        )
        assert stack.grpc.endswith(f":{_told(tmp_path, 'gateway-0')['INFERBUS_GRPC_PORT']}")
        assert "INFERBUS_HTTP_PORT" not in _told(tmp_path, "worker-0")
        assert "INFERBUS_GRPC_PORT" not in _told(tmp_path, "registry-0")
        for owner in ("registry", "logger"):
            assert (tmp_path / ".inferbus" / "logs" / f"{owner}-migrate.log").read_text()
        recorded = _recorded(tmp_path)
        assert recorded["http"] == stack.http
        assert recorded["grpc"] == stack.grpc
        assert recorded["registry"] == stack.registry
        assert recorded["metrics"] == stack.metrics["gateway-0"]
        assert recorded["api_key"] == stack.api_key
        assert {entry["role"] for entry in recorded["processes"]} == {*ROLES, "launcher"}
    finally:
        await stack.stop()
    order = [
        min(_stopped_at(tmp_path, name) for name in names)
        for names in (["gateway-0"], ["worker-0", "worker-1"], ["logger-0"], ["registry-0"])
    ]
    assert order == sorted(order)
    assert processes.mentioning(str(tmp_path)) == []


async def test_processes_come_and_go(stack: Stack, tmp_path: Path) -> None:
    await stack.start()
    try:
        before = _told(tmp_path, "worker-1")
        pid = stack.kill("worker", 1, signal.SIGKILL)
        assert await asyncio.to_thread(processes.gone, pid)
        async with asyncio.timeout(10):
            await stack.wait_ready("worker", 1)
        after = _told(tmp_path, "worker-1")
        assert stack.process("worker", 1).pid != pid
        assert after["INFERBUS_INSTANCE"] != before["INFERBUS_INSTANCE"]
        assert after["INFERBUS_METRICS_PORT"] == before["INFERBUS_METRICS_PORT"]

        assert await stack.add("gateway") == 1
        assert len(set(stack.gateways)) == 2
        assert {"role": "gateway", "index": 1}.items() <= _recorded(tmp_path)["processes"][
            -1
        ].items()
        await stack.remove("gateway", 1)
        assert len(stack.gateways) == 1
        with pytest.raises(KeyError):
            stack.process("gateway", 1)

        old = stack.process("logger").pid
        await stack.restart("logger")
        assert stack.process("logger").pid != old
        assert os.path.exists(tmp_path / ".inferbus/run/logger-0/stopped")  # noqa: ASYNC240, PTH110
    finally:
        await stack.stop()
    await stack.stop()


async def test_fixed_ports_follow_the_base_and_settings_the_users_environment(
    tmp_path: Path,
    environment: dict[str, str],
    kafka_bootstrap: str,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INFERBUS_AUTH", "required")
    base = 31_400
    # As where the base is among the ports that are given out: just enough are left for the others.
    monkeypatch.setattr(ports, "FREE_RANGE", range(base, base + 8))
    stack = Stack(
        tmp_path / ".inferbus",
        port_base=base,
        only=SERVICES,
        env=environment,
        kafka_bootstrap=kafka_bootstrap,
        postgres_url=postgres_url,
    )
    await stack.start()
    try:
        assert stack.http == f"http://127.0.0.1:{base}"
        assert stack.metrics["gateway-0"] == f"http://127.0.0.1:{base + 2}"
        assert stack.registry == f"http://127.0.0.1:{base + 3}"
        fixed = set(range(base, base + 4))
        assert fixed.isdisjoint(set(stack.metrics_ports()) - {base + 2})
        assert await loopback.get(base + 2, "/readyz") == (loopback.OK, "ok")
        told = {_told(tmp_path, name)["INFERBUS_AUTH"] for name in stack.supervisor.members}
        assert told == {"required"}
    finally:
        await stack.stop()


async def test_tables_that_cannot_be_made_are_one_sentence(
    stack: Stack, tmp_path: Path, environment: dict[str, str]
) -> None:
    environment |= {"INFERBUS_TEST_CODE": "1", "INFERBUS_TEST_SAY": "the server is too old"}
    broken = Stack(
        tmp_path / "other",
        only=SERVICES,
        free_ports=True,
        env=environment,
        kafka_bootstrap=stack.kafka,
        postgres_url=stack.postgres,
    )
    with pytest.raises(LauncherError, match=r"The tables of .* the server is too old"):
        await broken.start()
    assert not (tmp_path / "other" / "stack.json").exists()


async def test_tables_are_made_again_only_when_something_changed(
    tmp_path: Path, environment: dict[str, str], kafka_bootstrap: str
) -> None:
    stack = Stack(
        tmp_path / ".inferbus",
        only={"postgres", "registry", "logger"},
        free_ports=True,
        env=environment,
        kafka_bootstrap=kafka_bootstrap,
    )
    folder = tmp_path / ".inferbus"
    made = {role: folder / "run" / f"{role}-migrate" / "told.json" for role in ROLES}

    async def start() -> set[str]:
        """Start and stop; return the roles whose tables were made."""
        await stack.start()
        await stack.stop()
        found = {role for role, path in made.items() if path.exists()}
        for role in found:
            made[role].unlink()
        return found

    assert await start() == {"registry", "logger"}
    assert await start() == set()
    # The registry's part holds the first key.
    (folder / "admin-key").unlink()
    assert await start() == {"registry"}
    shutil.rmtree(folder / "postgres" / "data")
    assert await start() == {"registry", "logger"}
