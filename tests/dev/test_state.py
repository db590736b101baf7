"""The state folder: one owner, one format, and an end for what a killed launcher left."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from inferbus_dev import process
from inferbus_dev.errors import LauncherError
from inferbus_dev.state import Running, StateDir
from inferbus_schemas import access
from tests.dev import processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(SLEEPS, start_new_session=True)
    yield child
    child.kill()
    child.wait()


def test_a_second_launcher_is_refused(tmp_path: Path) -> None:
    first = StateDir.open(tmp_path / ".inferbus")
    with pytest.raises(LauncherError, match=r"already runs from the folder \.inferbus"):
        StateDir.open(tmp_path / ".inferbus")
    first.close()
    StateDir.open(tmp_path / ".inferbus").close()


@pytest.mark.parametrize("found", ["2", ""])
def test_another_format_is_refused(tmp_path: Path, found: str) -> None:
    (tmp_path / "format").write_text(found)
    with pytest.raises(LauncherError, match="has format"):
        StateDir.open(tmp_path)
    (tmp_path / "format").write_text("1\n")
    StateDir.open(tmp_path).close()


def test_a_folder_with_data_and_no_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    with pytest.raises(LauncherError, match="has format unknown"):
        StateDir.open(tmp_path)


def test_the_admin_key_is_private_and_stays(tmp_path: Path) -> None:
    folder = StateDir.open(tmp_path)
    key = folder.admin_key()
    folder.close()
    assert access.key_id(key) is not None
    assert (tmp_path / "admin-key").stat().st_mode & 0o777 == 0o600
    again = StateDir.open(tmp_path)
    assert again.admin_key() == key
    again.close()


def test_stack_json_is_private_and_whole(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    state.write({"http": "http://127.0.0.1:1"}, [Running("worker", 1, 5, 2.5)])
    written = tmp_path / "stack.json"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert json.loads(written.read_text()) == {
        "http": "http://127.0.0.1:1",
        "processes": [{"role": "worker", "index": 1, "pid": 5, "started": 2.5}],
    }
    state.clear()
    assert not written.exists()
    state.close()


def test_leftovers_are_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    state = StateDir.open(tmp_path)
    left = Running("worker", 0, sleeper.pid, process.start_time(sleeper.pid))
    state.write({}, [left])
    assert state.end_leftovers() == [left]
    assert processes.gone(sleeper.pid)
    assert not (tmp_path / "stack.json").exists()
    state.close()


def test_a_reused_pid_is_spared(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    state = StateDir.open(tmp_path)
    state.write({}, [Running("worker", 0, sleeper.pid, process.start_time(sleeper.pid) - 60)])
    assert state.end_leftovers() == []
    assert sleeper.poll() is None
    state.close()


@pytest.mark.parametrize("ours", [True, False])
def test_children_of_a_dead_child_are_ended(tmp_path: Path, *, ours: bool) -> None:
    """The engine of a worker that died with its launcher, and a stranger in a reused session."""
    program = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)']); print(child.pid, flush=True)"
    )
    state = StateDir.open(tmp_path)
    mark = str(state.log("worker-0" if ours else "worker-1"))
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        start_new_session=True,
        stdout=subprocess.PIPE,
        env={**os.environ, process.MARK: mark},
    )
    assert parent.stdout is not None
    started = process.start_time(parent.pid)
    orphan = int(parent.stdout.readline())
    parent.wait()
    state.write({}, [Running("worker", 0, parent.pid, started)])
    try:
        assert state.end_leftovers() == []
        assert processes.gone(orphan, within_s=2.0 if ours else 0.2) is ours
    finally:
        if not ours:
            os.kill(orphan, signal.SIGKILL)
        state.close()


@pytest.mark.parametrize("torn", ["", "{", '{"processes": [{"role": "worker"}]}'])
def test_an_unreadable_record_is_no_reason_to_fail(tmp_path: Path, torn: str) -> None:
    state = StateDir.open(tmp_path)
    (tmp_path / "stack.json").write_text(torn)
    assert state.end_leftovers() == []
    state.close()
