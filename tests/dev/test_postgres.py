"""Postgres runs for root too, in a user namespace or as another user, or says why not."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inferbus_dev import ports, postgres
from inferbus_dev.errors import LauncherError
from inferbus_dev.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

IS_ROOT = os.geteuid() == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="inferbus-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
async def test_without_namespaces_another_user_runs_it(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    server = await postgres.server(
        open_folder / "postgres", open_folder / "logs" / "postgres.log", ports.free_port()
    )
    assert (server.prefix, server.as_user) == ((), postgres.NOBODY if IS_ROOT else None)
    await postgres.prepare(server)
    supervisor = Supervisor()
    member = await supervisor.start(postgres.child(server, lambda: os.environ))
    try:
        assert member.child is not None
        assert await postgres.has_database(server)
    finally:
        await supervisor.stop([member.name])
    assert postgres.end_holder(server.data) is None


async def test_root_without_either_way_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a test is closed to other users."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    if IS_ROOT:
        with pytest.raises(LauncherError, match="Postgres refuses to run as root"):
            await postgres.server(tmp_path / "postgres", tmp_path / "log", ports.free_port())
    else:
        server = await postgres.server(tmp_path / "postgres", tmp_path / "log", ports.free_port())
        assert server.as_user is None


async def test_the_password_is_kept_and_private(tmp_path: Path) -> None:
    first = await postgres.server(tmp_path / "postgres", tmp_path / "log", ports.free_port())
    again = await postgres.server(tmp_path / "postgres", tmp_path / "log", ports.free_port())
    assert first.password == again.password
    assert len(first.password) >= 24
    assert (first.folder / "password").stat().st_mode & 0o077 == 0
    assert first.password not in " ".join(postgres.child(first, lambda: os.environ).argv)
