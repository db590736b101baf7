"""The `inferbus` command as a process, and what it says where it fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.support import forkserver, registry

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path

NOWHERE = "http://127.0.0.1:1"
"""Where nobody listens."""


def inferbus(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INFERBUS_")}
    environment = {**clean, "INFERBUS_API_KEY": registry.ADMIN_KEY, **(env or {})}
    return forkserver.done("inferbus_cli", environment, arguments, cwd=cwd)


def failed(run: subprocess.CompletedProcess[str], said: str, code: int = 1) -> bool:
    assert run.returncode == code, run
    assert said in run.stderr
    assert run.stderr.startswith("inferbus: ")
    assert len(run.stderr.strip().splitlines()) == 1
    assert "Traceback" not in run.stderr
    return True
