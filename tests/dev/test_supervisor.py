"""Children are kept alive, and none is left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from inferbus_dev.errors import LauncherError
from inferbus_dev.process import Child
from inferbus_dev.supervisor import BACKOFF_FIRST_S, BACKOFF_MOST_S, State, Supervisor, backoff_s
from tests.dev import processes

if TYPE_CHECKING:
    from pathlib import Path

    from inferbus_dev.process import ChildSpec

SERVES = "open('ready', 'w').close(); import time; time.sleep(60)"
# Ends its first three runs at once and serves from the fourth.
ENDS_THREE_TIMES = """
runs = os.path.getsize('runs') if os.path.exists('runs') else 0
open('runs', 'a').write('.')
if 1 <= runs <= 2: os._exit(7)
open('ready', 'w').close()
import time; time.sleep(60)
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open('child', 'w').write(str(child.pid))
open('ready', 'w').close()
time.sleep(60)
"""


def test_backoff_doubles_up_to_a_limit() -> None:
    pauses = [backoff_s(failures) for failures in range(1, 60)]
    assert pauses[:3] == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S]
    assert pauses[-1] == BACKOFF_MOST_S
    assert pauses == sorted(pauses)


@pytest.mark.slow
async def test_a_killed_child_is_restarted_over_short_runs(tmp_path: Path) -> None:
    seen: list[State] = []
    supervisor = Supervisor(lambda: seen.extend(m.state for m in supervisor.members.values()))
    ready = processes.appears(tmp_path / "ready")
    member = await supervisor.start(processes.spec(tmp_path, ENDS_THREE_TIMES, ready=ready))
    try:
        assert member.child is not None
        first = member.child.pid
        (tmp_path / "ready").unlink()
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(10):
            while member.restarts < 3 or member.state is not State.READY:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert member.child.pid != first
        assert member.last_exit == 7
        assert seen.count(State.BACKOFF) == 3
    finally:
        await supervisor.stop([member.name])
    assert processes.gone(member.child.pid)


async def test_a_child_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes_fail = False

    def record() -> None:
        if changes_fail:
            raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = Supervisor(record)
    ready = processes.appears(tmp_path / "ready")
    member = await supervisor.start(processes.spec(tmp_path, SERVES, ready=ready))
    spawn, refused = Child.spawn, 0

    async def refuse_twice(spec: ChildSpec) -> Child:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await spawn(spec)

    monkeypatch.setattr(Child, "spawn", refuse_twice)
    try:
        first, changes_fail = member.child, True
        supervisor.signal(member.name, signal.SIGKILL)
        async with asyncio.timeout(10):
            await supervisor.wait_ready(member.name)
        assert refused == 2
        assert member.child is not first
        assert member.restarts == 1
    finally:
        await supervisor.stop([member.name])


async def test_wait_ready_spans_a_restart(tmp_path: Path) -> None:
    supervisor = Supervisor()
    ready = processes.appears(tmp_path / "ready")
    member = await supervisor.start(processes.spec(tmp_path, SERVES, ready=ready))
    try:
        child = member.child
        assert child is not None
        child.signal(signal.SIGKILL)
        await child.ended()
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await supervisor.wait_ready(member.name)
        assert member.child is not child
        assert member.restarts == 1
    finally:
        await supervisor.stop([member.name])


async def test_stop_kills_what_does_not_listen_and_its_children(tmp_path: Path) -> None:
    supervisor = Supervisor()
    ready = processes.appears(tmp_path / "ready")
    member = await supervisor.start(processes.spec(tmp_path, STUBBORN, ready=ready))
    grandchild = int((tmp_path / "child").read_text())
    assert member.child is not None
    await supervisor.stop([member.name])
    assert processes.gone(member.child.pid)
    assert processes.gone(grandchild)
    assert supervisor.members == {}


async def test_a_child_that_ends_while_starting_says_why(tmp_path: Path) -> None:
    supervisor = Supervisor()
    program = "print('port 1 is taken'); os._exit(3)"
    with pytest.raises(LauncherError, match=r"program-0 ended .*port 1 is taken"):
        await supervisor.start(
            processes.spec(tmp_path, program, ready=processes.appears(tmp_path / "never"))
        )
    assert supervisor.members == {}


async def test_a_child_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    supervisor = Supervisor()
    never = processes.appears(tmp_path / "never")
    with pytest.raises(LauncherError, match="was not ready within"):
        await supervisor.start(processes.spec(tmp_path, SERVES, ready=never, ready_timeout_s=0.5))
    assert processes.mentioning(str(tmp_path)) == []


async def test_a_full_disk_is_named(tmp_path: Path) -> None:
    program = "print('OSError: [Errno 28] No space left on device'); os._exit(1)"
    with pytest.raises(LauncherError, match="disk is full"):
        await Supervisor().start(
            processes.spec(tmp_path, program, ready=processes.appears(tmp_path / "never"))
        )


async def test_cancelling_a_start_leaves_nothing(tmp_path: Path) -> None:
    supervisor = Supervisor()
    never = processes.appears(tmp_path / "never")
    starting = asyncio.create_task(
        supervisor.start(processes.spec(tmp_path, SERVES, ready=never, ready_timeout_s=30))
    )
    await asyncio.sleep(0.2)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes.mentioning(str(tmp_path)) == []
