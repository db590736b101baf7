"""The set-up says in one sentence why it cannot go on, and does nothing twice."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING

import pytest

from inferbus_dev.paths import PROJECT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

SOURCE = PROJECT / "dev" / "bootstrap.py"


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_old_python_can_read_it() -> None:
    ast.parse(SOURCE.read_text(), feature_version=(3, 6))


def test_an_old_python_is_told_so(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 2, "final", 0))
    assert bootstrap.main() == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs Python 3.11 or newer and this is 3.10" in said


def test_a_python_without_venv_is_told_so(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert bootstrap.main() == 1
    assert "apt install python3-venv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("error: failed\n  cause: dns error\n", "check the network"),
        ("ERROR: No matching distribution found for uv==0.13.9", "check the network"),
        ("OSError: [Errno 28] No space left on device: '/x'", "The disk is full"),
        ("one\nhash mismatch for numpy.\n", "`uv pip sync` failed: hash mismatch for numpy."),
    ],
)
def test_a_failure_is_one_sentence(bootstrap: ModuleType, said: str, sentence: str) -> None:
    explained = bootstrap.explain(said, "`uv pip sync` failed")
    assert sentence in explained
    assert "\n" not in explained
    assert "/x" not in explained


@pytest.mark.parametrize("index", ["http://127.0.0.1:9/simple", "https://packages.invalid/simple"])
def test_no_network_is_one_sentence(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: str
) -> None:
    """The pinned uv itself, whose index refuses it or lies behind a proxy that does."""
    lock = tmp_path / "lock.txt"
    lock.write_text(f"idna==3.10 --hash=sha256:{'0' * 64}\n")
    told = {"UV_DEFAULT_INDEX": index, "HTTPS_PROXY": "http://127.0.0.1:9", "UV_HTTP_RETRIES": "0"}
    for name in [name for name in os.environ if re.match("(?i)UV_|.*_PROXY$", name)]:
        monkeypatch.delenv(name)
    for name, value in {**told, "UV_CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    # Never into the environment that runs this.
    place = ["--target", str(tmp_path / "target"), "-p", sys.executable, str(lock)]
    with pytest.raises(bootstrap.StopError, match=r"check the network .* is kept\.$") as said:
        bootstrap.run([str(bootstrap.UV_PROGRAM), "pip", "sync", *place], shown=True)
    assert "\n" not in str(said.value)


def test_a_current_environment_is_left_alone(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(bootstrap, "run", lambda command, **_: ran.append(command))
    assert bootstrap.main() == 0
    assert any("sync" in command for command in ran)
    ran.clear()
    assert bootstrap.main() == 0
    assert ran == []


def test_our_packages_come_in_the_order_of_their_needs(bootstrap: ModuleType) -> None:
    named = [path.relative_to(PROJECT).as_posix() for path in bootstrap.find_projects()]
    assert named[:4] == ["schemas", "guard", "telemetry", "kit"]
    assert named[-1] == "dev"
    assert {"services/gateway", "services/worker"} < set(named)
