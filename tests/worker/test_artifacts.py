"""Version files: fetched, verified, kept, and never taken on trust."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from inferbus_kit.errors import StartupError
from inferbus_kit.objects import open_store
from inferbus_schemas.manifest import FileEntry, Manifest, Signature, TensorSpec
from inferbus_worker.artifacts import Artifacts, blob_path
from inferbus_worker.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 40_000


def manifest_of(data: bytes) -> Manifest:
    spec = TensorSpec("x", "FP32", (-1,))
    entry = FileEntry("model.onnx", hashlib.sha256(data).hexdigest(), len(data))
    return Manifest(
        model="m",
        task="tensor",
        engine="onnx",
        signature=Signature((spec,), (spec,)),
        files=(entry,),
    )


def put(store: Path, manifest: Manifest, data: bytes) -> Path:
    blob = store / blob_path(manifest.files[0].sha256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return blob


async def test_a_version_is_fetched_once_and_outlives_the_store(tmp_path: Path) -> None:
    store, state = tmp_path / "store", tmp_path / "state"
    manifest = manifest_of(DATA)
    blob = put(store, manifest, DATA)
    artifacts = Artifacts(open_store(store.as_uri()), state)
    folder = await artifacts.folder(manifest)
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert (folder / "model.onnx").read_bytes() == DATA
    blob.unlink()
    again = Artifacts(open_store(store.as_uri()), state)
    await again.forget(manifest)
    assert not folder.exists()
    assert (await again.folder(manifest) / "model.onnx").read_bytes() == DATA


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", DATA[:-1] + b"x", b""])
async def test_other_bytes_than_the_digest_says_are_refused(tmp_path: Path, data: bytes) -> None:
    store, state = tmp_path / "store", tmp_path / "state"
    manifest = manifest_of(DATA)
    put(store, manifest, data)
    artifacts = Artifacts(open_store(store.as_uri()), state)
    with pytest.raises(ArtifactError, match="digest"):
        await artifacts.folder(manifest)
    assert [path for path in state.rglob("*") if path.is_file()] == []


async def test_a_cached_file_that_rotted_is_fetched_again(tmp_path: Path) -> None:
    store, state = tmp_path / "store", tmp_path / "state"
    manifest = manifest_of(DATA)
    put(store, manifest, DATA)
    artifacts = Artifacts(open_store(store.as_uri()), state)
    await artifacts.folder(manifest)
    (state / blob_path(manifest.files[0].sha256)).write_bytes(DATA[:-1] + b"x")
    assert (await artifacts.folder(manifest) / "model.onnx").read_bytes() == DATA


async def test_a_missing_blob_is_one_sentence_without_paths(tmp_path: Path) -> None:
    artifacts = Artifacts(open_store((tmp_path / "store").as_uri()), tmp_path / "state")
    with pytest.raises(ArtifactError) as caught:
        await artifacts.folder(manifest_of(DATA))
    assert str(caught.value) == "model.onnx cannot be fetched from the object store"


@pytest.mark.parametrize("url", ["", "nonsense://x"])
def test_a_url_that_is_no_store_says_which_variable(url: str) -> None:
    with pytest.raises(StartupError, match="INFERBUS_OBJECT_STORE_URL"):
        open_store(url)
