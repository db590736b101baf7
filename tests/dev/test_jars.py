"""No jar runs that the lock does not name."""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from inferbus_dev import jars
from inferbus_dev.errors import LauncherError
from inferbus_dev.paths import KAFKA_FILES
from tests.support.shared_jars import class_path

if TYPE_CHECKING:
    from pathlib import Path

LOCK = KAFKA_FILES / "jgo.lock.toml"
SMALL = "jopt-simple"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock of one small jar."""
    entries = LOCK.read_text().split("[[dependencies]]")[1:]
    chosen = next(entry for entry in entries if f'artifactId = "{SMALL}"' in entry)
    small = tmp_path / "jgo.lock.toml"
    small.write_text(f"[[dependencies]]{chosen}")
    return small


@pytest.fixture
async def repository(tmp_path: Path) -> Path:
    """A repository that holds this one jar."""
    jar = next(path for path in await class_path() if SMALL in path.name)
    root = next(parent for parent in jar.parents if parent.name == "jars")
    target = tmp_path / "jars" / jar.relative_to(root)
    target.parent.mkdir(parents=True)
    shutil.copy(jar, target)
    return tmp_path / "jars"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy where nothing listens: every connection is refused."""
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def ignore(_now: jars.Progress) -> None:
    """Take no notice of progress."""


def test_the_lock_names_a_checksum_for_every_jar_and_no_address() -> None:
    text = LOCK.read_text()
    assert text.count("[[dependencies]]") == len(re.findall(r'sha256 = "[0-9a-f]{64}"', text)) > 40
    assert "://" not in text
    assert 'artifactId = "kafka-clients"\nversion = "4.4.0"' in text


@pytest.mark.usefixtures("no_network")
async def test_what_is_there_needs_no_network(lock: Path, repository: Path) -> None:
    told: list[jars.Progress] = []
    found = await jars.class_path(lock, repository, told.append)
    assert [path.name.partition("-5")[0] for path in found] == [SMALL]
    assert told == [jars.Progress(1, 1, 0)]


async def test_a_tampered_jar_is_refused(lock: Path, repository: Path) -> None:
    (jar,) = await jars.class_path(lock, repository, ignore)
    with jar.open("ab") as content:
        content.write(b"\0")
    with pytest.raises(LauncherError, match=rf"{jar.name} is not the file that .* names"):
        await jars.class_path(lock, repository, ignore)


@pytest.mark.usefixtures("no_network")
def test_without_network_there_is_one_sentence(lock: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    with pytest.raises(LauncherError) as raised:
        asyncio.run(jars.class_path(lock, folder, ignore))
    assert "check the network" in str(raised.value)
    assert "://" not in str(raised.value)
    assert not any(folder.iterdir())


def test_a_lock_without_a_checksum_is_refused(lock: Path, tmp_path: Path) -> None:
    lock.write_text(re.sub(r"sha256 = .*\n", "", lock.read_text()))
    with pytest.raises(LauncherError, match="lacks a jar's name or checksum"):
        asyncio.run(jars.class_path(lock, tmp_path / "jars", ignore))
