"""Object stores that cannot be used; what one must do is in tests/conformance."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferbus_kit.errors import ObjectStoreError, StartupError
from inferbus_kit.objects import Objects, open_store


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
