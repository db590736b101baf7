"""The object store, on a real folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from inferbus_kit.errors import ObjectStoreError, StartupError
from inferbus_kit.objects import Objects, open_store


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(open_store((tmp_path / "store").as_uri()))


async def test_one_of_all_that_create_is_first(objects: Objects) -> None:
    bodies = [str(number).encode() for number in range(20)]
    first = await asyncio.gather(*(objects.create("a/b", body) for body in bodies))
    assert sum(first) == 1
    assert await objects.get("a/b") == bodies[first.index(True)]


async def test_objects_come_and_go(objects: Objects) -> None:
    assert await objects.get("a/b") is None
    assert not await objects.exists("a/b")
    await objects.put("a/b", b"one")
    await objects.put("a/b", b"two")
    await objects.put("a/c/d", b"three")
    await objects.put("ab", b"beside")
    assert await objects.get("a/b") == b"two"
    assert await objects.exists("a/c/d")
    await objects.delete_folder("a")
    await objects.delete_folder("never")
    await objects.delete("never")
    assert not await objects.exists("a/b")
    assert not await objects.exists("a/c/d")
    await objects.delete("ab")
    assert await objects.get("ab") is None


async def test_trouble_is_one_error(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    objects = Objects(open_store(folder.as_uri()))
    (folder / "a").write_bytes(b"a file where a folder should be")
    with pytest.raises(ObjectStoreError):
        await objects.put("a/b", b"x")


@pytest.mark.parametrize("url", ["", "nonsense", "gopher://x"])
def test_a_url_that_names_no_store_is_one_sentence(url: str) -> None:
    with pytest.raises(StartupError, match="INFERBUS_OBJECT_STORE_URL"):
        open_store(url)
