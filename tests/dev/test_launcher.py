"""`python -m inferbus_dev up` as a user runs it, with real Kafka and Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from inferbus_dev import __main__ as command
from inferbus_dev.errors import DISK_FULL
from inferbus_dev.paths import PROJECT
from inferbus_dev.stack import Stack
from tests.dev import processes
from tests.support import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

START_TIMEOUT_S = 60
pytestmark = pytest.mark.slow


def _up(
    state: Path,
    *flags: str,
    before: tuple[str, ...] = (),
    env: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-m", "inferbus_dev", "up", "--state-dir", str(state), *flags],
        cwd=PROJECT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _stack(state: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((state / "stack.json").read_text())
    return read


def _wait_until_serving(launcher: subprocess.Popen[str]) -> str:
    """Read the output up to the status line."""
    assert launcher.stdout is not None
    said = ""
    for line in launcher.stdout:
        said += line
        if "rows logged" in line:
            return said
    raise AssertionError(said + (launcher.stderr.read() if launcher.stderr else ""))


@contextlib.contextmanager
def _serving(
    state: Path, only: str = "kafka,postgres", env: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    launcher = _up(state, "--only", only, env=env)
    try:
        yield launcher, _wait_until_serving(launcher)
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=START_TIMEOUT_S)


def _pids(stack: dict[str, Any]) -> dict[str, int]:
    return {entry["role"]: entry["pid"] for entry in stack["processes"]}


def test_the_life_of_a_stack(tmp_path: Path) -> None:
    """Start; refuse a second; serve another's; die by kill -9; start again; stop by Ctrl-C."""
    state = tmp_path / ".inferbus"
    with _serving(state) as (launcher, said):
        assert "to do: Kafka's jars, start Postgres, start Kafka, topics" in said
        stack = _stack(state)
        assert stack["postgres"].endswith("/inferbus")
        pids = _pids(stack)
        assert pids["launcher"] == launcher.pid
        assert set(pids) == {"launcher", "kafka", "postgres"}

        second = _up(state, "--only", "kafka,postgres")
        _, error = second.communicate(timeout=START_TIMEOUT_S)
        assert second.returncode == 1
        assert "Inferbus already runs from the folder .inferbus" in error
        assert error.count("\n") == 1
        assert _pids(_stack(state)) == pids

        named = {
            "INFERBUS_KAFKA_BOOTSTRAP": stack["kafka"],
            "INFERBUS_POSTGRES_URL": stack["postgres"],
            "INFERBUS_VALKEY_URL": "redis://127.0.0.1:1/0",
        }
        other = tmp_path / "other"
        with _serving(other, "kafka,postgres,valkey", named) as (guest, shown):
            assert "to do: topics\n" in shown
            told = _stack(other)
            assert _pids(told) == {"launcher": guest.pid}
            assert [told[name] for name in ("kafka", "postgres", "valkey")] == [*named.values()]

        launcher.send_signal(signal.SIGKILL)
        launcher.communicate(timeout=START_TIMEOUT_S)
    assert _pids(_stack(state)) == pids, "kept, so that the next start finds what is left"

    with _serving(state) as (launcher, said):
        assert f"postgres-0 (pid {pids['postgres']})" in said
        assert processes.gone(pids["kafka"])
        assert processes.gone(pids["postgres"])
        again = _pids(_stack(state))
        launcher.send_signal(signal.SIGINT)
        out, error = launcher.communicate(timeout=START_TIMEOUT_S)
        assert launcher.returncode == 0
        assert error == ""
        assert out.index("stop kafka: done") < out.index("stop postgres: done")
    assert all(processes.gone(pid) for pid in again.values())
    assert processes.mentioning(str(state)) == []
    assert not (state / "stack.json").exists()


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    state = tmp_path / ".inferbus"
    with _serving(state) as (launcher, _):
        pids = _pids(_stack(state))
        os.kill(pids["kafka"], signal.SIGSTOP)  # it cannot stop in order now
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert launcher.poll() is None
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=5)
        assert launcher.returncode == 130
    assert processes.gone(pids["kafka"])
    assert processes.gone(pids["postgres"])


def test_a_killed_server_is_started_again(tmp_path: Path) -> None:
    state = tmp_path / ".inferbus"
    with _serving(state) as (launcher, _):
        before = _pids(_stack(state))
        os.kill(before["postgres"], signal.SIGKILL)
        assert launcher.stdout is not None
        assert any("postgres-0 ended with -9, restarting" in line for line in launcher.stdout)
        deadline = time.monotonic() + 20
        while (after := _pids(_stack(state))).get("postgres") in {None, before["postgres"]}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert after["kafka"] == before["kafka"]


@pytest.mark.parametrize("steps", range(6))
async def test_ctrl_c_as_a_process_changes_is_heard(tmp_path: Path, steps: int) -> None:
    stack = Stack(tmp_path)
    session = command._Session(Console(quiet=True), models=False)
    watching = asyncio.create_task(session._watch(stack))
    for change in (10, steps):  # the first lets it settle into its wait
        stack.supervisor.changed.set()
        for _ in range(change):
            await asyncio.sleep(0)
    watching.cancel()
    await asyncio.wait([watching], timeout=5)
    assert watching.cancelled()


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path / ".inferbus"
    launcher = _up(state, "--only", "kafka,postgres")
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if line.startswith("start Kafka"):
            break
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=START_TIMEOUT_S)
    assert launcher.returncode == 0
    assert processes.mentioning(str(state)) == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--only", "kafka,zebra"), "There is no part called zebra"),
        (("--only", "worker"), "The services need kafka (or INFERBUS_KAFKA_BOOTSTRAP)"),
        (("--port-base", "70000"), "--port-base 70000 leaves no 4 ports: choose one from 1 to"),
        (("--only", "kafka", "--java", "/bin/echo"), "The Java given by --java has version"),
        (("--only", "kafka", "--java", "/nowhere"), "is not a Java runtime"),
    ],
)
def test_a_wrong_flag_is_one_sentence(
    tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    launcher = _up(tmp_path / ".inferbus", *flags)
    _, error = launcher.communicate(timeout=START_TIMEOUT_S)
    assert launcher.returncode == 1
    assert sentence in error
    assert error.count("\n") == 1


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        launcher = _up(tmp_path / ".inferbus", "--port-base", str(port))
        _, error = launcher.communicate(timeout=START_TIMEOUT_S)
    assert launcher.returncode == 1
    assert error.startswith(f"Port {port} on 127.0.0.1, where the gateway (HTTP) should listen")
    assert error.count("\n") == 1


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    if (before := small_disk.prefix(tmp_path, "8m")) is None:
        pytest.skip(small_disk.NO_SMALL_DISK)
    launcher = _up(tmp_path / ".inferbus", "--only", "postgres", before=before)
    _, error = launcher.communicate(timeout=START_TIMEOUT_S)
    assert (launcher.returncode, error) == (1, f"{DISK_FULL}\n")


def test_another_format_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("99")
    launcher = _up(tmp_path)
    _, error = launcher.communicate(timeout=START_TIMEOUT_S)
    assert launcher.returncode == 1
    assert "has format 99 and this Inferbus needs 1" in error
    assert error.count("\n") == 1
